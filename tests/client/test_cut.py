"""A quiet connection lives, and one that was cut without a word is noticed by keepalive."""

import contextlib
import socket
import threading
from itertools import islice

import pytest

from share_dist.client import ShareClient
from share_dist.wire import options
from tests.client.conftest import QUICK
from tests.fakes import event_of


class Wire:
    """A TCP proxy that can stop to carry anything, as a cut cable does: nobody is told."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._is_cut: list[threading.Event] = [threading.Event()]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Carry nothing more on the connections of now; later ones are whole."""
        self._is_cut[-1].set()
        self._is_cut.append(threading.Event())

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far, is_cut = socket.create_connection(self._target), self._is_cut[-1]
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    thread = threading.Thread(target=carry, args=(one, other, is_cut), daemon=True)
                    self._threads.append(thread)
                    thread.start()


def carry(one: socket.socket, other: socket.socket, is_cut: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(2**16):
            if not is_cut.is_set():
                other.sendall(data)


@pytest.fixture
def wire(server, monkeypatch):
    quick = dict.fromkeys(
        ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"), 500
    )
    monkeypatch.setattr(
        "share_dist.client.credentials.CHANNEL_OPTIONS",
        [*((key, quick.get(key, value)) for key, value in options.CHANNEL_OPTIONS)],
    )
    wire = Wire(server.address)
    yield wire
    wire.close()


def test_a_silent_cut_is_noticed_and_nothing_is_missed(wire, coordinator):
    """A watch on a cable that was cut comes back over another connection, and goes on."""
    coordinator.tell(event_of(3))
    with ShareClient(wire.address, retry=QUICK) as client, client.watch(after_version=2) as watch:
        assert next(watch).version == 3
        wire.cut()
        coordinator.tell(event_of(4), event_of(5))
        assert [event.version for event in islice(watch, 2)] == [4, 5]
    assert coordinator.calls["WatchVersions"] >= 2
