"""
Which old versions may go: all but the newest, and but those that someone still needs.

Whoever is about to use an old version holds it first, and asks then whether it is there and
does not leave already. So a push never finds the version gone that it was let in with.

::

    versions 1..9, keep 3                     may go 1 2 3 4 5 6
    u1, trained on 2, is parked               may go 1 3 4 5 6
    a push trained on 5 is on its way         may go 1 3 4 6
    live worker w pulled 6 last               may go 1 3 4

The payload of an update goes with the last version that holds it: until then its head is
served, and a rollback may bring it back. That of one which waits stays, and that of one which was
rolled back as long as it can be replayed, which needs the version that it was trained on.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.leases import Leases
from coordinator.store.base import WAITING, FinishedUpdate, Store, UpdateRecord
from share_dist.errors import ConfigError, StoreCorrupt
from share_dist.wire.records import Compaction, UpdateState

_PAGE = 1000


class Holds:
    """Versions that calls in the air need, and those that are being let go of; see the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()
        self._leaving: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def hold(self, version: int) -> Iterator[None]:
        """
        Keep a version from being let go of.

        Whether it is there, and does not leave already, is to be asked afterwards.
        """
        with self._lock:
            self._counts[version] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[version] -= 1

    @property
    def held(self) -> frozenset[int]:
        """Versions that are needed right now."""
        with self._lock:
            return frozenset(+self._counts)

    def is_leaving(self, version: int) -> bool:
        """Whether a version is being let go of: it was chosen before anyone held it."""
        return version in self._leaving

    @contextlib.contextmanager
    def leaving(
        self, plan: "Callable[[Collection[int]], CompactionPlan]"
    ) -> Iterator["CompactionPlan"]:
        """
        Choose versions, and let them be gone from now on for whoever asks.

        Args:
            plan: Given the versions that are held, chooses those that may go.
        """
        with self._lock:
            chosen = plan(frozenset(+self._counts))
            self._leaving = frozenset(chosen.versions)
        try:
            yield chosen
        finally:
            self._leaving = frozenset()


@dataclass(frozen=True)
class CompactionPlan:
    """
    What compacting would do.

    Args:
        versions: Those that may go.
        kept: Versions beyond the newest that stay -> why.
    """

    versions: tuple[int, ...]
    kept: Mapping[int, str]


def plan_compaction(
    kept: Collection[int],
    current_version: int,
    keep_versions: int,
    needs: Iterable[tuple[int, str]],
) -> CompactionPlan:
    """
    Choose the versions that may go.

    Args:
        kept: Versions whose tensors are kept.
        current_version: The newest.
        keep_versions: Keep so many of the newest.
        needs: Version and the reason why it is needed.

    Examples:
        >>> plan_compaction({0, 1, 2, 3, 4}, 4, 2, [(1, "update u1 was trained on it")])
        CompactionPlan(versions=(2,), kept={1: 'update u1 was trained on it'})
    """
    old = {version for version in kept if 0 < version <= current_version - keep_versions}
    reasons: dict[int, str] = {}
    for version, reason in needs:
        if version in old:
            reasons.setdefault(version, reason)
    return CompactionPlan(tuple(sorted(old - reasons.keys())), dict(sorted(reasons.items())))


def plan_letting_go(
    finished: Iterable[FinishedUpdate], kept: Collection[int], held: Collection[str]
) -> tuple[FinishedUpdate, ...]:
    """
    Choose the updates whose payloads nothing can need any more.

    Args:
        finished: Updates that wait for nothing.
        kept: Versions whose tensors stay.
        held: Updates that one of these versions holds.

    Examples:
        >>> gone = FinishedUpdate("u1", UpdateState.DROPPED, 3, 100)
        >>> back = FinishedUpdate("u2", UpdateState.ROLLED_BACK, 3, 100)
        >>> [update.update_id for update in plan_letting_go([gone, back], {3, 4}, {"u3"})]
        ['u1']
    """

    def can_be_replayed(update: FinishedUpdate) -> bool:
        is_base_kept = update.base_version == 0 or update.base_version in kept
        return update.state is UpdateState.ROLLED_BACK and is_base_kept

    return tuple(
        update
        for update in finished
        if update.update_id not in held and not can_be_replayed(update)
    )


