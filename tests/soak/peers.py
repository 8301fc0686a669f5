"""Peers of a coordinator under fire, many to a process: workers, vandals, and watchers that read nothing."""

import contextlib
import random
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc

from share_dist.client import ShareClient
from share_dist.core.values import Subspace
from share_dist.errors import LeaseExpired
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.records import UpdateState
from tests.coordinator.support import client_of, make_update
from tests.fuzz.test_service import UNARY, identity, in_default_subspace, odd_push, odd_requests

PULL_SECONDS = 2.0
DUPLICATES = 0.2
"""Share of pushes that are sent once more after their answer."""

ACKNOWLEDGED = {UpdateState.PENDING, UpdateState.MERGED}


class Crowd:
    """
    The peers of one process.

    Args:
        number: Of this process.
        address: Of the coordinator.
        stop: Set when they shall come to an end.
        folder: Ids of what was acknowledged are written to a file here.
        think_seconds: How long a worker learns, on average.
    """

    def __init__(
        self, number: int, address: str, stop: Event, folder: Path, think_seconds: float
    ) -> None:
        self._number = number
        self._address = address
        self._stop = stop
        self._think_seconds = think_seconds
        self._lock = threading.Lock()
        self._acknowledged = (folder / f"{number}.acknowledged").open("w", buffering=1)
        self._errors = (folder / f"{number}.errors").open("w", buffering=1)
        self._base: Subspace

    def run(self, num_workers: int, num_watchers: int) -> None:
        """Be here until told to stop."""
        with client_of(self._address, "puller") as client:
            client.register()
            self._base = client.pull()
        parts: list[Callable[[], None]] = [partial(self._work, i) for i in range(num_workers)]
        parts += [self._follow, self._vandalise, partial(self._watch_idly, num_watchers)]
        threads = [threading.Thread(target=self._guarded, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._acknowledged.close()
        self._errors.close()

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:  # noqa: BLE001 - told at the end of the soak, which then fails
            self._errors.write(f"{type(error).__name__}: {error}\n")

    def _note(self, update_id: str) -> None:
        with self._lock:
            self._acknowledged.write(update_id + "\n")

    def _follow(self) -> None:
        """Keep the bases that this process' workers train on; now and then late."""
        with ShareClient(self._address) as client:
            while not self._stop.wait(PULL_SECONDS):
                self._base = client.pull()

    def _work(self, index: int) -> None:
        name = f"worker-{self._number}-{index}"
        rng = random.Random(name)
        with client_of(self._address, name, timeout_seconds=120.0) as client:
            client.register()
            number = 0
            while not self._stop.wait(rng.expovariate(1 / self._think_seconds)):
                number += 1
                update = make_update(
                    name,
                    f"{name}-{number}",
                    base=self._base,
                    lease_epoch=0,
                    seed=rng.getrandbits(32),
                )
                self._push(client, update)
                if rng.random() < DUPLICATES:
                    self._push(client, update)

    def _push(self, client: ShareClient, update: Any) -> None:
        """Push until it is acknowledged."""
        try:
            receipt = client.push(update)
        except LeaseExpired:
            client.register()
            receipt = client.push(update)
        assert receipt.state in ACKNOWLEDGED, receipt
        self._note(receipt.update_id)

    def _vandalise(self) -> None:
        """Send what nobody should: requests and pushes that are wrong in every way."""
        rng = random.Random(self._number)
        number = 0
        while not self._stop.is_set():
            with client_of(self._address, f"vandal-{self._number}") as client:
                lease = client.register()
            with grpc.insecure_channel(self._address) as channel:
                for _ in range(20):
                    number += 1
                    self._send_odd_push(channel, lease.lease_epoch, number, rng)
                    _send_odd_requests(channel, rng)
                    self._stop.wait(0.2)

    def _send_odd_push(
        self, channel: grpc.Channel, lease_epoch: int, number: int, rng: random.Random
    ) -> None:
        call = channel.stream_unary("/share_dist.pb.Coordinator/PushUpdate", identity, identity)
        prefix = f"odd-{self._number}-{number % 20}"
        stream = odd_push(self._base, lease_epoch, prefix, rng, worker_id=f"vandal-{self._number}")
        try:
            receipt = pb.Receipt.FromString(call(iter(stream), timeout=10))
        except grpc.RpcError:
            return
        if receipt.state in {pb.Receipt.PENDING, pb.Receipt.MERGED}:
            self._note(receipt.update_id)

    def _watch_idly(self, count: int) -> None:
        """Open watches and pulls, and read nothing from them."""
        with grpc.insecure_channel(self._address) as channel:
            watch = channel.unary_stream(
                "/share_dist.pb.Coordinator/WatchVersions", identity, identity
            )
            request = pb.WatchVersionsRequest(after_version=0).SerializeToString()
            watches = [watch(request) for _ in range(count)]
            while not self._stop.wait(1.0):
                watches = [each if each.is_active() else watch(request) for each in watches]
            for each in watches:
                each.cancel()


def _send_odd_requests(channel: grpc.Channel, rng: random.Random) -> None:
    for service, method in UNARY:
        if not service.endswith(".Coordinator"):
            continue
        make = channel.unary_stream if method.server_streaming else channel.unary_unary
        call = make(f"/{service}/{method.name}", identity, identity)
        for data in odd_requests(method, rng, 2):
            with contextlib.suppress(grpc.RpcError):
                answer = call(in_default_subspace(data, method), timeout=0.5)
                if method.server_streaming:
                    next(answer, None)
                    answer.cancel()


def crowd(
    number: int,
    address: str,
    stop: Event,
    folder: Path,
    think_seconds: float,
    num_workers: int,
    num_watchers: int,
) -> None:
    """In a process of its own: be a crowd."""
    Crowd(number, address, stop, folder, think_seconds).run(num_workers, num_watchers)
