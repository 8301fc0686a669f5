"""Counts and logs what a writer did; what was done stands, whatever becomes of the words about it."""

import contextlib
from collections.abc import Iterator, Sequence

from structlog.typing import FilteringBoundLogger

from coordinator.broadcast import Watcher
from coordinator.metrics import SubspaceMetrics
from coordinator.preparation import Prepared
from coordinator.store.base import VersionCommit
from share_dist.telemetry import Event
from share_dist.wire.records import Compaction, UpdateState

_EVENTS = {
    UpdateState.QUARANTINED: Event.UPDATE_QUARANTINED,
    UpdateState.PARKED: Event.UPDATE_PARKED,
}


class Chronicle:
    """
    The metrics and the log of one lineage's writer. Its methods never raise.

    Args:
        metrics: Counted in.
        log: Written to.
    """

    def __init__(self, metrics: SubspaceMetrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def tell(self, prepared: Prepared, slow: Sequence[Watcher], reason: str) -> None:
        """
        Tell of one step.

        Args:
            prepared: The version that it made, and what it set aside.
            slow: Watchers that did not keep up.
            reason: Why it was made now.
        """
        with self._unfailing():
            self._tell_of_set_aside(prepared)
            if prepared.candidate:
                self._count(prepared.candidate.commit)
                self._tell_of_version(prepared.candidate.commit, reason)
            for watcher in slow:
                self._log.info(Event.WATCHER_SLOW.value, after_version=watcher.held_version)

    def tell_of_postponement(self, error: Exception, retry_after_seconds: float) -> None:
        """Tell of a step that failed as a whole and will be tried again."""
        self._metrics.postponed_merges.inc()
        with self._unfailing():
            self._log.error(
                Event.MERGE_POSTPONED.value,
                error=type(error).__name__,
                reason=str(error),
                retry_after_seconds=retry_after_seconds,
                exc_info=error,
            )

    def tell_of_failure(self, error: Exception, event: Event = Event.TIDYING_FAILED) -> None:
        """Tell of something beside the merging that failed."""
        with contextlib.suppress(Exception):
            self._log.error(event.value, exc_info=error)

    def tell_of_compaction(self, compaction: Compaction) -> None:
        """Tell which versions, and of how many updates the payloads, were let go of, if any were."""
        if not compaction.versions and not compaction.num_updates:
            return
        with self._unfailing():
            self._log.info(
                Event.VERSIONS_COMPACTED.value,
                versions=compaction.versions,
                num_updates=compaction.num_updates,
                freed_bytes=compaction.freed_bytes,
                kept=dict(compaction.kept),
            )

    @contextlib.contextmanager
    def _unfailing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - pushes are acknowledged on, so merging must go on
            self.tell_of_failure(error, Event.REPORT_FAILED)

    def _tell_of_set_aside(self, prepared: Prepared) -> None:
        for update_id, aside in sorted(prepared.set_aside.items()):
            self._metrics.set_aside_updates(aside.state.value).inc()
            self._log.warning(
                _EVENTS[aside.state].value,
                update_id=update_id,
                task_id=aside.task_id,
                reason=aside.reason,
            )

    def _count(self, commit: VersionCommit) -> None:
        event = commit.event
        self._metrics.merge_seconds.observe(event.merge_seconds)
        self._metrics.merged_updates.inc(len(commit.marks))
        for mark in commit.marks.values():
            self._metrics.lag.observe(mark.lag)

    def _tell_of_version(self, commit: VersionCommit, reason: str) -> None:
        event = commit.event
        tasks = dict(zip(event.update_ids, event.task_ids, strict=False))
        for update_id, mark in commit.marks.items():
            self._log.info(
                Event.UPDATE_MERGED.value,
                update_id=update_id,
                task_id=tasks[update_id],
                version=commit.version,
                lag=mark.lag,
                angle=mark.angle,
                truncation=mark.truncation,
            )
        self._log.info(
            Event.VERSION_COMMITTED.value,
            version=commit.version,
            kind=event.kind.value,
            update_ids=event.update_ids,
            task_ids=event.task_ids,
            mean_energy_kept=event.mean_energy_kept,
            merge_seconds=event.merge_seconds,
            reason=reason,
        )
