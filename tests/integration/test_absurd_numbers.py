"""Numbers that fit the wire and no database, sent to a real coordinator."""

import grpc
import pytest

from share_dist.errors import LeaseExpired, MalformedMessage, VersionInFuture
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire.chunks import cut
from share_dist.wire.codec import update_header, update_to_bytes
from share_dist.wire.status import error_from_rpc
from tests.coordinator.support import FINGERPRINT, client_of, make_config, make_update, running


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(make_config(tmp_path_factory.mktemp("store"))) as app:
        with client_of(app.address) as client:
            client.register()
            client.push(make_update("cats"), wait="merged")
        yield app.address


@pytest.fixture(scope="module")
def stub(address):
    with grpc.insecure_channel(address) as channel:
        yield CoordinatorStub(channel)


def push_of(**fields):
    """A push whose header says what no client of ours would send."""
    update = make_update("dogs")
    pieces = cut(update_to_bytes(update))
    header = update_header(
        update,
        worker_id="w",
        fingerprint_digest=FINGERPRINT.digest,
        payload=pieces.header,
        wait="durable",
    )
    header.MergeFrom(pb.UpdateHeader(**fields))
    yield pb.PushUpdateRequest(header=header)
    for chunk in pieces.chunks():
        yield pb.PushUpdateRequest(chunk=chunk)


CALLS = {
    "Heartbeat": (
        lambda stub, number: stub.Heartbeat(
            pb.HeartbeatRequest(worker_id="w", lease_epoch=number), timeout=60
        ),
        LeaseExpired,
    ),
    "PullSubspace": (
        lambda stub, number: list(
            stub.PullSubspace(pb.PullSubspaceRequest(version=number), timeout=60)
        ),
        VersionInFuture,
    ),
    "PullTask": (
        lambda stub, number: list(
            stub.PullTask(pb.PullTaskRequest(task_id="cats", version=number), timeout=60)
        ),
        VersionInFuture,
    ),
    "WatchVersions": (
        lambda stub, number: list(
            stub.WatchVersions(pb.WatchVersionsRequest(after_version=number), timeout=60)
        ),
        VersionInFuture,
    ),
    **{
        f"PushUpdate {field}": (
            lambda stub, number, field=field: stub.PushUpdate(
                push_of(**{field: number}), timeout=60
            ),
            kind,
        )
        for field, kind in (
            ("base_version", VersionInFuture),
            ("num_samples", MalformedMessage),
            ("lease_epoch", LeaseExpired),
        )
    },
}


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
@pytest.mark.parametrize("name", CALLS)
def test_absurd_numbers_are_answered_in_words(address, stub, name, number):
    """Each is refused with an error of ours that tells the number, and nothing is kept."""
    call, kind = CALLS[name]
    with pytest.raises(grpc.RpcError) as caught:
        call(stub, number)

    error = error_from_rpc(caught.value, address=address)
    assert type(error) is kind
    assert str(number) in error.message
    with client_of(address) as client:
        assert [task.task_id for task in client.tasks()] == ["cats"]
