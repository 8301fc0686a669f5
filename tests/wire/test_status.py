"""Errors to gRPC statuses and back, over a real server."""

import inspect

import grpc
import pytest

from share_dist import errors
from share_dist.client import RetryPolicy, ShareClient
from share_dist.errors import (
    CoordinatorUnreachable,
    DeadlineExceeded,
    MessageTooLarge,
    NotFinite,
    Overloaded,
    ShareError,
    UnexpectedStatus,
    UnknownTask,
    UnsupportedWireVersion,
    VersionInFuture,
)
from share_dist.pb import error_pb2
from share_dist.wire.status import DETAIL_KEY, error_from_rpc, error_to_trailers, status_of
from tests.fakes import Fail, FakeServer

ALL_ERRORS = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, ShareError)
]
WITH_STATUS = [kind for kind in ALL_ERRORS if kind.status is not None]
SAMPLES = {int: 7, float: 0.25, str: "größer ∞"}


def sample(kind: type[ShareError]) -> ShareError:
    return kind(
        f"{kind.__name__}: 3 of 4 — größer ∞",
        **{name: SAMPLES[field] for name, field in kind.fields.items()},
    )


@pytest.fixture(scope="module")
def server():
    with FakeServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    # A wait that is longer than the deadline: what would be tried again is seen at once.
    impatient = RetryPolicy(first_wait_seconds=1000.0, longest_wait_seconds=1000.0)
    with ShareClient(server.address, timeout_seconds=60.0, retry=impatient) as client:
        yield client


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_or_says_why_not(kind):
    """No class is forgotten in the table."""
    if kind.status is None:
        assert status_of(sample(kind)) is None
        assert len(kind.no_status_reason) > 10
    else:
        assert status_of(sample(kind)) is grpc.StatusCode[kind.status]


@pytest.mark.parametrize("kind", WITH_STATUS, ids=lambda kind: kind.__name__)
def test_every_error_crosses_the_wire_with_its_fields(kind, server, client):
    """What a coordinator raises is what its client raises: class, message and every fact."""
    server.servicer.fail_next("GetStatus", Fail(sample(kind)))

    with pytest.raises(ShareError) as caught:
        client.status()
    assert type(caught.value) is kind
    assert caught.value.message == sample(kind).message
    assert caught.value.details == sample(kind).details


FOREIGN = {
    grpc.StatusCode.UNAVAILABLE: CoordinatorUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedWireVersion,
}


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
def test_every_foreign_status_is_an_error_of_ours(code, server, client):
    """A bare status, from gRPC or from a proxy, is told by its code and with the address."""
    server.servicer.fail_next("GetStatus", Fail(code))

    with pytest.raises(ShareError) as caught:
        client.status()
    assert type(caught.value) is FOREIGN.get(code, UnexpectedStatus)
    assert server.address in caught.value.message
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    if isinstance(caught.value, UnexpectedStatus):
        assert caught.value.code == code.name


class Failed(grpc.RpcError):
    """A failed call, as grpc raises it."""

    def __init__(self, code, details="", metadata=()):
        self._said = (code, details, metadata)

    def code(self):
        return self._said[0]

    def details(self):
        return self._said[1]

    def trailing_metadata(self):
        return self._said[2]


def received(detail: bytes, code=grpc.StatusCode.UNAVAILABLE) -> ShareError:
    return error_from_rpc(Failed(code, "why", ((DETAIL_KEY, detail),)), address="host:1")


@pytest.mark.parametrize(
    "detail",
    [
        b"\xff\xff",
        b"",
        error_pb2.ErrorDetail(name="ErrorOfTheFuture", message="new").SerializeToString(),
        error_pb2.ErrorDetail(name="Exception", message="no").SerializeToString(),
    ],
    ids=["no message", "empty", "unknown class", "foreign class"],
)
def test_a_detail_that_cannot_be_read_is_told_by_its_status(detail):
    """A damaged detail, or one of a newer release, does not hide the status."""
    error = received(detail)

    assert isinstance(error, CoordinatorUnreachable)
    assert "why" in error.message


def test_facts_that_this_release_does_not_know_are_left_out():
    """Unknown fields and fields of another type do not keep an error from being told."""
    detail = error_pb2.ErrorDetail(name="VersionInFuture", message="m")
    detail.fields["current_version"].integer = 7
    detail.fields["version"].text = "nine"
    detail.fields["mood"].text = "good"
    detail.fields["nothing"].SetInParent()
    error = received(detail.SerializeToString())

    assert isinstance(error, VersionInFuture)
    assert error.details == {"version": 0, "current_version": 7}


def test_long_errors_still_fit_into_metadata(server, client):
    """However long a message or a name is, the error arrives, shortened."""
    long = UnknownTask("é" * 100_000, task_id="∞" * 100_000, nearest="x" * 100_000)
    server.servicer.fail_next("GetStatus", Fail(long))

    with pytest.raises(UnknownTask) as caught:
        client.status()
    assert caught.value.message.endswith("...")
    assert len(str(caught.value.task_id).encode()) <= 500


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63) - 1, 10**100])
def test_facts_beyond_the_wires_integers_are_sent_as_its_largest(number, server, client):
    """An error that names an absurd number arrives as that error, with the number in its message."""
    server.servicer.fail_next("GetStatus", Fail(VersionInFuture(f"{number}", version=number)))

    with pytest.raises(VersionInFuture, match=str(number)) as caught:
        client.status()
    assert caught.value.version == (2**63 - 1 if number > 0 else -(2**63))


def test_text_that_is_no_unicode_is_sent_with_question_marks():
    """A lone surrogate, as a foreign file name may have, does not break the error that names it."""
    _, details, _ = error_to_trailers(UnknownTask("no task \ud800"))

    assert details == "no task ?"


def test_an_error_without_a_status_is_internal():
    """What should never cross is sent as INTERNAL, and still with its class."""
    code, _, metadata = error_to_trailers(errors.StoreLocked("locked", path="p", pid=1))

    assert code is grpc.StatusCode.INTERNAL
    assert isinstance(received(metadata[0][1], code), errors.StoreLocked)


def test_a_message_over_grpcs_limit_is_told_as_such():
    """The refusal of a large message by gRPC itself is not taken for overload."""
    call = Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)")

    assert isinstance(error_from_rpc(call, address="host:1"), MessageTooLarge)


def test_numbers_cross_as_numbers():
    """Integers, floats and texts keep their types."""
    error = NotFinite("m", layer="q", side="a", num_entries=2**40)
    _, _, metadata = error_to_trailers(error)

    assert received(metadata[0][1]).details == {"layer": "q", "side": "a", "num_entries": 2**40}
