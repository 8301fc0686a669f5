"""Every call of the protocol has a role, and asks for it before it does anything."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import message_factory

from coordinator.admin_service import ADMIN_ROLE_NEEDED
from coordinator.service import ROLE_NEEDED
from coordinator.store.memory import MemoryCatalog
from share_dist.client import Credentials
from share_dist.pb import admin_pb2, coordinator_pb2
from share_dist.wire.records import ROLES
from tests.coordinator.support import make_config, running

SERVICES = {
    "Coordinator": (coordinator_pb2, ROLE_NEEDED),
    "Admin": (admin_pb2, ADMIN_ROLE_NEEDED),
}
WITHOUT_A_SUBSPACE = {"ListSubspaces", "CreateToken", "ListTokens", "RevokeToken", "ListAudit"}
"""These are about all subspaces: each function says itself whom it lets do what."""

METHODS = [
    pytest.param(service, method, id=method.name)
    for service, (module, _) in SERVICES.items()
    for method in module.DESCRIPTOR.services_by_name[service].methods
]


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A coordinator that asks for tokens, of which there are none."""
    config = make_config(tmp_path_factory.mktemp("closed") / "store", require_token=True)
    with running(config, catalog=MemoryCatalog()) as app:
        yield app


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_every_call_names_the_role_that_it_needs(service, method):
    """In one table for each service, which has no name that the protocol has not."""
    table = SERVICES[service][1]
    assert (method.name in table) != (method.name in WITHOUT_A_SUBSPACE)
    assert table.get(method.name, "admin") in ROLES
    names = {
        each.name for each in SERVICES[service][0].DESCRIPTOR.services_by_name[service].methods
    }
    assert set(table) <= names


def test_a_stranger_cannot_hold_a_push_open(closed):
    """Its header is not waited for: the answer comes before the first message."""
    begun = threading.Event()

    def silent() -> Iterator[bytes]:
        begun.wait(60)
        yield from ()

    with Credentials().channel(closed.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary("/share_dist.pb.Coordinator/PushUpdate")(silent(), timeout=30)
    begun.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_no_call_is_answered_to_a_stranger(closed, service, method):
    """Whatever it asks for: UNAUTHENTICATED, before its message is looked into."""

    def one(kind):
        message = message_factory.GetMessageClass(kind)()
        if method.name == "PushUpdate":
            message.header.SetInParent()
        return message.SerializeToString()

    path = f"/share_dist.pb.{service}/{method.name}"
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    message = one(method.input_type)
    with Credentials().channel(closed.address) as channel:
        call = getattr(channel, shape)(path)
        sent = iter([message]) if method.client_streaming else message
        with pytest.raises(grpc.RpcError) as caught:
            list(call(sent, timeout=10))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
