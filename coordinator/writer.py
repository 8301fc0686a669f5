"""
The one writer: merges what is pending, commits, and only then tells anyone.

::

    pending u1 u2          decide -> merge u1 u2
    merge in a thread      pushes go on being admitted: pending u1 u2 u3
    commit version 1       u1 and u2 are merged, durably
    publish, release       watchers hear of version 1, who waited for u1 or u2 gets a receipt
    pending u3             decide -> merge u3
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from structlog.typing import FilteringBoundLogger

from coordinator import faults
from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.config import CoordinatorConfig
from coordinator.merging import merge_without_culprits
from coordinator.metrics import Metrics
from coordinator.policy import Decision, PendingUpdate, decide
from coordinator.store.base import MergeMark, Store, UpdateRecord, VersionCommit
from coordinator.versions import Snapshot, VersionCache, encode_served
from share_dist.core.merge import merge
from share_dist.core.outcome import MergeOutcome
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import StoreCorrupt
from share_dist.telemetry import Event
from share_dist.wire.records import UpdateState, VersionEvent

_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""How long to wait after a merge that failed as a whole; the last one is repeated."""


@dataclass(frozen=True)
class _Merged:
    """What one step brought about: perhaps a version, perhaps updates set aside."""

    set_aside: tuple[UpdateRecord, ...]
    commit: VersionCommit | None = None
    snapshot: Snapshot | None = None


