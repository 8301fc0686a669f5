"""
The contract of a store: updates that wait, versions that never change.

A short history, and what the store holds after each step::

    bind(fingerprint)         version 0, nothing pending
    add_update(u1: cats)      version 0, pending u1
    add_update(u2: dogs)      version 0, pending u1 u2
    add_update(u1: cats)      the same record again; nothing changes
    add_update(u1: birds)     UpdateConflict: u1 is known with other content
    commit(version 1: u1 u2)  version 1, nothing pending; u1 and u2 are merged
    set_aside(u3, "...")      u3 is quarantined: kept, and never merged

When a call returns, what it did survives the end of the process. A call that
raises has done nothing. Every method may be called from any thread.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from share_dist.core.values import Fingerprint, Head, MergedTask, Subspace, TaskUpdate
from share_dist.errors import ShareError, UpdateConflict, VersionCompacted, VersionInFuture
from share_dist.wire.records import Receipt, TaskSummary, UpdateState, VersionEvent


@dataclass(frozen=True, slots=True)
class MergeMark:
    """
    How an update went into a version.

    Args:
        lag: Current version minus base version, at the merge.
        angle: Largest principal angle, in radians, between base version and the version before.
        truncation: What the merge cut away of the update: relative Frobenius norm.
    """

    lag: int = 0
    angle: float = 0.0
    truncation: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """What the store knows of one update, without its tensors."""

    sequence: int
    """Order of arrival."""
    update_id: str
    task_id: str
    worker_id: str
    base_version: int
    pushed_at: datetime
    content_digest: str
    """Digest of all that the worker said; the lease epoch is not part of it."""
    update_bytes: int
    head_bytes: int
    num_samples: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    head: Head = field(default_factory=Head)
    """Without tensors."""
    state: UpdateState = UpdateState.PENDING
    reason: str = ""
    version: int = 0
    mark: MergeMark = MergeMark()

    def receipt(self) -> Receipt:
        """What the worker is told."""
        return Receipt(
            update_id=self.update_id,
            state=self.state,
            version=self.version,
            lag=self.mark.lag,
            angle=self.mark.angle,
            reason=self.reason,
        )

    def require_same_content(self, content_digest: str) -> None:
        """
        Raise unless a push with this record's ``update_id`` says the same.

        Raises:
            UpdateConflict: It says something else.
        """
        if content_digest == self.content_digest:
            return
        raise UpdateConflict(
            f"update {self.update_id} is known, for task {self.task_id!r} with content "
            f"{self.content_digest[:12]}, and was pushed again with content {content_digest[:12]}: "
            "make a new update_id for new content",
            update_id=self.update_id,
        )


class Kept(NamedTuple):
    """What keeping an update came to."""

    record: UpdateRecord
    is_new: bool
    """False for a push that was kept before, perhaps while this one was on its way."""


@dataclass(frozen=True)
class VersionCommit:
    """
    Everything that one merge brings about, committed as a whole.

    Args:
        subspace: The new version, with the oversampled tail.
        tasks: Every merged task, in the bases of the new version.
        event: What watchers will be told.
        marks: Merged update -> how it went.
        report: The merge report, as JSON-able values.
    """

    subspace: Subspace
    tasks: Mapping[str, MergedTask]
    event: VersionEvent
    marks: Mapping[str, MergeMark]
    report: Mapping[str, object] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The new version."""
        return self.subspace.version


@dataclass(frozen=True)
class EncodedVersion:
    """
    A version as it is kept; made by ``store.format.encode_version``.

    Args:
        commit: What was encoded.
        subspace: Payload of the subspace, with its tail.
        tasks: Payload of all merged tasks.
        event: JSON.
        report: JSON.
    """

    commit: VersionCommit
    subspace: bytes
    tasks: bytes
    event: str
    report: str


