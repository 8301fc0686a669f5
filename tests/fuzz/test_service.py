"""Raw bytes on every call of a running coordinator: it answers, keeps nothing of it, and goes on."""

import itertools
import random

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from share_dist.pb import admin_pb2, coordinator_pb2
from share_dist.wire.chunks import cut
from share_dist.wire.codec import update_header, update_to_bytes
from tests.coordinator.support import (
    FINGERPRINT,
    client_of,
    make_config,
    make_update,
    running,
    wait_until,
)
from tests.fuzz.mutation import mutate_message, populated

CALLS_OF_EACH = 60
PUSHES = 40
SECONDS = 1.0
"""How long a call may take that waits for something; a watch is ended so."""

RPCS = [
    (service.full_name, method)
    for file in (coordinator_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
UNARY = [(service, method) for service, method in RPCS if not method.client_streaming]

OUR_BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
"""What a coordinator says when it failed; to a request that it could not parse, gRPC says the same."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("store"), max_pending=1000)
    with running(config) as app:
        with client_of(app.address) as client:
            client.register()
            client.push(make_update("movies"), wait="merged")
        yield app.address


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture(autouse=True)
def goes_on(address):
    """After every attack the coordinator takes an ordinary push, and merges it."""
    yield
    with client_of(address, worker_id="honest") as client:
        client.register()
        base = client.pull()
        name = f"after-{base.version}"
        receipt = client.push(make_update(name, base=base, lease_epoch=0), wait="merged")
        assert receipt.version > base.version


def identity(data):
    return data


def request_class(method) -> type[Message]:
    return GetMessageClass(method.input_type)


def is_parsed(method, data) -> bool:
    try:
        request_class(method).FromString(data)
    except DecodeError:
        return False
    return True


def odd_requests(method, rng, count):
    """Requests of a kind: nearly right ones, and nothing but chance."""
    kind = request_class(method)
    seeds = [b"", *(populated(kind, rng) for _ in range(5))]
    for _ in range(count):
        data = mutate_message(rng.choice(seeds), kind, rng)
        data = in_default_subspace(data, method) if rng.random() < 0.7 else data
        yield rng.randbytes(rng.randint(0, 60)) if rng.random() < 0.15 else data


def in_default_subspace(data, method):
    """Say the same about the subspace that is there, so that more than its name is looked at."""
    try:
        message = request_class(method).FromString(data)
        message.ClearField("subspace")
    except (DecodeError, ValueError):
        return data
    return message.SerializeToString()


def code_of(call, *, is_stream=False) -> grpc.StatusCode:
    """Wait for the end of a call, whatever it sends until then."""
    try:
        if is_stream:
            for _ in call:
                pass
        else:
            call.result()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("service", "method"), UNARY, ids=lambda each: getattr(each, "name", ""))
def test_odd_requests_get_a_status_of_theirs(channel, service, method):
    """Every odd request is answered or refused; none meets a bug of the coordinator."""
    rng = random.Random(method.name)
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = make(f"/{service}/{method.name}", identity, identity)
    start = call if method.server_streaming else call.future
    requests = list(odd_requests(method, rng, CALLS_OF_EACH))
    calls = [start(data, timeout=SECONDS) for data in requests]
    for data, each in zip(requests, calls, strict=True):
        assert code_of(each, is_stream=method.server_streaming) not in OUR_BUGS or not is_parsed(
            method, data
        ), data


def test_odd_pushes_are_refused_or_kept_once(channel, address):
    """Streams out of order, cut, repeated or spoilt get a status; what is kept is whole."""
    rng = random.Random("pushes")
    with client_of(address) as client:
        lease = client.register()
        base = client.pull()
    call = channel.stream_unary("/share_dist.pb.Coordinator/PushUpdate", identity, identity)
    streams = [odd_push(base, lease.lease_epoch, number, rng) for number in range(PUSHES)]
    calls = [call.future(iter(stream), timeout=30) for stream in streams]
    codes = [code_of(each) for each in calls]
    kind = coordinator_pb2.PushUpdateRequest
    for stream, code in zip(streams, codes, strict=True):
        assert code not in OUR_BUGS or not all(_parses(kind, frame) for frame in stream), stream
    assert grpc.StatusCode.OK in codes
    assert len(set(codes)) > 3
    with client_of(address) as client:
        wait_until(lambda: client.status().num_pending == 0)


def _parses(kind, data) -> bool:
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


def odd_push(base, lease_epoch, number, rng, worker_id="w"):
    """The messages of one push, most often wrong in one way."""
    update = make_update(f"odd-{number}", base=base, lease_epoch=lease_epoch)
    pieces = cut(update_to_bytes(update))
    header = update_header(
        update,
        worker_id=worker_id,
        fingerprint_digest=FINGERPRINT.digest,
        payload=pieces.header,
        wait="durable",
    )
    kind = coordinator_pb2.PushUpdateRequest
    parts = [kind(header=header), *(kind(chunk=chunk) for chunk in pieces.chunks())]
    frames = [part.SerializeToString() for part in parts]
    at = rng.randrange(len(frames))
    match rng.randrange(8):
        case 0:
            frames.reverse()
        case 1:
            frames.append(frames[at])
        case 2:
            del frames[at]
        case 3:
            frames[at] = rng.randbytes(40)
        case 4 | 5:
            frames[at] = mutate_message(frames[at], kind, rng)
        case 6:
            frames = list(itertools.chain([frames[0]], frames))
        case _:
            pass
    return frames
