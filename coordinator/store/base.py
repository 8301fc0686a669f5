"""
The contract of a store: updates that wait, versions that never change, and who may do what.

A ``Catalog`` is everything that one coordinator keeps. It holds one ``Store`` for each
named subspace, the tokens, and the audit log. Only one process owns a catalog at a
time: it holds a lease with a fence, a number that grows by one with each owner. Every
write checks the fence in its own transaction, so an owner that hung and wakes
up after another took over gets ``StoreFenced`` and writes nothing.

A short history of a store, and what it holds after each step::

    bind(fingerprint)           version 0, nothing pending
    add_update(u1: cats)        version 0, pending u1
    add_update(u2: dogs)        version 0, pending u1 u2
    add_update(u1: cats)        the same record again; nothing changes
    add_update(u1: birds)       UpdateConflict: u1 is known with other content
    commit(version 1: u1 u2)    version 1, nothing pending; u1 and u2 are merged
    change_state(u3, ...)       u3 is quarantined, parked, pending again, or dropped
    commit(2: rollback to 0)    version 2 has the content of 0; u1 and u2 are rolled back
    compact([1], [u1])          the tensors of both are gone, their rows stay; 1 -> VersionCompacted
    refuse(u4: cats)            not kept, yet listed among the last that were refused

When a call returns, what it did survives the end of the process. A call that
raises has done nothing. Every method may be called from any thread. Every method that
changes something takes ``by``, the principal for whom it is done, and writes a line of the
audit log in the same transaction.
"""

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from share_dist.core.values import Fingerprint, Head, MergedTask, Subspace, TaskUpdate
from share_dist.errors import (
    NotPermitted,
    ShareError,
    UnknownTask,
    UnknownUpdate,
    UpdateConflict,
    VersionCompacted,
    VersionInFuture,
    VersionMismatch,
    WrongState,
)
from share_dist.wire.records import (
    AuditEntry,
    NewerUpdate,
    Receipt,
    TaskSummary,
    Token,
    UpdateState,
    VersionEvent,
    VersionKind,
    VersionSummary,
)
from share_dist.wire.tensors import Buffer

COORDINATOR = "coordinator"
"""Who did what nobody asked for: the principal of merges and of automatic compaction."""

WAITING = (UpdateState.PENDING, UpdateState.PARKED, UpdateState.QUARANTINED)
"""States of updates that may yet be merged, each exactly as trained on its base version."""

SET_ASIDE = (UpdateState.PARKED, UpdateState.QUARANTINED)
"""States of updates that wait for somebody to decide, or for room."""

FINISHED = (UpdateState.MERGED, UpdateState.ROLLED_BACK, UpdateState.DROPPED)
"""States of updates that wait for nothing."""

TRANSITIONS: Mapping[UpdateState, frozenset[UpdateState]] = {
    UpdateState.PENDING: frozenset(
        {UpdateState.QUARANTINED, UpdateState.PARKED, UpdateState.DROPPED}
    ),
    UpdateState.QUARANTINED: frozenset({UpdateState.PENDING, UpdateState.DROPPED}),
    UpdateState.PARKED: frozenset({UpdateState.PENDING, UpdateState.DROPPED}),
    UpdateState.ROLLED_BACK: frozenset({UpdateState.PENDING, UpdateState.DROPPED}),
}
"""What ``change_state`` may do. MERGED and ROLLED_BACK are reached by ``commit`` only."""


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
    owner: str
    """Whom the task belongs to: the principal who first pushed it."""
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
    is_consented: bool = False
    """An operator has let it through: what is suspicious about it is known."""
    let_go_at: int | None = None
    """The version that was current when a compaction let go of its tensors; None while they are kept."""

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


class UpdateSizes(NamedTuple):
    """How many updates, and the bytes of their payloads."""

    num_updates: int
    update_bytes: int


class Kept(NamedTuple):
    """What keeping an update came to."""

    record: UpdateRecord
    is_new: bool
    """False for a push that was kept before, perhaps while this one was on its way."""


