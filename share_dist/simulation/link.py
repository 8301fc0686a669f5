"""The real coordinator, and the one real connection over which all simulated workers speak."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from typing_extensions import Self

from share_dist.client import ShareClient, new_update_id
from share_dist.client.mirror import Mirror
from share_dist.commands.processes import Child, share_dist_command, wait_for_file
from share_dist.core.values import (
    Fingerprint,
    LayerUpdate,
    Pair,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import WorkerError
from share_dist.simulation.scenario import Scenario
from share_dist.simulation.updates import DrawnUpdate
from share_dist.wire.chunks import cut
from share_dist.wire.codec import subspace_to_bytes, update_to_parts
from share_dist.wire.records import Lease, Receipt, UpdateState, Wait

_BASE_MODEL = "0" * 64
_CALL_SECONDS = 300.0
_NEVER = 1e9
KEPT_VERSIONS = 8
"""The newest, beside those that somebody learns in."""


@dataclass(frozen=True)
class Base:
    """
    What a worker remembers of a version that it pulled.

    Args:
        version: Which.
        digest: Of its content.
        ranks: ``k`` of both sides of each layer, by name.
        num_bytes: Of the payload that came.
        lease: Under which it was pulled; None where no coordinator gave one.
    """

    version: int
    digest: str
    ranks: tuple[Pair[int], ...]
    num_bytes: int
    lease: Lease | None = None


@dataclass(frozen=True)
class Pushed:
    """An answered push: the receipt, the wall time from the call to its answer, the bytes of its payload."""

    receipt: Receipt
    seconds: float
    num_bytes: int


@final
class Link:
    """
    A coordinator as a process of its own, on loopback, with a store of its own.

    Args:
        folder: An empty one, for its store and its log.
        scenario: How many factors it keeps, and how many workers it has to know.
        update: Any that is pushed: its layers are those of all.
        updates_per_merge: It merges as soon as so many wait, and not before.

    Raises:
        WorkerError: The coordinator did not start.
    """

    def __init__(
        self, folder: Path, scenario: Scenario, update: DrawnUpdate, updates_per_merge: int = 1
    ) -> None:
        shapes = {name: layer.shape for name, layer in update.factors.items()}
        self._fingerprint = Fingerprint(_BASE_MODEL, shapes)
        self._store = folder / "store"
        self._num_leases = 0
        self._idle: list[Lease] = []
        self._version_bytes: dict[int, int] = {}
        self._update_bytes: dict[object, int] = {}
        self._outside_seconds = 0.0
        port_file = folder / "port"
        command = share_dist_command(
            *("coordinator", "serve", "--listen", "127.0.0.1:0"),
            *("--store", self._store, "--port-file", port_file),
        )
        self._child = Child(
            "the coordinator",
            command,
            log=folder / "coordinator.log",
            environment=_environment(scenario, updates_per_merge),
        )
        try:
            address = f"127.0.0.1:{wait_for_file(port_file, self._child, seconds=120)}"
        except BaseException:
            self._child.stop()
            raise
        self._client = ShareClient(
            address, fingerprint=self._fingerprint, timeout_seconds=_CALL_SECONDS
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the coordinator, and wait for it."""
        self._client.close()
        self._child.stop()

    def pull(self, version: int) -> Base:
        """
        Pull a version whole, as a worker does that begins a lesson.

        A coordinator keeps the version that a lease was heard of last, and a simulated worker may begin the next lesson before
        its update is served: so each lesson has a lease of its own, until its update is pushed.
        """
        if not self._idle:
            self._idle.append(self._client.register(f"lesson-{self._num_leases:06d}"))
            self._num_leases += 1
        lease = self._client.lease = self._idle.pop()
        subspace = self._client.pull(version)
        assert subspace is not None, "nothing was held, so something came"
        if version not in self._version_bytes:
            self._version_bytes[version] = len(subspace_to_bytes(subspace))
        ranks = tuple(
            Pair(layer.a.num_factors, layer.b.num_factors) for layer in subspace.layers.values()
        )
        return Base(version, subspace.digest, ranks, self._version_bytes[version], lease)

    def be_heard(self, base: Base) -> None:
        """Send a heartbeat, as a worker does that comes back."""
        self._client.lease = base.lease
        self._client.heartbeat()

    def update_bytes(self, drawn: DrawnUpdate, base: Base) -> int:
        """Tell how long the payload of an update is; that of equal shapes is equally long."""
        key = drawn.recorded_as, base.ranks
        if key not in self._update_bytes:
            self._update_bytes[key] = sum(map(len, update_to_parts(_update(drawn, base, "any"))))
        return self._update_bytes[key]

    def push(self, task_id: str, drawn: DrawnUpdate, base: Base, wait: Wait) -> Pushed:
        """
        Push an update, and wait until it is durable or merged.

        Raises:
            WorkerError: It was not taken.
        """
        assert base.lease is not None, "it was pulled from this coordinator"
        update = _update(drawn, base, task_id)
        pieces = cut(*update_to_parts(update))
        self._client.worker_id, self._client.lease = base.lease.worker_id, base.lease
        began = time.perf_counter()
        receipt = self._client.push(update, wait=wait, pieces=pieces)
        seconds = time.perf_counter() - began
        if receipt.state not in {UpdateState.PENDING, UpdateState.MERGED}:
            raise WorkerError(
                f"the update {drawn.origin!r} of {task_id} is {receipt.state.value}: "
                f"{receipt.reason or 'no reason was given'}"
            )
        # version 0 is kept anyway: from now on this lease holds nothing
        self._client.pull(0, held_version=0)
        self._idle.append(base.lease)
        return Pushed(receipt, seconds, pieces.num_bytes)

    def newest(self) -> Subspace:
        """Look at the newest version, as no worker: it counts neither as bytes nor as processor time."""
        before = self._process_seconds()
        self._client.lease = None
        subspace = self._client.pull()
        assert subspace is not None, "nothing was held, so something came"
        self._outside_seconds += self._process_seconds() - before
        return subspace

    def with_tail(self) -> Subspace:
        """Get the newest version with all columns that the coordinator keeps, for a coordinator above it."""
        self._client.lease = None
        return Mirror(self._client).subspace

    def cpu_seconds(self) -> float:
        """Processor time that the coordinator has taken since its start; NaN where the system does not tell."""
        return self._process_seconds() - self._outside_seconds

    def stored_bytes(self) -> int:
        """Length of all files of its store now."""
        return sum(path.stat().st_size for path in self._store.rglob("*") if path.is_file())

    def _process_seconds(self) -> float:
        try:
            text = Path(f"/proc/{self._child.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return math.nan
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _environment(scenario: Scenario, updates_per_merge: int) -> dict[str, str]:
    """
    Say by the environment what the coordinator is told.

    Leases last: its clock is not the virtual one. Of versions it keeps the newest, and those that somebody learns in.
    """
    keys = {
        "num_factors": scenario.num_factors,
        "oversample": scenario.oversample,
        "min_updates": updates_per_merge,
        "max_updates": updates_per_merge,
        "max_pending": updates_per_merge + 1000,
        "max_wait_seconds": _NEVER,
        "lease_seconds": _NEVER,
        "max_registrations_per_hour": 10_000_000,
        "keep_versions": KEPT_VERSIONS,
        "log_level": "WARNING",
    }
    return {f"SHARE_DIST_{key.upper()}": str(value) for key, value in keys.items()}


def _update(drawn: DrawnUpdate, base: Base, task_id: str) -> TaskUpdate:
    """
    Say an adapter in the form of an update.

    All of it stands in temporary columns, none in coefficients: the merge forms the same factor, and no worker's
    bases need to be held for it.
    """
    layers = {
        name: LayerUpdate(*(
            SideUpdate(
                torch.zeros(ranks[side], factor.shape[1]),
                factor,
                torch.eye(factor.shape[1]),
            )
            for side, factor in layer
        ))
        for (name, layer), ranks in zip(sorted(drawn.factors.items()), base.ranks, strict=True)
    }  # fmt: skip
    return TaskUpdate(
        new_update_id(), task_id, base.version, layers, drawn.head, base_digest=base.digest
    )
