"""The exchange: what a worker gets from its coordinator and gives to it, with the lease kept."""

from collections.abc import Callable, Sequence
from types import TracebackType

from typing_extensions import Self

from share_dist.core.values import Fingerprint, Subspace, TaskUpdate
from share_dist.errors import LeaseExpired, VersionCompacted, VersionInFuture
from share_dist.wire.records import Lease, PulledTask, Receipt, TaskSummary, UpdateState
from worker.follower import Follower
from worker.heartbeat import Heartbeat
from worker.ports import Coordinator
from worker.prefetch import Prefetch
from worker.progress import Emit, WorkerEvent


class Exchange:
    """
    A worker's registration with its coordinator, for as long as it is entered.

    Args:
        coordinator: The port.
        worker_id: Who registers.
        fingerprint: On which model.
        emit: Told of a lease that had to be taken anew.
    """

    def __init__(
        self, coordinator: Coordinator, worker_id: str, fingerprint: Fingerprint, emit: Emit
    ) -> None:
        self._coordinator = coordinator
        self._emit = emit
        lease = coordinator.register(worker_id, fingerprint)
        self._heartbeat = Heartbeat(coordinator, lease, self._on_renewed)
        self._prefetch = Prefetch(self.pull, lease.current_version)
        self._follower = Follower(coordinator, lease.current_version, self._prefetch.tell)

    def __enter__(self) -> Self:
        self._heartbeat.__enter__()
        self._prefetch.__enter__()
        self._follower.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._follower.__exit__(kind, error, traceback)
        self._prefetch.__exit__(kind, error, traceback)
        self._heartbeat.__exit__(kind, error, traceback)

    @property
    def newest_version(self) -> int:
        """The newest version that the coordinator has told of."""
        return self._follower.newest_version

    def check(self) -> None:
        """
        Raise if the lease is lost for good.

        Raises:
            LeaseExpired: Another worker of this name took over.
        """
        self._heartbeat.check()

    def pull(self) -> Subspace:
        """The newest version."""
        subspace = self._coordinator.pull()
        assert subspace is not None
        return subspace

    def newer(self, version: int) -> Subspace | None:
        """A version newer than this one, if one is at hand; never waits."""
        return self._prefetch.take(version)

    def pull_older(self, version: int, digest: str) -> Subspace | None:
        """
        An older version as the worker knew it, or None where it is no longer there.

        Args:
            version: Its number.
            digest: Of its content; empty: any content will do.
        """
        try:
            subspace = self._coordinator.pull(version)
        except (VersionCompacted, VersionInFuture):
            return None
        assert subspace is not None
        return subspace if digest in {"", subspace.digest} else None

    def push(self, update: TaskUpdate) -> Receipt:
        """
        Push; where the lease has ended, register again once.

        Raises:
            BaseVersionTooOld: The update's base version is no longer kept.
            VersionMismatch: It is known there with another content.
        """
        self.check()
        try:
            return self._coordinator.push(update)
        except LeaseExpired:
            self._on_renewed(self._coordinator.register())
            return self._coordinator.push(update)

    def wait_merged(self, update_id: str, seconds: float, should_stop: Callable[[], bool]) -> bool:
        """Wait for a version that has an update; False when none came in time."""
        # the follower knows versions since this worker registered, not those before
        if any(
            each.update_id == update_id and each.state is UpdateState.MERGED
            for each in self._coordinator.tasks()
        ):
            return True
        return self._follower.wait_for(update_id, seconds, should_stop)

    def merged_tasks(self, task_ids: set[str]) -> dict[str, TaskSummary]:
        """Those of these tasks that some version has taken in."""
        return {
            each.task_id: each
            for each in self._coordinator.tasks()
            if each.task_id in task_ids and each.state is UpdateState.MERGED
        }

    def pull_tasks(self, task_ids: Sequence[str], held: Subspace) -> dict[str, PulledTask]:
        """Pull tasks, all said in one version: once more where a merge came in between."""
        while True:
            pulled: dict[str, PulledTask] = {}
            for task_id in task_ids:
                pulled[task_id] = self._coordinator.pull_task(task_id, held=held)
                held = pulled[task_id].subspace
            if len({each.subspace.version for each in pulled.values()}) <= 1:
                return pulled

    def _on_renewed(self, lease: Lease) -> None:
        self._emit(WorkerEvent.LEASE_RENEWED, lease_epoch=lease.lease_epoch)