@dataclass(frozen=True, slots=True)
class FinishedUpdate:
    """
    An update that is merged, rolled back or dropped, and whose tensors are kept.

    Args:
        update_id: Which.
        state: MERGED, ROLLED_BACK or DROPPED.
        base_version: What it was trained on.
        update_bytes: Of its payload.
    """

    update_id: str
    state: UpdateState
    base_version: int
    update_bytes: int


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """
    What a version knows of a task beside its coefficients.

    Args:
        update_id: The update that this version holds of it.
        cumulative_drift: Sum of its drifts since that update was merged.
    """

    update_id: str
    cumulative_drift: float = 0.0


@dataclass(frozen=True)
class VersionCommit:
    """
    Everything that one step of the lineage brings about, committed as a whole.

    The event says its kind. After a MERGE the updates of ``marks`` are MERGED. After a
    ROLLBACK every update in ``entries`` is MERGED, in this version if it was not before, and
    every update that was merged after the event's ``content_version`` and is not in ``entries``
    is ROLLED_BACK. After a REMOVAL every update of the event's ``task_ids`` is DROPPED, pending
    ones too.

    Args:
        subspace: The new version, with the oversampled tail.
        tasks: Every merged task, in the bases of the new version.
        entries: The same tasks -> where each comes from, and how far it has moved.
        event: What watchers will be told; its digests are set by ``encode_version``.
        marks: Merged update -> how it went; empty for a rollback or a removal.
        report: The merge report, as JSON-able values.
        drift: Task -> how far this version moved it; of every task, not only of those that
            the event tells of.
        rotation: Payload of the steps from the version before; empty when there are none.
    """

    subspace: Subspace
    tasks: Mapping[str, MergedTask]
    entries: Mapping[str, TaskEntry]
    event: VersionEvent
    marks: Mapping[str, MergeMark] = field(default_factory=dict)
    report: Mapping[str, object] = field(default_factory=dict)
    drift: Mapping[str, float] = field(default_factory=dict)
    rotation: bytes = b""

    @property
    def version(self) -> int:
        """The new version."""
        return self.subspace.version

    @property
    def audit_detail(self) -> str:
        """What an operator asked for, and why; empty for a merge, whose updates have lines of their own."""
        event = self.event
        if event.kind is VersionKind.MERGE:
            return ""
        is_rollback = event.kind is VersionKind.ROLLBACK
        what = f"content of version {event.content_version}" if is_rollback else f"without task {event.task_ids[0]!r}"  # fmt: skip
        reason = self.report.get("reason")
        return f"{what}: {reason}" if reason else what


@dataclass(frozen=True)
class EncodedVersion:
    """
    A version as it is kept; made by ``store.format.encode_version``.

    Args:
        commit: What was encoded; its event has both digests.
        subspace: Payload of the subspace, with its tail.
        tasks: Payload of all merged tasks and their entries.
        drift: Payload of the drift of every task.
        event: JSON.
        report: JSON.
    """

    commit: VersionCommit
    subspace: bytes
    tasks: bytes
    drift: bytes
    event: str
    report: str


@dataclass(frozen=True)
class KeptTasks:
    """Every task of one version: what the merge remembers of each, and where it comes from."""

    tasks: Mapping[str, MergedTask] = field(default_factory=dict)
    entries: Mapping[str, TaskEntry] = field(default_factory=dict)


class ReadyFile(Protocol):
    """A file that has all of a payload."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def sync(self) -> bool:
        """Put it on disk; whether that worked."""


@dataclass(frozen=True, slots=True)
class DescribedUpdate:
    """
    An update as it is kept; made by ``store.format.describe_update``.

    Args:
        record: Its record; the sequence is given by the store.
        metadata: Everything small, as JSON.
        payload: Its tensors, as they came.
        payload_digest: SHA-256 (hex) of the payload.
        file: Has the payload on disk already; a store may take it from its place.
    """

    record: UpdateRecord
    metadata: str
    payload: Buffer
    payload_digest: str
    file: ReadyFile | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that ``verify`` found broken: where, and what to do."""

    subject: str
    problem: str
    remedy: str
    is_harmless: bool = False
    """Nothing is lost: it is told only so that nobody wonders."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as it is kept: never its secret, only the SHA-256 (hex) of it."""

    token: Token
    secret_digest: str


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """
    What a catalog has done since it was opened, and its disk was made to keep.

    Args:
        commits: Transactions.
        writes: What was written in them: of many writes at once, one commit keeps many.
        blobs: Payloads in files of their own.
    """

    commits: int = 0
    writes: int = 0
    blobs: int = 0