class MergeWriter:
    """
    Merges until it is stopped.

    Args:
        config: When to merge and what to keep.
        store: Where updates come from and versions go.
        versions: Gives older versions for updates that were trained on them.
        broadcast: Told of each version once it is on disk.
        metrics: Counted in.
        log: Written to.
        clock: The time.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        store: Store,
        versions: VersionCache,
        broadcast: Broadcast,
        metrics: Metrics,
        log: FilteringBoundLogger,
        clock: Clock,
    ) -> None:
        self.snapshot = Snapshot.load(store)
        self._config = config
        self._store = store
        self._versions = versions
        self._broadcast = broadcast
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()
        self._is_stopping = False
        self._is_stopped = False
        self._failures = 0

    # --- asked by handlers ------------------------------------------------------------------

    def notify(self) -> None:
        """Say that something is pending."""
        self._wake.set()

    async def settled(self, update_id: str) -> UpdateRecord:
        """Wait until an update is merged or set aside, or until this writer stops."""
        while True:
            # taken before the store is read: a merge between the two must not be missed
            turn = self._turn
            record = await asyncio.to_thread(self._store.update_record, update_id)
            is_settled = record.state is not UpdateState.PENDING
            if self._is_stopped or (is_settled and record.version <= self.snapshot.version):
                return record
            await turn.wait()

    # --- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Merge until ``stop`` is called; the merge in hand is finished first."""
        self._metrics.version.set(self.snapshot.version)
        self._metrics.num_tasks.set(len(self.snapshot.tasks))
        try:
            while not self._is_stopping:
                self._wake.clear()
                pause_seconds = await self._step()
                if pause_seconds != 0.0:
                    await self._sleep(pause_seconds)
        finally:
            self._is_stopped = True
            self._turn.set()

    def stop(self) -> None:
        """End ``run`` after the merge in hand; it lets go of everyone who waits."""
        self._is_stopping = True
        self._wake.set()

    async def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _step(self) -> float | None:
        """Do what is due; return the seconds until there may be more, None if a push must come."""
        try:
            pending = await asyncio.to_thread(self._store.pending)
            self._metrics.num_pending.set(len(pending))
            decision = decide(self._clock.unix_seconds(), _for_policy(pending), self._config.policy)
            if not decision.merge:
                return decision.look_again_seconds
            merged = await asyncio.to_thread(self._merge, decision)
        except Exception as error:  # noqa: BLE001 - the writer outlives any one merge: it tries again
            return self._postpone(error)
        self._failures = 0
        self._announce(merged, decision)
        return 0.0

    def _postpone(self, error: Exception) -> float:
        seconds = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._failures += 1
        self._metrics.postponed_merges.inc()
        self._log.error(
            Event.MERGE_POSTPONED.value,
            error=type(error).__name__,
            reason=str(error),
            retry_after_seconds=seconds,
            exc_info=error,
        )
        return seconds

    # --- in a thread ------------------------------------------------------------------------

    def _merge(self, decision: Decision) -> _Merged:
        started = self._clock.monotonic_seconds()
        current = self._current()
        bases, updates, unreadable = self._load(decision.which)
        attempt = merge_without_culprits(
            partial(
                _merge_into,
                current,
                bases=bases,
                num_factors=self._config.num_factors,
                energy=self._config.energy,
                oversample=self._config.oversample,
            ),
            updates,
        )
        culprits = {**unreadable, **attempt.culprits}
        set_aside = tuple(self._store.set_aside(*culprit) for culprit in sorted(culprits.items()))
        if attempt.outcome is None:
            return _Merged(set_aside)
        payload = encode_served(attempt.outcome.subspace)
        commit = self._describe(attempt.outcome, len(payload), started)
        self._store.commit(commit)
        self._versions.remember(attempt.outcome.subspace, payload)
        return _Merged(set_aside, commit, _next_snapshot(current, attempt.outcome))

    def _current(self) -> Snapshot:
        # an empty subspace gets its layers when the store is bound, after this writer was made
        return self.snapshot if self.snapshot.version else Snapshot.load(self._store)

    def _load(
        self, update_ids: Sequence[str]
    ) -> tuple[dict[int, Subspace], list[TaskUpdate], dict[str, str]]:
        bases: dict[int, Subspace] = {}
        updates: list[TaskUpdate] = []
        unreadable: dict[str, str] = {}
        for update_id in update_ids:
            loaded = self._load_one(update_id)
            if isinstance(loaded, StoreCorrupt):
                unreadable[update_id] = f"StoreCorrupt: {loaded}"
            else:
                update, bases[loaded[0].base_version] = loaded
                updates.append(update)
        return bases, updates, unreadable

    def _load_one(self, update_id: str) -> tuple[TaskUpdate, Subspace] | StoreCorrupt:
        try:
            update = self._store.load_update(update_id)
            return update, self._versions.subspace(update.base_version)
        except StoreCorrupt as error:
            return error

    def _describe(
        self, outcome: MergeOutcome, subspace_bytes: int, started: float
    ) -> VersionCommit:
        report = outcome.report
        event = VersionEvent(
            version=outcome.subspace.version,
            merged_at=self._clock.now(),
            update_ids=report.update_ids,
            task_ids=report.task_ids,
            lowest_energy_kept=report.lowest_energy_kept,
            mean_energy_kept=report.mean_energy_kept,
            angle=report.angle,
            num_factors=report.num_factors,
            subspace_bytes=subspace_bytes,
            drift=dict(report.drift),
            merge_seconds=self._clock.monotonic_seconds() - started,
        )
        marks = {
            update_id: MergeMark(
                report.lag[update_id], report.base_angle[update_id], report.truncation[update_id]
            )
            for update_id in report.update_ids
        }
        return VersionCommit(outcome.subspace, outcome.tasks, event, marks, report.to_dict())

    # --- afterwards -------------------------------------------------------------------------

    def _announce(self, merged: _Merged, decision: Decision) -> None:
        faults.reach("before-broadcast")
        for record in merged.set_aside:
            self._metrics.quarantined_updates.inc()
            self._log.warning(
                Event.UPDATE_QUARANTINED.value,
                update_id=record.update_id,
                task_id=record.task_id,
                reason=record.reason,
            )
        if merged.commit and merged.snapshot:
            self.snapshot = merged.snapshot
            for watcher in self._broadcast.publish(merged.commit.event):
                self._log.info(Event.WATCHER_SLOW.value, after_version=watcher.held_version)
            self._count(merged.commit)
            self._tell(merged.commit, decision)
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _count(self, commit: VersionCommit) -> None:
        event = commit.event
        self._metrics.version.set(commit.version)
        self._metrics.num_tasks.set(len(commit.tasks))
        self._metrics.num_factors.set(event.num_factors)
        self._metrics.energy_kept.set(event.lowest_energy_kept)
        self._metrics.merge_seconds.observe(event.merge_seconds)
        self._metrics.merged_updates.inc(len(commit.marks))
        for mark in commit.marks.values():
            self._metrics.lag.observe(mark.lag)

    def _tell(self, commit: VersionCommit, decision: Decision) -> None:
        event = commit.event
        for update_id, task_id in zip(event.update_ids, event.task_ids, strict=True):
            mark = commit.marks[update_id]
            self._log.info(
                Event.UPDATE_MERGED.value,
                update_id=update_id,
                task_id=task_id,
                version=commit.version,
                lag=mark.lag,
                angle=mark.angle,
                truncation=mark.truncation,
            )
        self._log.info(
            Event.VERSION_COMMITTED.value,
            version=commit.version,
            update_ids=event.update_ids,
            mean_energy_kept=event.mean_energy_kept,
            merge_seconds=event.merge_seconds,
            reason=decision.reason,
        )


def _merge_into(
    current: Snapshot,
    updates: Sequence[TaskUpdate],
    *,
    bases: dict[int, Subspace],
    num_factors: int | None,
    energy: float | None,
    oversample: int,
) -> MergeOutcome:
    return merge(
        current.subspace,
        current.tasks,
        updates,
        num_factors,
        energy,
        oversample=oversample,
        bases=bases,
    )


def _next_snapshot(current: Snapshot, outcome: MergeOutcome) -> Snapshot:
    merged = dict(zip(outcome.report.task_ids, outcome.report.update_ids, strict=True))
    return replace(
        current,
        subspace=outcome.subspace,
        tasks=outcome.tasks,
        update_ids={**current.update_ids, **merged},
    )


def _for_policy(pending: Sequence[UpdateRecord]) -> list[PendingUpdate]:
    return [
        PendingUpdate(record.update_id, record.task_id, record.pushed_at.timestamp())
        for record in pending
    ]
