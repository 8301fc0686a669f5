"""Ports: what the loop needs of the world, so that it runs without gRPC and without Ray."""

from collections.abc import Iterator
from typing import Protocol

from share_dist.core.values import Fingerprint, Subspace, TaskUpdate
from share_dist.wire.records import (
    Lease,
    PulledTask,
    Receipt,
    TaskSummary,
    VersionEvent,
    Wait,
)


class VersionWatch(Protocol):
    """Versions as they come to be."""

    def __iter__(self) -> Iterator[VersionEvent]: ...

    def close(self) -> None:
        """End the iteration, also from another thread."""
        ...


class Coordinator(Protocol):
    """
    What a worker asks of a coordinator; ``share_dist.client.ShareClient`` is one.

    Attributes:
        timeout_seconds: How long a call may take; a worker for whose bytes that is too short gives more.
    """

    timeout_seconds: float

    def register(
        self, worker_id: str | None = None, fingerprint: Fingerprint | None = None
    ) -> Lease:
        """Take a lease."""
        ...

    def heartbeat(self) -> Lease:
        """Keep it."""
        ...

    def pull(self, version: int | None = None, held_version: int | None = None) -> Subspace | None:
        """Get a version; None when it is the one held."""
        ...

    def push(
        self, update: TaskUpdate, wait: Wait = "durable", timeout_seconds: float | None = None
    ) -> Receipt:
        """Send an update."""
        ...

    def watch(self, after_version: int | None = None, *, after_digest: str = "") -> VersionWatch:
        """Follow versions; without a number those after the current one."""
        ...

    def tasks(self) -> list[TaskSummary]:
        """List every task."""
        ...

    def pull_task(self, task_id: str, held: Subspace | None = None) -> PulledTask:
        """Get one task, in the newest version."""
        ...