class Catalog(abc.ABC):
    """Everything that one coordinator keeps. See the module for a short history."""

    @property
    @abc.abstractmethod
    def store_id(self) -> str:
        """Made at random when the catalog was made; a restored backup keeps it."""

    @property
    @abc.abstractmethod
    def counts(self) -> StoreCounts:
        """What this catalog has done since it was opened."""

    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all subspaces, sorted."""

    @abc.abstractmethod
    def store(self, name: str) -> "Store":
        """
        Return the store of a subspace; always the same object for the same name.

        Raises:
            UnknownSubspace: There is none of this name.
        """

    @abc.abstractmethod
    def create(self, name: str, *, by: str) -> "Store":
        """Return the store of a subspace, made if there is none."""

    @abc.abstractmethod
    def renew(self, seen_seconds: float = 0.0) -> None:
        """
        Keep owning this catalog; called every few seconds while it is open.

        Args:
            seen_seconds: The latest time that its owner has seen, seconds since 1970;
                ``seen_seconds`` never goes back.

        Raises:
            StoreFenced: Another process owns it now.
        """

    @abc.abstractmethod
    def seen_seconds(self) -> float:
        """Return the latest time that an owner of this catalog has told of; 0 if none has."""

    @abc.abstractmethod
    def add_token(self, record: TokenRecord, *, by: str) -> None:
        """Keep a new token."""

    @abc.abstractmethod
    def tokens(self) -> tuple[Token, ...]:
        """Every token ever made, oldest first."""

    @abc.abstractmethod
    def find_token(self, secret_digest: str) -> Token | None:
        """Return the token with this digest of its secret, also a revoked or expired one."""

    @abc.abstractmethod
    def revoke_token(self, token_id: str, *, at: datetime, by: str) -> Token:
        """
        End a token; a second time changes nothing.

        Raises:
            UnknownToken: There is none of this id.
        """

    @abc.abstractmethod
    def note(self, entries: Sequence[AuditEntry]) -> None:
        """Write lines into the audit log; their sequence is given by the catalog."""

    @abc.abstractmethod
    def audit(
        self, after_sequence: int, limit: int, *, before_sequence: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """
        Return lines of the audit log, oldest first.

        Args:
            after_sequence: Only those after this one.
            limit: At most so many: the oldest, or the newest where ``before_sequence`` is given.
            before_sequence: Only those before this one; 0 for the end of the log.
        """

    @abc.abstractmethod
    def verify(self) -> Iterator[Finding]:
        """Walk over everything that is kept, and say what is broken."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything; the catalog may be opened again at once, also by another process."""


