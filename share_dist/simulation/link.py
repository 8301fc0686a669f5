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
from share_dist.wire.codec import subspace_to_bytes, update_to_bytes
from share_dist.wire.records import Lease, Receipt, UpdateState, Wait

_BASE_MODEL = "0" * 64
_CALL_SECONDS = 300.0
_NEVER = 1e9


@dataclass(frozen=True)
class Base:
    """
    What a worker remembers of a version that it pulled.

    Args:
        version: Which.
        digest: Of its content.
        ranks: ``k`` of both sides of each layer, by name.
        num_bytes: Of the payload that came.
    """

    version: int
    digest: str
    ranks: tuple[Pair[int], ...]
    num_bytes: int


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
        self._leases: dict[str, Lease] = {}
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

    def register(self, worker_id: str) -> None:
        """Give a worker a lease; one who was away takes a new one."""
        self._leases[worker_id] = self._client.register(worker_id)

    def pull(self, worker_id: str, version: int) -> Base:
        """Pull a version whole, as a worker does; the version stays kept."""
        self._client.lease = self._leases[worker_id]
        subspace = self._client.pull(version)
        assert subspace is not None, "nothing was held, so something came"
        if version not in self._version_bytes:
            self._version_bytes[version] = len(subspace_to_bytes(subspace))
        ranks = tuple(
            Pair(layer.a.num_factors, layer.b.num_factors) for layer in subspace.layers.values()
        )
        return Base(version, subspace.digest, ranks, self._version_bytes[version])

    def update_bytes(self, drawn: DrawnUpdate, base: Base) -> int:
        """Tell how long the payload of an update is; that of equal shapes is equally long."""
        key = drawn.recorded_as, base.ranks
        if key not in self._update_bytes:
            self._update_bytes[key] = len(update_to_bytes(_update(drawn, base, "any")))
        return self._update_bytes[key]

    def push(
        self, worker_id: str, task_id: str, drawn: DrawnUpdate, base: Base, wait: Wait
    ) -> Pushed:
        """
        Push an update, and wait until it is durable or merged.

        Raises:
            WorkerError: It was not taken.
        """
        update = _update(drawn, base, task_id)
        pieces = cut(update_to_bytes(update))
        self._client.worker_id, self._client.lease = worker_id, self._leases[worker_id]
        began = time.perf_counter()
        receipt = self._client.push(update, wait=wait, pieces=pieces)
        seconds = time.perf_counter() - began
        if receipt.state not in {UpdateState.PENDING, UpdateState.MERGED}:
            raise WorkerError(
                f"the update {drawn.origin!r} of {worker_id} is {receipt.state.value}: "
                f"{receipt.reason or 'no reason was given'}"
            )
        return Pushed(receipt, seconds, len(pieces.payload))

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

    Leases last and every version is kept: by its clock, which is not the virtual one, nobody can tell who still
    learns in which.
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
        "keep_versions": 0,
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
