"""
The one writer of a lineage: merges what is pending, commits, and only then tells anyone.

What an operator asks for is done between two merges, so nothing else ever
changes the lineage, or the state of an update, while a merge is in hand.

::

    pending u1 u2          decide -> merge u1 u2
    merge in a thread      pushes go on being admitted: pending u1 u2 u3; a rollback is asked for
    commit version 1       u1 and u2 are merged, durably
    publish, release       watchers hear of version 1, who waited for u1 or u2 gets a receipt
    rollback to 0          version 2 is committed and published, its caller hears of it
    pending u3             decide -> merge u3, exactly as it was trained on version 0
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from structlog.typing import FilteringBoundLogger

from coordinator import faults
from coordinator.broadcast import Broadcast, Watcher
from coordinator.candidate import Candidate
from coordinator.chronicle import Chronicle
from coordinator.clock import Clock
from coordinator.compaction import Compactor
from coordinator.config import SubspaceConfig
from coordinator.metrics import SubspaceMetrics
from coordinator.policy import PendingUpdate, decide
from coordinator.preparation import Prepared, Preparer
from coordinator.store.base import COORDINATOR, Store, UpdateRecord
from coordinator.versions import Snapshot, VersionCache
from share_dist.errors import Overloaded
from share_dist.wire.records import Compaction, UpdateState, VersionEvent, VersionKind

ResultT = TypeVar("ResultT")

_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""How long to wait after a merge that failed as a whole; the last one is repeated."""

_STOPPING_RETRY_SECONDS = 2.0

_PAGE = 1000

_MAX_REASON = 1000
"""Characters of an error that are told."""


@dataclass(frozen=True, slots=True)
class MergeFailure:
    """Why the last attempt to merge failed, in a word and whole, and since when all of them have."""

    kind: str
    reason: str
    since: datetime


@dataclass(frozen=True)
class _Job:
    """Something to be done in a thread between two merges, and who waits for it."""

    work: Callable[[], Any]
    done: "asyncio.Future[Any]"
    candidate_of: Callable[[Any], Candidate | None]
    reason: str