class Compactor:
    """
    Lets go of one lineage's old versions. Used by its writer alone, between two merges.

    Args:
        store: Where the versions are.
        broadcast: Knows the watchers.
        leases: Knows the live workers.
        holds: Versions that calls in the air need.
        clock: The time.
    """

    def __init__(
        self, store: Store, broadcast: Broadcast, leases: Leases, holds: Holds, clock: Clock
    ) -> None:
        self._store = store
        self._broadcast = broadcast
        self._leases = leases
        self._holds = holds
        self._clock = clock
        self._seen_version = 0
        self._kept: set[int] = set()
        self._held: dict[int, frozenset[str]] = {}

    def compact(self, keep_versions: int, *, by: str, dry_run: bool = False) -> Compaction:
        """
        Let go of every version that is neither among the newest nor needed, and of payloads of updates.

        Args:
            keep_versions: Keep so many of the newest.
            by: Who asks.
            dry_run: Only say what would go; ``freed_bytes`` then counts shared content too.

        Raises:
            ConfigError: ``keep_versions`` is below 1: the current version is always kept.
        """
        if keep_versions < 1:
            raise ConfigError(
                f"keep_versions is {keep_versions}: keep at least 1, the current version",
                key="keep_versions",
            )
        self._learn_of_new_versions()
        current_version = self._store.current_version

        def plan(held: Collection[int]) -> CompactionPlan:
            return plan_compaction(self._kept, current_version, keep_versions, self._needs(held))

        if dry_run:
            planned = plan(self._holds.held)
            updates = self._needless_updates(planned.versions)
            freed_bytes = self._bytes_of(planned.versions)
            freed_bytes += sum(update.update_bytes for update in updates)
        else:
            with self._holds.leaving(plan) as planned:
                updates = self._needless_updates(planned.versions)
                freed_bytes = self._let_go(planned.versions, updates, by)
        return Compaction(
            versions=planned.versions,
            freed_bytes=freed_bytes,
            first_version=self._store.first_version,
            kept=planned.kept,
            num_updates=len(updates),
        )

    def _let_go(
        self, versions: Collection[int], updates: Collection[FinishedUpdate], by: str
    ) -> int:
        if not versions and not updates:
            return 0
        update_ids = [update.update_id for update in updates]
        freed_bytes = self._store.compact(versions, update_ids, by=by)
        self._kept.difference_update(versions)
        return freed_bytes

    def _needless_updates(self, leaving: Collection[int]) -> tuple[FinishedUpdate, ...]:
        """Return the updates that nothing needs once some versions are gone."""
        kept = self._kept.difference(leaving)
        try:
            # remembered: a version's entries lie beside the coefficients of all its tasks
            self._held = {
                version: self._held.get(version) or self._store.held_updates(version)
                for version in kept
            }
        except StoreCorrupt:
            # whatever the damaged version holds must stay
            return ()
        held = frozenset().union(*self._held.values())
        return plan_letting_go(self._store.finished_updates(), kept, held)

    def _bytes_of(self, versions: Collection[int]) -> int:
        return sum(
            summary.stored_bytes
            for version in versions
            for summary in self._store.versions(version - 1, 1)
        )

    def _learn_of_new_versions(self) -> None:
        """Remember which versions are kept: to ask for all of them after each merge would be slow."""
        while summaries := self._store.versions(self._seen_version, _PAGE):
            self._kept.update(s.event.version for s in summaries if s.is_kept)
            self._seen_version = summaries[-1].event.version

    def _needs(self, held: Collection[int]) -> Iterator[tuple[int, str]]:
        for record in waiting_updates(self._store):
            yield record.base_version, f"{record.state.value} update {record.update_id} was trained on it"  # fmt: skip
        for version in held:
            yield version, "a worker's push or pull of it is on its way"
        now_seconds = self._clock.monotonic_seconds()
        for lease in self._leases.all(now_seconds):
            for base in (lease.base_version, lease.other_version):
                if base is not None and self._leases.is_live(lease, now_seconds):
                    yield base, f"live worker {lease.worker_id!r} trains on it"
        for after_version in set(self._broadcast.held_versions):
            for version in range(after_version + 1, self._store.current_version):
                yield version, f"a watcher that holds version {after_version} has not seen it yet"


def waiting_updates(store: Store) -> Iterator[UpdateRecord]:
    """Yield every update that may yet be merged, newest first."""
    before_sequence = 0
    while records := store.updates(WAITING, before_sequence=before_sequence, limit=_PAGE):
        yield from records
        before_sequence = records[-1].sequence


def newest_base_versions(store: Store) -> dict[str, int]:
    """Return what each worker's newest push was trained on, of those who pushed lately."""
    found: dict[str, int] = {}
    for record in store.updates(limit=_PAGE):
        found.setdefault(record.worker_id, record.base_version)
    return found
