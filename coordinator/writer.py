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
from dataclasses import dataclass
from functools import partial

from structlog.typing import FilteringBoundLogger

from coordinator import faults
from coordinator.broadcast import Broadcast, Watcher
from coordinator.candidate import Candidate, make_candidate
from coordinator.clock import Clock
from coordinator.config import SubspaceConfig
from coordinator.merging import merge_without_culprits
from coordinator.metrics import SubspaceMetrics
from coordinator.policy import Decision, PendingUpdate, decide
from coordinator.store.base import COORDINATOR, Store, UpdateRecord, VersionCommit
from coordinator.versions import Snapshot, VersionCache
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import StoreCorrupt, SubspaceError, WireError
from share_dist.telemetry import Event
from share_dist.wire.records import UpdateState

_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""How long to wait after a merge that failed as a whole; the last one is repeated."""


@dataclass(frozen=True)
class _Merged:
    """What one step brought about: perhaps a version, perhaps updates set aside."""

    set_aside: tuple[UpdateRecord, ...]
    candidate: Candidate | None = None


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
        config: SubspaceConfig,
        store: Store,
        versions: VersionCache,
        broadcast: Broadcast,
        metrics: SubspaceMetrics,
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
        self._failed: Sequence[str] = ()
        self._waiting_since: dict[str, float] = {}

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
            decision = decide(
                self._clock.monotonic_seconds(), self._for_policy(pending), self._config.policy
            )
            if not decision.merge:
                return decision.look_again_seconds
            merged = await asyncio.to_thread(self._merge, self._choose(decision.which))
        except Exception as error:  # noqa: BLE001 - the writer outlives any one merge: it tries again
            return self._postpone(error)
        self._failures = 0
        slow = self._publish(merged)
        self._tell(merged, slow, decision)
        return 0.0

    def _for_policy(self, pending: Sequence[UpdateRecord]) -> list[PendingUpdate]:
        """Say since when each update waits, on a clock that nobody can set back."""
        now_seconds, wall_seconds = self._clock.monotonic_seconds(), self._clock.unix_seconds()
        self._waiting_since = {
            record.update_id: self._waiting_since.get(
                record.update_id,
                now_seconds - max(0.0, wall_seconds - record.pushed_at.timestamp()),
            )
            for record in pending
        }
        return [
            PendingUpdate(record.update_id, record.task_id, self._waiting_since[record.update_id])
            for record in pending
        ]

    def _choose(self, which: Sequence[str]) -> Sequence[str]:
        """
        Take all at first; after each failure fewer, and others first.

        So whatever it is about one update or about their number that makes a merge fail, it
        cannot hold up the others for ever. New pushes are a reason to try all again.
        """
        if which != self._failed:
            self._failed, self._failures = which, 0
        start = self._failures % len(which)
        return sorted((*which[start:], *which[:start])[: max(1, len(which) >> self._failures)])

    def _postpone(self, error: Exception) -> float:
        seconds = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._failures += 1
        self._metrics.postponed_merges.inc()
        self._release_waiters()  # some may have been set aside before it failed
        with contextlib.suppress(Exception):  # a log that fails must not end the merging
            self._log.error(
                Event.MERGE_POSTPONED.value,
                error=type(error).__name__,
                reason=str(error),
                retry_after_seconds=seconds,
                exc_info=error,
            )
        return seconds

    # --- in a thread ------------------------------------------------------------------------

    def _merge(self, which: Sequence[str]) -> _Merged:
        bases, updates, unreadable = self._load(which)
        attempt = merge_without_culprits(
            partial(
                make_candidate,
                current=self._current(),
                bases=bases,
                config=self._config,
                clock=self._clock,
            ),
            updates,
        )
        culprits = {**unreadable, **attempt.culprits}
        set_aside = tuple(
            self._store.change_state(update_id, UpdateState.QUARANTINED, reason, by=COORDINATOR)
            for update_id, reason in sorted(culprits.items())
        )
        candidate = attempt.result
        if candidate is not None:
            self._store.commit(candidate.version, by=COORDINATOR)
            self._versions.remember(candidate.commit.subspace, candidate.served)
        return _Merged(set_aside, candidate)

    def _current(self) -> Snapshot:
        # an empty subspace gets its layers when the store is bound, after this writer was made
        return self.snapshot if self.snapshot.version else Snapshot.load(self._store)

    def _load(
        self, update_ids: Sequence[str]
    ) -> tuple[dict[int, Subspace], list[TaskUpdate], dict[str, str]]:
        """
        Read updates and the versions that they were trained on.

        Returns:
            The versions, the updates that can be merged, and why others never can.

        Raises:
            StoreCorrupt: Nothing is left, as the version that an update needs is damaged: an
                operator can restore it, so the update stays pending.
        """
        bases: dict[int, Subspace] = {}
        updates: list[TaskUpdate] = []
        unreadable: dict[str, str] = {}
        damaged: StoreCorrupt | None = None
        for update_id in update_ids:
            try:
                update = self._store.load_update(update_id)
            except (StoreCorrupt, WireError, SubspaceError) as error:
                unreadable[update_id] = f"{type(error).__name__}: {error}"
                continue
            try:
                bases[update.base_version] = self._versions.subspace(update.base_version)
            except StoreCorrupt as error:
                damaged = error
            else:
                updates.append(update)
        if damaged and not updates and not unreadable:
            raise damaged
        return bases, updates, unreadable

    # --- afterwards -------------------------------------------------------------------------

    def _publish(self, merged: _Merged) -> Sequence[Watcher]:
        """Let the new version be seen; return the watchers that did not keep up."""
        faults.reach("before-broadcast")
        slow: Sequence[Watcher] = ()
        if merged.candidate:
            self.snapshot = merged.candidate.snapshot
            slow = self._broadcast.publish(merged.candidate.commit.event)
        self._release_waiters()
        return slow

    def _release_waiters(self) -> None:
        """Let everyone who waits for an update look again."""
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _tell(self, merged: _Merged, slow: Sequence[Watcher], decision: Decision) -> None:
        """Count and log; the version stands, whatever becomes of the words about it."""
        try:
            self._tell_of_set_aside(merged.set_aside)
            if merged.candidate:
                self._count(merged.candidate.commit)
                self._tell_of_version(merged.candidate.commit, decision)
            for watcher in slow:
                self._log.info(Event.WATCHER_SLOW.value, after_version=watcher.held_version)
        except Exception as error:  # noqa: BLE001 - pushes are acknowledged on, so merging must go on
            with contextlib.suppress(Exception):
                self._log.error(Event.REPORT_FAILED.value, exc_info=error)

    def _tell_of_set_aside(self, set_aside: Sequence[UpdateRecord]) -> None:
        for record in set_aside:
            self._metrics.quarantined_updates.inc()
            self._log.warning(
                Event.UPDATE_QUARANTINED.value,
                update_id=record.update_id,
                task_id=record.task_id,
                reason=record.reason,
            )

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

    def _tell_of_version(self, commit: VersionCommit, decision: Decision) -> None:
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
