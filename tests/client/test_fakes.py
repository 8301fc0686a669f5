"""The scripted coordinator does what its scripts say; the tests of the client rest upon it."""

import grpc
import pytest

from share_dist.client.stub import coordinator_stub
from share_dist.client.upload import Upload
from share_dist.errors import UnknownTask
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.chunks import cut
from share_dist.wire.codec import update_header, update_to_bytes
from share_dist.wire.status import DETAIL_KEY
from tests.client.conftest import update_of
from tests.fakes import Fail, Hang, LoseReply, event_of


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield coordinator_stub(channel)


def push(stub):
    update = update_of()
    payload = update_to_bytes(update)
    header = update_header(
        update, worker_id="w0", fingerprint_digest="", payload=cut(payload).header, wait="durable"
    )
    return Upload(stub, header, cut(payload)).attempt(60.0)


def test_faults_come_in_order_and_once(stub, coordinator):
    """Each fault spoils one call; then the coordinator is well."""
    coordinator.fail_next(
        "GetStatus", Fail(grpc.StatusCode.INTERNAL), Fail(UnknownTask("m", task_id="t"))
    )

    with pytest.raises(grpc.RpcError) as first:
        stub.GetStatus(pb.GetStatusRequest())
    with pytest.raises(grpc.RpcError) as second:
        stub.GetStatus(pb.GetStatusRequest())
    assert first.value.code() is grpc.StatusCode.INTERNAL
    assert second.value.code() is grpc.StatusCode.NOT_FOUND
    assert DETAIL_KEY in dict(second.value.trailing_metadata())
    assert stub.GetStatus(pb.GetStatusRequest()).release == "fake"
    assert coordinator.calls["GetStatus"] == 3


def test_a_lost_reply_has_had_its_effect(stub, coordinator):
    """The update is kept although the caller hears of no receipt."""
    coordinator.fail_next("PushUpdate", LoseReply())

    with pytest.raises(grpc.RpcError) as caught:
        push(stub)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert list(coordinator.updates) == ["u1"]


def test_a_call_that_hangs_ends_with_its_caller(stub, coordinator):
    """Nothing answers before the deadline."""
    coordinator.fail_next("ListTasks", Hang())

    with pytest.raises(grpc.RpcError) as caught:
        stub.ListTasks(pb.ListTasksRequest(), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_watchers_are_cut_when_told(stub, coordinator):
    """An open watch hears what is told, and ends when it is cut."""
    watching = stub.WatchVersions(pb.WatchVersionsRequest(after_version=0))
    coordinator.tell(event_of(1))
    assert next(watching).version == 1
    coordinator.cut_watchers()

    with pytest.raises(grpc.RpcError) as caught:
        next(watching)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
