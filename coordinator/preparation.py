"""From pending updates to a version that can be committed: read, screened, merged, encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.candidate import Candidate, Stopwatch, candidate_of_merge
from coordinator.clock import Clock
from coordinator.config import SubspaceConfig
from coordinator.merging import merge_without_culprits
from coordinator.screening import SetAside, screen
from coordinator.store.base import Store, UpdateRecord
from coordinator.versions import Snapshot, VersionCache
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import StoreCorrupt, SubspaceError, VersionError, WireError
from share_dist.wire.records import UpdateState


@dataclass(frozen=True)
class Prepared:
    """
    What one step would bring about.

    Args:
        candidate: A version, if there is one to commit.
        set_aside: Update -> why it is not in the version, and what becomes of it.
    """

    candidate: Candidate | None = None
    set_aside: Mapping[str, SetAside] = field(default_factory=dict)


@dataclass(frozen=True)
class _Loaded:
    """What could be read: updates and their base versions, and why others never can be."""

    bases: Mapping[int, Subspace]
    updates: Sequence[TaskUpdate]
    unreadable: Mapping[str, str]


class Preparer:
    """
    Prepares merges, in a thread; changes nothing.

    Args:
        config: What to keep, and whom to set aside.
        store: Where updates come from.
        versions: Gives older versions for updates that were trained on them.
        clock: Times the merge.
    """

    def __init__(
        self, config: SubspaceConfig, store: Store, versions: VersionCache, clock: Clock
    ) -> None:
        self._config = config
        self._store = store
        self._versions = versions
        self._clock = clock

    def prepare(self, records: Sequence[UpdateRecord], current: Snapshot) -> Prepared:
        """
        Merge pending updates into the current version.

        Args:
            records: The updates.
            current: The current version.

        Raises:
            Exception: The merge failed, and no update is to blame.
        """
        stopwatch = Stopwatch(self._clock)
        loaded = self._load([record.update_id for record in records])
        consented = {record.update_id for record in records if record.is_consented}

        def attempt(updates: Sequence[TaskUpdate]) -> Prepared:
            screened = screen(updates, current, loaded.bases, consented, self._config)
            if screened.outcome is None:
                return Prepared(None, screened.set_aside)
            candidate = candidate_of_merge(screened.outcome, current, stopwatch)
            return Prepared(candidate, screened.set_aside)

        merged = merge_without_culprits(attempt, loaded.updates)
        found = merged.result or Prepared()
        tasks = {record.update_id: record.task_id for record in records}
        culprits = {
            update_id: SetAside(tasks[update_id], UpdateState.QUARANTINED, reason)
            for update_id, reason in {**loaded.unreadable, **merged.culprits}.items()
        }
        return Prepared(found.candidate, {**found.set_aside, **culprits})

    def _load(self, update_ids: Sequence[str]) -> _Loaded:
        """
        Read updates and the versions that they were trained on.

        Raises:
            StoreCorrupt: Nothing is left, as the version that an update needs is damaged: an
                operator can restore it, so the update stays pending.
        """
        bases: dict[int, Subspace] = {}
        updates: list[TaskUpdate] = []
        unreadable: dict[str, str] = {}
        damaged: StoreCorrupt | None = None
        for update_id in sorted(update_ids):
            try:
                update = self._store.load_update(update_id)
            except (StoreCorrupt, WireError, SubspaceError) as error:
                unreadable[update_id] = f"{type(error).__name__}: {error}"
                continue
            try:
                bases[update.base_version] = self._versions.subspace(update.base_version)
            except VersionError as error:
                unreadable[update_id] = f"{type(error).__name__}: {error}"
            except StoreCorrupt as error:
                damaged = error
            else:
                updates.append(update)
        if damaged and not updates and not unreadable:
            raise damaged
        return _Loaded(bases, updates, unreadable)