class Store(abc.ABC):
    """What the coordinator needs of one subspace's store. See the module for a short history."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name of the subspace."""

    @property
    @abc.abstractmethod
    def store_id(self) -> str:
        """That of the catalog."""

    @abc.abstractmethod
    def fingerprint(self) -> Fingerprint | None:
        """What this store works on; None until it is bound."""

    @abc.abstractmethod
    def bind(self, fingerprint: Fingerprint, *, by: str) -> bool:
        """
        Make this the store's fingerprint if it has none.

        Returns:
            Whether this call bound the store.

        Raises:
            FingerprintMismatch: The store works on another one.
        """

    # --- workers ----------------------------------------------------------------------------

    @abc.abstractmethod
    def next_epoch(self, worker_id: str, *, by: str) -> int:
        """
        Return a lease epoch that this worker never had: 1, 2, 3, ...

        Raises:
            NotPermitted: The ``worker_id`` belongs to another principal, who first registered it.
        """

    @abc.abstractmethod
    def epochs(self) -> dict[str, int]:
        """Worker -> its newest lease epoch."""

    @abc.abstractmethod
    def worker_owner(self, worker_id: str) -> str | None:
        """Whom a worker belongs to: who first registered it; None if nobody has."""

    # --- updates ----------------------------------------------------------------------------

    @abc.abstractmethod
    def add_update(self, described: DescribedUpdate, *, by: str) -> Kept:
        """
        Keep an admitted update in the state of its record; the same push again returns what
        became of it.

        Raises:
            UpdateConflict: The ``update_id`` is known with other content.
            NotPermitted: The task belongs to another owner than the record's.
            StoreFull: There is no room; nothing was kept.
            StoreUnavailable: The disk fails; nothing was kept.
        """

    @abc.abstractmethod
    def owner(self, task_id: str) -> str | None:
        """Whom a task belongs to; None if it was never pushed."""

    @abc.abstractmethod
    def find_update(self, update_id: str) -> UpdateRecord | None:
        """Return what became of an update, if it was ever kept."""

    @abc.abstractmethod
    def update_record(self, update_id: str) -> UpdateRecord:
        """
        Return what became of an update.

        Raises:
            UnknownUpdate: It was never kept.
        """

    @abc.abstractmethod
    def load_update(self, update_id: str) -> TaskUpdate:
        """
        Return an update with its tensors; its lease epoch is not kept.

        Raises:
            UnknownUpdate: It was never kept.
            WrongState: A compaction let go of its tensors.
            StoreCorrupt: What is on disk is not what was written.
        """

    @abc.abstractmethod
    def pending(self) -> tuple[UpdateRecord, ...]:
        """Updates that wait, in order of arrival."""

    @abc.abstractmethod
    def updates(
        self, states: Collection[UpdateState] = (), *, before_sequence: int = 0, limit: int = 100
    ) -> tuple[UpdateRecord, ...]:
        """
        Return updates, newest first.

        Args:
            states: Only those in one of these states; empty for all.
            before_sequence: Only those that came before; 0 for the newest.
            limit: At most so many.
        """

    @abc.abstractmethod
    def change_state(
        self, update_id: str, state: UpdateState, reason: str, *, by: str, consents: bool = False
    ) -> UpdateRecord:
        """
        Set an update aside, let it wait again, or give it up, as ``TRANSITIONS`` allows.

        Args:
            update_id: Which.
            state: Its new state.
            reason: Why.
            by: Who asks.
            consents: Whether who asks lets it through; what was consented to once stays so.

        Raises:
            UnknownUpdate: It was never kept.
            WrongState: Its state does not allow it, or its tensors are gone that it would need.
        """

    @abc.abstractmethod
    def num_updates(self, state: UpdateState) -> int:
        """How many updates are in a state."""

    @abc.abstractmethod
    def sizes_of(self, states: Collection[UpdateState], owner: str = "") -> UpdateSizes:
        """Count updates in some states, and their bytes; those of one owner, or all."""

    @abc.abstractmethod
    def refuse(self, record: UpdateRecord, limit: int) -> None:
        """
        Note a push that was refused, and forget the oldest beyond ``limit``.

        Args:
            record: Made by ``refused_record``; the sequence is given by the store. Its id may be
                that of an update that is kept, and of several that were refused.
            limit: How many are remembered, of this subspace.
        """

    @abc.abstractmethod
    def refused(self, *, before_sequence: int = 0, limit: int = 100) -> tuple[UpdateRecord, ...]:
        """
        Return pushes that were refused lately, newest first.

        Args:
            before_sequence: Only those that came before; 0 for the newest. They are counted
                together with the updates.
            limit: At most so many.
        """

    # --- versions ---------------------------------------------------------------------------

    @abc.abstractmethod
    def commit(self, version: EncodedVersion, *, by: str) -> None:
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
    @abc.abstractmethod
    def first_version(self) -> int:
        """The oldest version from which every later one is kept."""

    @abc.abstractmethod
    def digest(self, version: int) -> str:
        """
        Return a version's digest, also of a compacted one.

        Raises:
            VersionInFuture: There is no such version yet.
        """

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
    def tasks(self, version: int) -> KeptTasks:
        """Return every task of a version; raises what ``subspace`` raises."""

    @abc.abstractmethod
    def rotation(self, version: int) -> bytes:
        """Return the payload of the steps that led to a version; empty when there are none."""

    @abc.abstractmethod
    def drift(self, version: int) -> dict[str, float]:
        """
        Return how far a version moved each task; also of a compacted one.

        Raises:
            VersionInFuture: There is no such version yet.
        """

    @abc.abstractmethod
    def events(self, after_version: int, limit: int) -> tuple[VersionEvent, ...]:
        """Return the oldest events after a version, at most ``limit``; also of compacted ones."""

    @abc.abstractmethod
    def versions(self, after_version: int, limit: int) -> tuple[VersionSummary, ...]:
        """Return the oldest versions after one, at most ``limit``; also compacted ones."""

    @abc.abstractmethod
    def report(self, version: int) -> dict[str, object]:
        """Return the merge report of a version; also of a compacted one."""

    @abc.abstractmethod
    def is_kept(self, version: int) -> bool:
        """Whether a version's tensors are kept; version 0 always is."""

    @abc.abstractmethod
    def held_updates(self, version: int) -> frozenset[str]:
        """Return the updates that a version holds, one of each task; raises what ``subspace`` raises."""

    @abc.abstractmethod
    def finished_updates(self) -> tuple[FinishedUpdate, ...]:
        """Return every update whose tensors are kept although it waits for nothing."""

    @abc.abstractmethod
    def compact(
        self, versions: Collection[int], update_ids: Collection[str] = (), *, by: str
    ) -> int:
        """
        Let go of the tensors of versions and of updates; their rows stay.

        Args:
            versions: The current one, 0 and those that are gone are skipped.
            update_ids: Those that wait, and those that are gone, are skipped.
            by: Who asks.

        Returns:
            Freed bytes; content that another version or update shares stays.
        """

    # --- tasks ------------------------------------------------------------------------------

    @abc.abstractmethod
    def task_summary(self, task_id: str) -> TaskSummary:
        """
        Describe a task by the update that the current version holds of it, else by its newest.

        Raises:
            UnknownTask: It was never pushed. The message names nothing near: the caller does.
        """

    @abc.abstractmethod
    def task_summaries(self, after_task_id: str = "", limit: int = 0) -> tuple[TaskSummary, ...]:
        """
        Describe tasks, by name.

        Args:
            after_task_id: Only those whose name comes after this one.
            limit: At most so many; 0 for all.
        """

    def require_version(self, version: int) -> None:
        """
        Raise unless a version exists and is kept.

        Raises:
            VersionInFuture: There is no such version yet.
            VersionCompacted: It is no longer kept.
        """
        current = self.current_version
        error: ShareError
        if version > current:
            error = VersionInFuture(
                f"version {version} does not exist yet, the newest is {current}: pull without a "
                "version, or check the coordinator's address",
                version=version,
                current_version=current,
            )
        elif not self.is_kept(version):
            first = self.first_version
            error = VersionCompacted(
                f"version {version} is no longer kept, those from {first} on are: pull version {current}",
                version=version,
                first_version=first,
                current_version=current,
            )
        else:
            return
        raise error

    def require_exists(self, version: int) -> None:
        """
        Raise unless a version exists, kept or compacted.

        Raises:
            VersionInFuture: There is no such version yet.
        """
        if version > self.current_version:
            self.require_version(version)

    def require_digest(self, version: int, digest: str) -> None:
        """
        Raise unless a version is the one that a caller means.

        Args:
            version: Its number.
            digest: Its digest as the caller knows it; empty for one who does not say.

        Raises:
            VersionInFuture: There is no such version yet.
            VersionMismatch: It is known here with another content.
        """
        expected = self.digest(version)
        if digest and digest != expected:
            raise VersionMismatch(
                f"version {version} of subspace {self.name!r} is {expected[:12]} here and "
                f"{digest[:12]} there: what you hold came from another store, or from before a "
                "restore; pull the current version and train from there",
                version=version,
                expected=expected,
                found=digest,
            )


