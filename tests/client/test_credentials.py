"""What a client shows, where it refuses to, and what never appears in words."""

import contextlib
import pickle
import socket
import threading
from concurrent import futures
from dataclasses import replace

import grpc
import pytest

from share_dist.client import Credentials, ShareClient
from share_dist.client.credentials import is_local
from share_dist.client.handshake import explain
from share_dist.client.retry import RetryPolicy, call_with_retries
from share_dist.errors import (
    ConfigError,
    NotAuthenticated,
    UntrustedCoordinator,
)
from tests.pki import Authority

SECRET = "sd_0123456789ab_very-secret"


class Echo(grpc.GenericRpcHandler):
    """Answers every call of every shape, and keeps what was shown with it."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def service(self, details):
        self.shown += [
            value for key, value in details.invocation_metadata if key == "authorization"
        ]
        kind = {
            "PushUpdate": grpc.stream_unary_rpc_method_handler,
            "WatchVersions": grpc.unary_stream_rpc_method_handler,
        }.get(details.method.rpartition("/")[2], grpc.unary_unary_rpc_method_handler)
        if kind is grpc.unary_stream_rpc_method_handler:
            return kind(lambda request, context: iter([b""]))
        return kind(lambda request, context: b"")


@pytest.fixture
def echo():
    """A server that lets everybody in; its address and what was shown to it."""
    handler = Echo()
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=(handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", handler
        finally:
            server.stop(None).wait()


def ask(channel: grpc.Channel) -> None:
    channel.unary_unary("/any/GetStatus")(b"", timeout=10)


def test_a_token_goes_with_every_kind_of_call(echo):
    """Unary, and streams in both directions."""
    address, handler = echo
    with Credentials(token=SECRET).channel(address) as channel:
        ask(channel)
        channel.stream_unary("/any/PushUpdate")(iter([b"", b""]), timeout=10)
        assert list(channel.unary_stream("/any/WatchVersions")(b"", timeout=10)) == [b""]
    assert handler.shown == [f"Bearer {SECRET}"] * 3


def test_without_a_token_nothing_is_shown(echo):
    """Also when a token stands in the environment: a program asks for it in so many words."""
    address, handler = echo
    with Credentials().channel(address) as channel:
        ask(channel)
    assert handler.shown == []
    environment = {"SHARE_DIST_TOKEN": f" {SECRET}\n"}
    assert Credentials().with_token_of(environment).read_token() == SECRET
    assert Credentials(token="sd_own_one").with_token_of(environment).token == "sd_own_one"


def test_a_token_file_that_is_replaced_is_read_again(echo, tmp_path):
    """A worker goes on for days: a renewed token counts from the next call on."""
    address, handler = echo
    path = tmp_path / "token"
    path.write_text("sd_1_first\n")
    with Credentials(token_file=path).channel(address) as channel:
        ask(channel)
        path.write_text("sd_2_second-and-longer\n")
        ask(channel)
        path.unlink()
        ask(channel)
    assert handler.shown == [
        "Bearer sd_1_first",
        "Bearer sd_2_second-and-longer",
        "Bearer sd_2_second-and-longer",
    ]


@pytest.mark.parametrize("content", ["", "\n", "two words", "sd_\u00e4_x", "x" * 2000, "a\nb"])
def test_a_file_without_a_token_is_named(tmp_path, content):
    """Before anything is sent; what the file holds is not repeated."""
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no token") as caught:
        Credentials(token_file=path).channel("127.0.0.1:1")
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """Whichever of the four it is."""
    nothing = tmp_path / "nothing"
    for shown in (
        Credentials(token_file=nothing),
        Credentials(ca=nothing),
        Credentials(certificate=nothing, key=nothing),
    ):
        with pytest.raises(ConfigError, match="cannot be read"):
            shown.channel("127.0.0.1:1")
    nothing.write_text("no certificate")
    with pytest.raises(ConfigError, match="no PEM file"):
        Credentials(ca=nothing).channel("127.0.0.1:1")


def test_a_key_of_another_certificate_is_named(tmp_path):
    """It is the caller's own mistake, and not a coordinator that cannot be trusted."""
    authority = Authority(tmp_path)
    one, other = authority.client("one"), authority.client("other")
    mixed = replace(one, key=other.key)
    with pytest.raises(ConfigError, match="cannot be used together") as caught:
        mixed.channel("127.0.0.1:1")
    assert str(one.certificate) in str(caught.value)
    assert str(other.key) in str(caught.value)
    one.channel("127.0.0.1:1").close()