class Store(abc.ABC):
    """What the coordinator needs of a store. See the module for a short history."""

    @abc.abstractmethod
    def fingerprint(self) -> Fingerprint | None:
        """What this store works on; None until it is bound."""

    @abc.abstractmethod
    def bind(self, fingerprint: Fingerprint) -> bool:
        """
        Make this the store's fingerprint if it has none.

        Returns:
            Whether this call bound the store.

        Raises:
            FingerprintMismatch: The store works on another one.
        """

    @abc.abstractmethod
    def next_epoch(self, worker_id: str) -> int:
        """Return a lease epoch that this worker never had: 1, 2, 3, ..."""

    @abc.abstractmethod
    def epochs(self) -> dict[str, int]:
        """Worker -> its newest lease epoch."""

    @abc.abstractmethod
    def add_update(self, update: TaskUpdate, *, worker_id: str, pushed_at: datetime) -> Kept:
        """
        Keep an admitted update as pending; the same push again returns what became of it.

        Raises:
            UpdateConflict: The ``update_id`` is known with other content.
            StoreFull: There is no room; nothing was kept.
            StoreUnavailable: The disk fails; nothing was kept.
        """

    @abc.abstractmethod
    def knows(self, update_id: str) -> bool:
        """Whether an update of this id was ever kept."""

    @abc.abstractmethod
    def repeat_of(self, update: TaskUpdate) -> UpdateRecord | None:
        """
        Return the record of the push that this one repeats, if it is known.

        Raises:
            UpdateConflict: The ``update_id`` is known with other content.
        """

    @abc.abstractmethod
    def update_record(self, update_id: str) -> UpdateRecord:
        """Return what became of a known update."""

    @abc.abstractmethod
    def load_update(self, update_id: str) -> TaskUpdate:
        """
        Return a known update with its tensors; its lease epoch is not kept.

        Raises:
            StoreCorrupt: What is on disk is not what was written.
        """

    @abc.abstractmethod
    def pending(self) -> tuple[UpdateRecord, ...]:
        """Updates that wait, in order of arrival."""

    @abc.abstractmethod
    def set_aside(self, update_id: str, reason: str) -> UpdateRecord:
        """Quarantine a pending update: it is kept, and never merged."""

    @abc.abstractmethod
    def num_updates(self, state: UpdateState) -> int:
        """How many updates are in a state."""

    @abc.abstractmethod
    def commit(self, version: EncodedVersion) -> None:
        """
        Make the next version, whole or not at all.

        Raises:
            StoreFull: There is no room; the current version stays.
            StoreUnavailable: The disk fails; the current version stays.
        """

    @property
    @abc.abstractmethod
    def current_version(self) -> int:
        """The newest version."""

    @property
    def first_version(self) -> int:
        """The oldest version that is kept; every one is."""
        return 0

    @abc.abstractmethod
    def subspace(self, version: int) -> Subspace:
        """
        Return a version with its oversampled tail; version 0 is empty.

        Raises:
            VersionInFuture: There is no such version yet.
            VersionCompacted: It is no longer kept.
            StoreCorrupt: What is on disk is not what was written.
        """

    @abc.abstractmethod
    def merged_tasks(self) -> dict[str, MergedTask]:
        """Every merged task, in the bases of the current version."""

    @abc.abstractmethod
    def merged_update_ids(self) -> dict[str, str]:
        """Merged task -> the update that the current version holds of it."""

    @abc.abstractmethod
    def events(self, after_version: int, limit: int) -> tuple[VersionEvent, ...]:
        """Return the oldest events after a version, at most ``limit``."""

    @abc.abstractmethod
    def report(self, version: int) -> dict[str, object]:
        """Return the merge report of a version."""

    @abc.abstractmethod
    def task_summary(self, update_id: str) -> TaskSummary:
        """Describe a task as this update of it made it."""

    @abc.abstractmethod
    def task_summaries(self) -> tuple[TaskSummary, ...]:
        """Describe every task, by name, by its merged update or else by its newest."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything; the store may be opened again."""

    def require_version(self, version: int) -> None:
        """
        Raise unless a version exists and is kept.

        Raises:
            VersionInFuture: There is no such version yet.
            VersionCompacted: It is no longer kept.
        """
        current, first = self.current_version, self.first_version
        error: ShareError
        if version > current:
            error = VersionInFuture(
                f"version {version} does not exist yet, the newest is {current}: pull without a "
                "version, or check the coordinator's address",
                version=version,
                current_version=current,
            )
        elif version < first:
            error = VersionCompacted(
                f"version {version} is no longer kept, the oldest is {first}: pull version {current}",
                version=version,
                first_version=first,
                current_version=current,
            )
        else:
            return
        raise error


def empty_subspace(fingerprint: Fingerprint | None) -> Subspace:
    """Return version 0: it has the fingerprint's layers, once there is a fingerprint."""
    if fingerprint is None:
        return Subspace({})
    return Subspace.empty(fingerprint.layers, fingerprint.metric)


def summarise(record: UpdateRecord, first_worker_id: str, cumulative_drift: float) -> TaskSummary:
    """Describe a task by one of its updates."""
    return TaskSummary(
        task_id=record.task_id,
        worker_id=first_worker_id,
        update_id=record.update_id,
        state=record.state,
        base_version=record.base_version,
        merged_version=record.version,
        lag=record.mark.lag,
        angle=record.mark.angle,
        truncation=record.mark.truncation,
        cumulative_drift=cumulative_drift,
        num_samples=record.num_samples,
        scores=record.scores,
        head=record.head,
        pushed_at=record.pushed_at,
        update_bytes=record.update_bytes,
        head_bytes=record.head_bytes,
    )


def drift_after(
    drift: Mapping[str, float], event: VersionEvent, replaced_task_ids: Sequence[str]
) -> dict[str, float]:
    """
    Add one merge's drift to each task's sum.

    A task that the merge replaced begins anew: what it was before is no longer served.

    Examples:
        >>> from datetime import datetime, timezone
        >>> now = datetime.now(timezone.utc)
        >>> event = VersionEvent(2, now, (), (), 1, 1, 0, 1, 0, drift={"cats": 0.5, "dogs": 0.25})
        >>> drift_after({"cats": 1.0, "dogs": 1.0}, event, ["dogs"])
        {'cats': 1.5, 'dogs': 0.0}
    """
    after = {
        task_id: drift.get(task_id, 0.0) + event.drift.get(task_id, 0.0)
        for task_id in sorted({*drift, *event.drift})
    }
    return after | dict.fromkeys(replaced_task_ids, 0.0)
