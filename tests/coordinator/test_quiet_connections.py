"""A connection on which nothing is said: the pings of one end are those that the other end allows."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.store import MemoryCatalog
from share_dist.wire import options
from share_dist.wire.records import UpdateState
from tests.coordinator.support import client_of, make_config, make_update, running, wait_until

FASTER = 50
"""Everything that is measured in milliseconds lasts so many times shorter here."""

NUM_PINGS = 4
"""More than a server forgives that come too early."""


def faster(every):
    """The options of before, on a clock that runs faster."""
    return [
        (name, value // FASTER if name.endswith("_ms") and "backoff" not in name else value)
        for name, value in every
    ]


class PingCounter:
    """A TCP proxy that counts the connections through it, and the HTTP/2 pings of those who connect."""

    PREFACE_BYTES = 24

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_connections = 0
        self.num_pings = 0
        self._begin(self._accept)

    def close(self):
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _begin(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self.num_connections += 1
                self._begin(self._carry, near, far, self._count)
                self._begin(self._carry, far, near, bytes)

    def _carry(self, one, other, rest_of):
        seen, is_first = b"", True
        with contextlib.suppress(OSError):
            while data := one.recv(2**16):
                other.sendall(data)
                seen += data
                if is_first and len(seen) >= self.PREFACE_BYTES:
                    seen, is_first = seen[self.PREFACE_BYTES :], False
                seen = seen if is_first else rest_of(seen)

    def _count(self, seen):
        """Count the pings among whole frames that are no answers; return what is left."""
        while len(seen) >= 9 and len(seen) >= (end := 9 + int.from_bytes(seen[:3], "big")):
            self.num_pings += seen[3] == 6 and not seen[4] & 1
            seen = seen[end:]
        return seen


@pytest.fixture
def quiet(monkeypatch, request):
    """A coordinator that merges once there are two updates, behind a counter of pings."""
    allowed = dict(faster(options.SERVER_OPTIONS)) | getattr(request, "param", {})
    monkeypatch.setattr("coordinator.app.SERVER_OPTIONS", [*allowed.items()])
    monkeypatch.setattr(
        "share_dist.client.credentials.CHANNEL_OPTIONS", faster(options.CHANNEL_OPTIONS)
    )
    config = make_config("unused", min_updates=2, max_wait_seconds=3600)
    with running(config, catalog=MemoryCatalog()) as app:
        counter = PingCounter(app.address)
        yield app, counter
        counter.close()


def wait_for_pings(counter):
    enough = counter.num_pings + NUM_PINGS
    wait_until(lambda: counter.num_pings >= enough)


def test_what_is_silent_for_long_lives(quiet):
    """Idle, then waiting for an event and for a merge, one connection outlives any number of pings."""
    app, counter = quiet
    with client_of(counter.address) as client, ThreadPoolExecutor(2) as threads:
        client.register()
        wait_for_pings(counter)
        with client.watch(after_version=0) as watch:
            told = threads.submit(next, watch)
            pushed = threads.submit(client.push, make_update("cats"), wait="merged")
            wait_for_pings(counter)
            assert not told.done()
            assert not pushed.done()
            with client_of(app.address, "other") as other:
                other.register()
                other.push(make_update("dogs"))
            assert told.result(60).version == 1
            assert pushed.result(60).state is UpdateState.MERGED
    assert counter.num_connections == 1


@pytest.mark.parametrize(
    "quiet", [{"grpc.http2.min_ping_interval_without_data_ms": 60_000}], indirect=True
)
def test_a_server_that_allows_fewer_pings_sends_its_clients_away(quiet):
    """What the test above rules out is what happens where the options of both ends do not fit."""
    app, counter = quiet
    with client_of(counter.address) as client, ThreadPoolExecutor(1) as threads:
        client.register()
        with client.watch(after_version=0) as watch:
            told = threads.submit(next, watch)
            wait_until(lambda: counter.num_connections > 1)
            with client_of(app.address, "other") as other:
                other.register()
                for task_id in ("cats", "dogs"):
                    other.push(make_update(task_id))
            assert told.result(60).version == 1
