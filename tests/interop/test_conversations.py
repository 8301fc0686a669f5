"""What earlier releases said still means what it meant: to today's coordinator, and to today's client."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest

from coordinator.store.memory import MemoryCatalog
from share_dist.client import Mirror, ShareClient
from share_dist.errors import UnknownSubspace, VersionInFuture
from share_dist.pb import admin_pb2, coordinator_pb2, error_pb2
from tests.coordinator.support import make_config, running
from tests.interop.conversation import ERROR_KEY, FOLDER, Call, Conversation, Schema
from tests.interop.meaning import Names, answers_differ, errors_differ
from tests.interop.scenarios import CONFIG, FINGERPRINT, SCENARIOS
from tests.interop.servers import BytesServer, Echo

TODAY = Schema.of([admin_pb2.DESCRIPTOR, coordinator_pb2.DESCRIPTOR, error_pb2.DESCRIPTOR])
CONVERSATIONS = {
    path.name.removeprefix("release-").removesuffix(".jsonl.gz"): Conversation.load(path)
    for path in sorted(FOLDER.iterdir())
}


@pytest.fixture(params=CONVERSATIONS)
def conversation(request):
    return CONVERSATIONS[request.param]


def test_an_older_client_is_answered_as_it_was(conversation, tmp_path):
    """Each recorded request, byte for byte, gets an answer from today's coordinator that means the same to who asked."""
    names = Names()
    with (
        running(make_config(tmp_path / "store", **CONFIG), catalog=MemoryCatalog()) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        differences = [
            f"{index}. {call.rpc}: {difference}"
            for index, call in enumerate(conversation.calls)
            for difference in _differences(conversation.schema, call, channel, names)
        ]
    assert differences == []


def test_an_older_coordinator_is_understood_as_it_was(conversation):
    """Today's client makes of the recorded answers what the release's own client made of them, and asks for no more."""
    echo = Echo(conversation)
    with BytesServer(echo, conversation.schema.methods()) as server:
        results = SCENARIOS[conversation.release](server.address)
    assert (list(_lacking(conversation.results, results)), echo.surprises) == ([], [])


@pytest.fixture
def first_release():
    """The address of a server that answers as the coordinator of release 0.1 did."""
    conversation = CONVERSATIONS["0.1"]
    with BytesServer(Echo(conversation), conversation.schema.methods()) as server:
        yield server.address


def test_a_name_is_not_lost_on_a_coordinator_without_names(first_release):
    """A coordinator that knows one subspace only is not used for another: neither to learn there nor to read."""
    with ShareClient(first_release, subspace="vision", timeout_seconds=20) as client:
        for ask in (lambda: client.register("north", FINGERPRINT), client.pull):
            with pytest.raises(UnknownSubspace, match="older release"):
                ask()
        assert client.lease is None


def test_an_older_version_is_not_taken_for_one_that_was_waited_for(first_release):
    """A coordinator that does not know how to wait for a version is noticed by the version that it sends."""
    with (
        ShareClient(first_release, timeout_seconds=20) as client,
        pytest.raises(VersionInFuture, match="sent 0 at once"),
    ):
        client.pull(min_version=1)


def test_a_mirror_of_an_older_coordinator_takes_versions_whole(first_release):
    """Neither tail nor rotations come, and nothing else is lost: what is held is not sent again."""
    with ShareClient(first_release, timeout_seconds=20) as client:
        empty, mirror = client.pull(), Mirror(client)
        assert empty is not None
        first, second = mirror.advance(), mirror.advance()
        assert (first.version, first.num_steps, second.version, second.num_bytes) == (1, 0, 1, 0)
        assert mirror.subspace.shapes == empty.shapes


def test_no_field_has_changed(conversation):
    """What a release called a field, a value or a call is still called so, under the same number, or is reserved."""
    assert list(_schema_changes(conversation.schema, TODAY)) == []


def test_every_release_is_kept():
    """There is a conversation for every scenario, and nothing that could be taken for one."""
    assert CONVERSATIONS.keys() == SCENARIOS.keys()


def test_a_conversation_covers_its_protocol(conversation):
    """Every call that a release had is in its conversation, and at least one of every kind of refusal."""
    assert {call.method for call in conversation.calls} == conversation.schema.methods().keys()
    refused = {call.status for call in conversation.calls}
    assert {"OUT_OF_RANGE", "NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT"} < refused


def _differences(schema: Schema, call: Call, channel: grpc.Channel, names: Names) -> Iterator[str]:
    requests = [
        names.translate(data, message)
        for data, message in zip(
            call.requests, schema.requests(call.method, call.requests), strict=True
        )
    ]
    status, error, heard = _ask(channel, call, requests)
    if status != call.status:
        yield f"{call.status} became {status}: {error!r}"
        return
    recorded = schema.responses(call.method, call.responses)
    yield from answers_differ(recorded, schema.responses(call.method, heard), names)
    yield from errors_differ(schema.error(call.error), schema.error(error), names)


def _ask(
    channel: grpc.Channel, call: Call, requests: list[bytes]
) -> tuple[str, bytes, list[bytes]]:
    """Ask; a stream that the client left is left after as many messages."""
    running_call: Any = channel.stream_stream(call.method)(iter(requests), timeout=20)
    heard = []
    with contextlib.suppress(grpc.RpcError):
        for response in running_call:
            heard.append(response)
            if call.status == "CANCELLED" and len(heard) == len(call.responses):
                running_call.cancel()
    error = dict(running_call.trailing_metadata() or ()).get(ERROR_KEY, b"")
    return running_call.code().name, error, heard


def _lacking(recorded: Any, today: Any, where: str = "results") -> Iterator[str]:
    """Name what was understood then and is not now; records may have gained fields."""
    if isinstance(recorded, Mapping) and isinstance(today, Mapping):
        for name, value in recorded.items():
            yield from _lacking(value, today.get(name), f"{where}.{name}")
    elif isinstance(recorded, list) and isinstance(today, list) and len(recorded) == len(today):
        for index, pair in enumerate(zip(recorded, today, strict=True)):
            yield from _lacking(*pair, f"{where}[{index}]")
    elif recorded != today:
        yield f"{where}: {recorded!r} became {today!r}"


def _schema_changes(old: Schema, new: Schema) -> Iterator[str]:
    newer = {file.name: file for file in new.files.file}
    for file in old.files.file:
        messages = {message.name: message for message in newer[file.name].message_type}
        for message in file.message_type:
            yield from _message_changes(message, messages[message.name])
        yield from _enum_changes(file, newer[file.name])
    for method, kinds in old.methods().items():
        found = new.methods().get(method)
        if found is None or [k.DESCRIPTOR.full_name for k in kinds] != [
            k.DESCRIPTOR.full_name for k in found
        ]:
            yield f"{method} is not what it was"


def _message_changes(old: Any, new: Any) -> Iterator[str]:
    fields = {field.number: field for field in new.field}
    reserved = {number for span in new.reserved_range for number in range(span.start, span.end)}
    for field in old.field:
        found = fields.get(field.number)
        if found is None:
            if field.number not in reserved or field.name not in new.reserved_name:
                yield f"{old.name}.{field.name} has gone and is not reserved"
        elif (field.name, field.type, field.label, field.type_name) != (
            found.name, found.type, found.label, found.type_name,
        ):  # fmt: skip
            yield f"{old.name}.{field.name} became {found.name}, of another kind"
    nested = {message.name: message for message in new.nested_type}
    for message in old.nested_type:
        yield from _message_changes(message, nested[message.name])
    yield from _enum_changes(old, new)


def _enum_changes(old: Any, new: Any) -> Iterator[str]:
    enums = {
        enum.name: {value.number: value.name for value in enum.value} for enum in new.enum_type
    }
    for enum in old.enum_type:
        for value in enum.value:
            if enums[enum.name].get(value.number) != value.name:
                yield f"{enum.name}.{value.name} is not what it was"