def test_a_certificate_goes_with_its_key(tmp_path):
    """One without the other is an error at once."""
    for given, missing in (("certificate", "key"), ("key", "certificate")):
        with pytest.raises(ConfigError) as caught:
            Credentials(**{given: tmp_path / "x"})
        assert caught.value.key == missing


@pytest.mark.parametrize("address", ["10.0.0.7:50551", "coordinator.example.org:50551"])
def test_a_token_does_not_travel_where_others_read_it(address):
    """Unencrypted beyond this machine only when that is said in so many words."""
    with pytest.raises(ConfigError, match="unencrypted"):
        ShareClient(address, credentials=Credentials(token=SECRET))
    ShareClient(address, credentials=Credentials(token=SECRET, insecure=True)).close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("0.0.0.0:1", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)
def test_what_is_local_is_told_by_the_whole_name(address, expected):
    """A name that only begins like this machine's is another one."""
    assert is_local(address) is expected


def test_secrets_are_in_no_words(tmp_path):
    """Neither in repr, nor in an error; yet they survive being sent to an actor."""
    shown = Credentials(token=SECRET)
    assert SECRET not in repr(shown)
    assert SECRET not in str(shown)
    assert pickle.loads(pickle.dumps(shown)) == shown
    with pytest.raises(ConfigError) as caught:
        Credentials(token=SECRET).channel("example.org:1")
    assert SECRET not in str(caught.value)


# --- looking why nobody answers -----------------------------------------------------------------


def test_what_may_pass_by_itself_is_not_explained(echo):
    """A coordinator that is away, one that works, an address that is none: try again."""
    address, _ = echo
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    for place in (address, f"127.0.0.1:{closed}", "nowhere", "unix:/x", "host.invalid:1"):
        assert explain(place, Credentials()) is None


def test_a_listener_that_says_nothing_is_waited_for(tmp_path):
    """It may be busy: that is no reason to give up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert explain(address, Credentials(), seconds=0.1) is None
        assert explain(address, Authority(tmp_path).client(), seconds=0.1) is None


def test_an_end_in_the_middle_of_a_restart_is_looked_at_twice(tmp_path):
    """A listener that hangs up once and then is gone was a coordinator that ended."""
    import ssl

    authority = Authority(tmp_path)
    keys = authority.server()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(keys["tls_certificate"], keys["tls_key"])
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"

    def hang_up_once() -> None:
        connection, _ = listener.accept()
        with listener, context.wrap_socket(connection, server_side=True) as encrypted:
            encrypted.recv(1)

    thread = threading.Thread(target=hang_up_once)
    thread.start()
    assert explain(address, authority.client()) is None
    thread.join()


def test_a_balancer_without_a_coordinator_behind_it_is_waited_for(tmp_path):
    """It takes every connection and ends it before a word: that may pass by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.recv(10_000)
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert explain(address, Credentials()) is None
        assert explain(address, Authority(tmp_path).client()) is None
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_was_found_is_raised_at_once():
    """Not after a minute of tries that cannot succeed."""
    attempts = 0

    def call(_seconds: float) -> None:
        nonlocal attempts
        attempts += 1
        with grpc.insecure_channel("127.0.0.1:1") as channel:
            ask(channel)

    found = UntrustedCoordinator("the reason", address="a")
    with pytest.raises(UntrustedCoordinator):
        call_with_retries(
            call, address="a", timeout_seconds=60, policy=RetryPolicy(), explain=lambda: found
        )
    assert attempts == 1


def test_an_answer_is_never_looked_behind():
    """Only where nobody answered is there something to explain."""

    def call(_seconds: float) -> None:
        raise _Answered

    with pytest.raises(NotAuthenticated):
        call_with_retries(
            call,
            address="a",
            timeout_seconds=60,
            policy=RetryPolicy(),
            explain=lambda: pytest.fail("it was answered"),
        )


class _Answered(grpc.RpcError):
    """What gRPC raises for an answer of a coordinator."""

    def code(self):
        return grpc.StatusCode.UNAUTHENTICATED

    def details(self):
        return "no"

    def trailing_metadata(self):
        from share_dist.wire.status import error_to_trailers

        return error_to_trailers(NotAuthenticated("no"))[2]