class MergeWriter:
    """
    Merges until it is stopped.

    Args:
        config: When to merge and what to keep.
        store: Where updates come from and versions go.
        versions: Gives older versions for updates that were trained on them.
        broadcast: Told of each version once it is on disk.
        compactor: Lets go of old versions.
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
        compactor: Compactor,
        metrics: SubspaceMetrics,
        log: FilteringBoundLogger,
        clock: Clock,
    ) -> None:
        self.snapshot = Snapshot.load(store)
        self.failure: MergeFailure | None = None
        self._config = config
        self._store = store
        self._versions = versions
        self._broadcast = broadcast
        self._compactor = compactor
        self._chronicle = Chronicle(metrics, log)
        self._preparer = Preparer(config, store, versions, clock)
        self._clock = clock
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()
        self._is_stopping = False
        self._is_stopped = False
        self._failures = 0
        self._failed: Sequence[str] = ()
        self._waiting_since: dict[str, float] = {}
        # at the start too: the configuration may have changed
        self._is_replay_due = True
        self._is_compaction_due = True

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
            if self._is_stopped or record.state is not UpdateState.PENDING:
                await self.reached(record.version)
                return record
            await turn.wait()

    async def reached(self, version: int) -> bool:
        """
        Wait until a version, or a later one, is what everyone is told; or until this writer stops.

        Returns:
            Whether it is.
        """
        while self.snapshot.version < version and not self._is_stopped:
            await self._turn.wait()
        return self.snapshot.version >= version

    async def commit(
        self, make: Callable[[Snapshot], Candidate], *, by: str, reason: str
    ) -> Candidate:
        """
        Make the next version by other means than a merge, and tell everyone.

        Args:
            make: Makes it from the current version, in a thread; raises if that cannot be.
            by: Who asks.
            reason: A sentence for the log.

        Raises:
            Overloaded: The coordinator is stopping.
        """

        def work() -> Candidate:
            candidate = make(self._current())
            self._keep(candidate, by)
            return candidate

        return await self._do(work, lambda candidate: candidate, reason)

    async def between_merges(self, work: Callable[[], ResultT]) -> ResultT:
        """
        Do something in a thread while no merge is in hand.

        Raises:
            Overloaded: The coordinator is stopping.
        """
        return await self._do(work, lambda _: None, "")

    def tell_of_compaction(self, compaction: Compaction) -> None:
        """Log what a compaction let go of."""
        self._chronicle.tell_of_compaction(compaction)

    async def _do(
        self,
        work: Callable[[], ResultT],
        candidate_of: Callable[[ResultT], Candidate | None],
        reason: str,
    ) -> ResultT:
        if self._is_stopping:
            raise _stopping()
        done: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(work, done, candidate_of, reason))
        self._wake.set()
        return await done

    # --- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Merge until ``stop`` is called; the merge in hand is finished first."""
        try:
            while not self._is_stopping:
                self._wake.clear()
                await self._do_jobs()
                pause_seconds = await self._step()
                if pause_seconds != 0.0:
                    await self._sleep(pause_seconds)
        finally:
            self._is_stopping = self._is_stopped = True
            self._refuse_jobs()
            self._turn.set()

    def stop(self) -> None:
        """End ``run`` after the merge in hand; it lets go of everyone who waits."""
        self._is_stopping = True
        self._wake.set()

    async def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _do_jobs(self) -> None:
        while self._jobs and not self._is_stopping:
            job = self._jobs.popleft()
            if not job.done.cancelled():
                await self._do_job(job)

    async def _do_job(self, job: _Job) -> None:
        try:
            await self._catch_up()
            result = await asyncio.to_thread(job.work)
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and merging goes on
            if not job.done.done():
                job.done.set_exception(error)
            return
        candidate = job.candidate_of(result)
        slow = self._publish(candidate)
        self._chronicle.tell(Prepared(candidate), slow, job.reason)
        if not job.done.done():
            job.done.set_result(result)

    def _refuse_jobs(self) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            if not job.done.done():
                job.done.set_exception(_stopping())

    async def _step(self) -> float | None:
        """Do what is due; return the seconds until there may be more, None if a push must come."""
        await self._tidy()
        try:
            await self._catch_up()
            pending = await asyncio.to_thread(self._store.pending)
            decision = decide(
                self._clock.monotonic_seconds(), self._for_policy(pending), self._config.policy
            )
            if not decision.merge:
                self.failure = None if not pending else self.failure
                return decision.look_again_seconds
            chosen = {*self._choose(decision.which)}
            merged = await asyncio.to_thread(
                self._merge, [record for record in pending if record.update_id in chosen]
            )
        except Exception as error:  # noqa: BLE001 - the writer outlives any one merge: it tries again
            return self._postpone(error)
        self._failures, self.failure = 0, None
        slow = self._publish(merged.candidate)
        self._chronicle.tell(merged, slow, decision.reason)
        return 0.0

    async def _tidy(self) -> None:
        """Do what an earlier step left to be done; what fails is left until the next version."""
        is_replay_due, self._is_replay_due = self._is_replay_due, False
        is_compaction_due, self._is_compaction_due = self._is_compaction_due, False
        try:
            if is_replay_due:
                await asyncio.to_thread(self._replay_parked)
            if is_compaction_due and self._config.keep_versions:
                compaction = await asyncio.to_thread(
                    self._compactor.compact, self._config.keep_versions, by=COORDINATOR
                )
                self.tell_of_compaction(compaction)
        except Exception as error:  # noqa: BLE001 - merging must go on without it
            self._is_replay_due |= is_replay_due
            self._chronicle.tell_of_failure(error)

    async def _catch_up(self) -> None:
        """Publish what was committed although the commit seemed to fail."""
        if await asyncio.to_thread(lambda: self._store.current_version) == self.snapshot.version:
            return
        missed = await asyncio.to_thread(self._store.events, self.snapshot.version, _PAGE)
        self.snapshot = await asyncio.to_thread(Snapshot.load, self._store)
        for event in missed:
            self._broadcast.publish(event)
            self._let_be_tidied(event)
        self._wake.set()  # no merge may follow, and what is due now is not to wait for one
        self._release_waiters()

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
        return (*which[start:], *which[:start])[: max(1, len(which) >> self._failures)]

    def _postpone(self, error: Exception) -> float:
        seconds = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._failures += 1
        since = self.failure.since if self.failure else self._clock.now()
        kind = type(error).__name__
        self.failure = MergeFailure(kind, f"{kind}: {error}"[:_MAX_REASON], since)
        self._release_waiters()  # some may have been set aside before it failed
        self._chronicle.tell_of_postponement(error, seconds)
        return seconds

    # --- in a thread ------------------------------------------------------------------------

    def _replay_parked(self) -> None:
        """Let what was parked be merged, if it fits now; what it replaces may have come meanwhile."""
        before_sequence = 0
        while parked := self._store.updates(
            {UpdateState.PARKED}, before_sequence=before_sequence, limit=_PAGE
        ):
            for record in parked:
                if not self._is_superseded(record):
                    self._store.change_state(
                        record.update_id, UpdateState.PENDING, "", by=COORDINATOR
                    )
            before_sequence = parked[-1].sequence

    def _is_superseded(self, record: UpdateRecord) -> bool:
        entry = self.snapshot.entries.get(record.task_id)
        if entry is None:
            return False
        return self._store.update_record(entry.update_id).sequence > record.sequence

    def _merge(self, records: Sequence[UpdateRecord]) -> Prepared:
        prepared = self._preparer.prepare(records, self._current())
        for update_id, aside in sorted(prepared.set_aside.items()):
            self._store.change_state(update_id, aside.state, aside.reason, by=COORDINATOR)
        if prepared.candidate is not None:
            self._keep(prepared.candidate, COORDINATOR)
        return prepared

    def _keep(self, candidate: Candidate, by: str) -> None:
        self._store.commit(candidate.version, by=by)
        self._versions.remember(candidate.commit.subspace, candidate.served)

    def _current(self) -> Snapshot:
        # an empty subspace gets its layers when the store is bound, after this writer was made
        return self.snapshot if self.snapshot.version else Snapshot.load(self._store)

    # --- afterwards -------------------------------------------------------------------------

    def _publish(self, candidate: Candidate | None) -> Sequence[Watcher]:
        """Let a new version be seen; return the watchers that did not keep up."""
        faults.reach("before-broadcast")
        slow: Sequence[Watcher] = ()
        if candidate:
            self.snapshot = candidate.snapshot
            slow = self._broadcast.publish(candidate.commit.event)
            self._let_be_tidied(candidate.commit.event)
        self._release_waiters()
        return slow

    def _let_be_tidied(self, event: VersionEvent) -> None:
        self._is_compaction_due = True
        self._is_replay_due |= event.kind is not VersionKind.MERGE

    def _release_waiters(self) -> None:
        """Let everyone who waits for an update or a version look again."""
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()


def _stopping() -> Overloaded:
    return Overloaded(
        f"the coordinator is stopping: ask again in {_STOPPING_RETRY_SECONDS:g} s, when another "
        "may serve",
        retry_after_seconds=_STOPPING_RETRY_SECONDS,
    )