def unknown_update(update_id: str) -> UnknownUpdate:
    """Make the error for an update that was never kept."""
    return UnknownUpdate(
        f"update {update_id!r} was never kept: list the updates to see those that were",
        update_id=update_id,
    )


def unknown_task(task_id: str) -> UnknownTask:
    """Make the error for a task that was never pushed."""
    return UnknownTask(f"task {task_id!r} was never pushed", task_id=task_id)


def not_owner(what: str, owner: str, principal: str) -> NotPermitted:
    """Make the error for what belongs to another principal."""
    return NotPermitted(
        f"{what} belongs to {owner!r}, who was first to use it, and not to {principal!r}: choose "
        "another name, or let the owner do it",
        principal=principal,
        owner=owner,
    )


def refused_record(
    *,
    update_id: str,
    task_id: str,
    worker_id: str,
    owner: str,
    base_version: int,
    pushed_at: datetime,
    content_digest: str,
    update_bytes: int,
    reason: str,
) -> UpdateRecord:
    """Make what is remembered of a push that was refused: what its sender said of it, and why."""
    return UpdateRecord(
        sequence=0,
        update_id=update_id,
        task_id=task_id,
        worker_id=worker_id,
        owner=owner,
        base_version=base_version,
        pushed_at=pushed_at,
        content_digest=content_digest,
        update_bytes=update_bytes,
        head_bytes=0,
        state=UpdateState.REFUSED,
        reason=reason,
    )


def told_of_compaction(versions: Sequence[int], num_updates: int) -> tuple[str, str]:
    """Say in a line of the audit log, as subject and detail, what a compaction let go of."""
    subject = f"{versions[0]}-{versions[-1]}" if versions else ""
    return subject, f"payloads of {num_updates} updates" if num_updates else ""


def let_go(record: UpdateRecord) -> WrongState:
    """Make the error for what needs tensors of an update that are gone."""
    return WrongState(
        f"update {record.update_id} is {record.state.value}, and its payload was let go of by a "
        f"compaction at version {record.let_go_at}: it can be neither measured nor merged any more; "
        "let its worker push it again under a new update_id",
        subject=record.update_id,
        state=record.state.value,
    )


def require_transition(record: UpdateRecord, state: UpdateState) -> None:
    """
    Raise unless an update can become what is asked for.

    Raises:
        WrongState: Its state does not allow it, or its tensors are gone that it would need.
    """
    if state not in TRANSITIONS.get(record.state, frozenset()):
        raise wrong_state(record, state)
    if state in WAITING and record.let_go_at is not None:
        raise let_go(record)


def wrong_state(record: UpdateRecord, state: UpdateState) -> WrongState:
    """Make the error for a change of state that is not possible."""
    possible = sorted(target.value for target in TRANSITIONS.get(record.state, ()))
    return WrongState(
        f"update {record.update_id} is {record.state.value} and cannot become {state.value}: "
        f"possible from here is {' or '.join(possible) or 'nothing'}",
        subject=record.update_id,
        state=record.state.value,
    )


def empty_subspace(fingerprint: Fingerprint | None) -> Subspace:
    """Return version 0: it has the fingerprint's layers, once there is a fingerprint."""
    if fingerprint is None:
        return Subspace({})
    return Subspace.empty(fingerprint.layers, fingerprint.metric)


def summarise(
    record: UpdateRecord, cumulative_drift: float, newest: NewerUpdate | None = None
) -> TaskSummary:
    """Describe a task by one of its updates; ``newest`` is told where it is another."""
    is_newer = newest is not None and newest.update_id != record.update_id
    return TaskSummary(
        task_id=record.task_id,
        worker_id=record.worker_id,
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
        owner=record.owner,
        reason=record.reason,
        newer=newest if is_newer else None,
    )


def entries_after(
    entries: Mapping[str, TaskEntry], drift: Mapping[str, float], merged: Mapping[str, str]
) -> dict[str, TaskEntry]:
    """
    Add one version's drift to each task's sum, and take in what it merged.

    A task that the merge replaced begins anew: what it was before is no longer served.

    Args:
        entries: Of the version before, without tasks that were removed.
        drift: Task -> how far the new version moved it.
        merged: Task -> the update that was merged of it.

    Examples:
        >>> before = {"cats": TaskEntry("u1", 1.0), "dogs": TaskEntry("u2", 1.0)}
        >>> after = entries_after(before, {"cats": 0.5}, {"dogs": "u3"})
        >>> after["cats"], after["dogs"]
        (TaskEntry(update_id='u1', cumulative_drift=1.5), TaskEntry(update_id='u3', cumulative_drift=0.0))
    """
    moved = {
        task_id: TaskEntry(entry.update_id, entry.cumulative_drift + drift.get(task_id, 0.0))
        for task_id, entry in entries.items()
    }
    return dict(sorted((moved | {t: TaskEntry(u) for t, u in merged.items()}).items()))
