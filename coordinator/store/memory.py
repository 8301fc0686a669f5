"""The catalog that forgets at exit: the reference that the durable one is tested against."""

import json
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from typing_extensions import override

from coordinator.store.base import (
    FINISHED,
    Catalog,
    DescribedUpdate,
    EncodedVersion,
    Finding,
    FinishedUpdate,
    Kept,
    KeptTasks,
    MergeMark,
    Store,
    StoreCounts,
    TokenRecord,
    UpdateRecord,
    UpdateSizes,
    VersionCommit,
    empty_subspace,
    let_go,
    not_owner,
    require_transition,
    summarise,
    told_of_compaction,
    unknown_task,
    unknown_update,
)
from coordinator.store.format import origin_digest
from share_dist.core.values import Fingerprint, Subspace, TaskUpdate
from share_dist.errors import UnknownSubspace, UnknownToken
from share_dist.wire import codec
from share_dist.wire.records import (
    AuditEntry,
    NewerUpdate,
    TaskSummary,
    Token,
    UpdateState,
    VersionEvent,
    VersionKind,
    VersionSummary,
)


class MemoryCatalog(Catalog):
    """Keeps everything in dictionaries under one lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._store_id = uuid.uuid4().hex
        self._stores: dict[str, MemoryStore] = {}
        self._tokens: dict[str, TokenRecord] = {}
        self._audit: list[AuditEntry] = []
        self._seen_seconds = 0.0

    @property
    @override
    def store_id(self) -> str:
        return self._store_id

    @property
    @override
    def counts(self) -> StoreCounts:
        """Nothing ever reaches a disk."""
        return StoreCounts()

    @override
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._stores))

    @override
    def store(self, name: str) -> Store:
        if name not in self._stores:
            raise UnknownSubspace(f"there is no subspace {name!r}", subspace=name)
        return self._stores[name]

    @override
    def create(self, name: str, *, by: str) -> Store:
        with self._lock:
            if name not in self._stores:
                self._stores[name] = MemoryStore(self, name)
                self.write(by, "subspace_created", subspace=name)
            return self._stores[name]

    @override
    def renew(self, seen_seconds: float = 0.0) -> None:
        """Nobody else can own what is in this process; only the time is remembered."""
        self._seen_seconds = max(self._seen_seconds, seen_seconds)

    @override
    def seen_seconds(self) -> float:
        return self._seen_seconds

    @override
    def add_token(self, record: TokenRecord, *, by: str) -> None:
        with self._lock:
            self._tokens[record.token.token_id] = record
            self.write(by, "token_created", subject=record.token.token_id)

    @override
    def tokens(self) -> tuple[Token, ...]:
        return tuple(record.token for record in self._tokens.values())

    @override
    def find_token(self, secret_digest: str) -> Token | None:
        for record in self._tokens.values():
            if record.secret_digest == secret_digest:
                return record.token
        return None

    @override
    def revoke_token(self, token_id: str, *, at: datetime, by: str) -> Token:
        with self._lock:
            if token_id not in self._tokens:
                raise UnknownToken(f"there is no token {token_id}", token_id=token_id)
            record = self._tokens[token_id]
            if record.token.revoked_at is None:
                record = replace(record, token=replace(record.token, revoked_at=at))
                self._tokens[token_id] = record
                self.write(by, "token_revoked", subject=token_id)
            return record.token

    @override
    def note(self, entries: Sequence[AuditEntry]) -> None:
        with self._lock:
            for entry in entries:
                self._audit.append(replace(entry, sequence=len(self._audit) + 1))

    @override
    def audit(
        self, after_sequence: int, limit: int, *, before_sequence: int | None = None
    ) -> tuple[AuditEntry, ...]:
        if before_sequence is None:
            return tuple(self._audit[after_sequence:][:limit])
        end = before_sequence - 1 if before_sequence else len(self._audit)
        return tuple(self._audit[after_sequence:end][-limit:])

    @override
    def verify(self) -> Iterator[Finding]:
        return iter(())

    @override
    def close(self) -> None:
        """Nothing is held that would need letting go."""

    def write(self, by: str, action: str, **fields: str) -> None:
        """Write a line into the audit log."""
        self.note([AuditEntry(0, datetime.now(timezone.utc), by, action, **fields)])


@dataclass
class _KeptUpdate:
    record: UpdateRecord
    update: TaskUpdate
    payload: bytes


class MemoryStore(Store):
    """One subspace of a ``MemoryCatalog``; made by it."""

    def __init__(self, catalog: MemoryCatalog, name: str) -> None:
        self._catalog = catalog
        self._name = name
        self._lock = threading.RLock()
        self._fingerprint: Fingerprint | None = None
        self._epochs: dict[str, int] = {}
        self._worker_owners: dict[str, str] = {}
        self._updates: dict[str, _KeptUpdate] = {}
        self._refused: list[UpdateRecord] = []
        self._versions: list[EncodedVersion] = []
        self._compacted: set[int] = set()

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def store_id(self) -> str:
        return self._catalog.store_id

    @override
    def fingerprint(self) -> Fingerprint | None:
        return self._fingerprint

    @override
    def bind(self, fingerprint: Fingerprint, *, by: str) -> bool:
        with self._lock:
            if self._fingerprint is not None:
                self._fingerprint.require(fingerprint)
                return False
            self._fingerprint = fingerprint
            self._write(by, "subspace_bound", digest=fingerprint.digest)
            return True

    # --- workers ----------------------------------------------------------------------------

    @override
    def next_epoch(self, worker_id: str, *, by: str) -> int:
        with self._lock:
            owner = self._worker_owners.setdefault(worker_id, by)
            if owner != by:
                raise not_owner(f"worker {worker_id!r}", owner, by)
            self._epochs[worker_id] = self._epochs.get(worker_id, 0) + 1
            self._write(by, "worker_registered", subject=worker_id)
            return self._epochs[worker_id]

    @override
    def epochs(self) -> dict[str, int]:
        return dict(self._epochs)

    @override
    def worker_owner(self, worker_id: str) -> str | None:
        return self._worker_owners.get(worker_id)

    # --- updates ----------------------------------------------------------------------------

    @override
    def add_update(self, described: DescribedUpdate, *, by: str) -> Kept:
        record = described.record
        with self._lock:
            known = self.find_update(record.update_id)
            if known is not None:
                known.require_same_content(record.content_digest)
                return Kept(known, is_new=False)
            owner = self.owner(record.task_id)
            if owner not in {None, record.owner}:
                raise not_owner(f"task {record.task_id!r}", str(owner), record.owner)
            record = replace(record, sequence=self._next_sequence())
            payload = bytes(described.payload)
            update = codec.update_from_record(json.loads(described.metadata), payload)
            self._updates[record.update_id] = _KeptUpdate(record, update, payload)
            action = f"update_{'admitted' if record.state is UpdateState.PENDING else record.state.value}"
            self._write(by, action, subject=record.update_id, digest=record.content_digest)
            return Kept(record, is_new=True)

    def _next_sequence(self) -> int:
        known = [*self._records(), *self._refused]
        return max((record.sequence for record in known), default=0) + 1

    @override
    def owner(self, task_id: str) -> str | None:
        for kept in self._updates.values():
            if kept.record.task_id == task_id:
                return kept.record.owner
        return None

    @override
    def find_update(self, update_id: str) -> UpdateRecord | None:
        kept = self._updates.get(update_id)
        return kept.record if kept else None

    @override
    def update_record(self, update_id: str) -> UpdateRecord:
        record = self.find_update(update_id)
        if record is None:
            raise unknown_update(update_id)
        return record

    @override
    def load_update(self, update_id: str) -> TaskUpdate:
        record = self.update_record(update_id)
        if record.let_go_at is not None:
            raise let_go(record)
        return self._updates[update_id].update

    @override
    def pending(self) -> tuple[UpdateRecord, ...]:
        with self._lock:
            return tuple(r for r in self._records() if r.state is UpdateState.PENDING)

    @override
    def updates(
        self, states: Collection[UpdateState] = (), *, before_sequence: int = 0, limit: int = 100
    ) -> tuple[UpdateRecord, ...]:
        with self._lock:
            found = [
                record
                for record in reversed(self._records())
                if (not states or record.state in states)
                and (not before_sequence or record.sequence < before_sequence)
            ]
        return tuple(found[:limit])

    @override
    def change_state(
        self, update_id: str, state: UpdateState, reason: str, *, by: str, consents: bool = False
    ) -> UpdateRecord:
        with self._lock:
            record = self.update_record(update_id)
            require_transition(record, state)
            is_consented = record.is_consented or consents
            self._set(update_id, state=state, reason=reason, is_consented=is_consented)
            self._write(by, f"update_{state.value}", subject=update_id, detail=reason)
            return self.update_record(update_id)

    @override
    def num_updates(self, state: UpdateState) -> int:
        with self._lock:
            return sum(record.state is state for record in self._records())

    @override
    def sizes_of(self, states: Collection[UpdateState], owner: str = "") -> UpdateSizes:
        with self._lock:
            found = [
                record.update_bytes
                for record in self._records()
                if record.state in states and owner in {"", record.owner}
            ]
        return UpdateSizes(len(found), sum(found))

    @override
    def refuse(self, record: UpdateRecord, limit: int) -> None:
        with self._lock:
            self._refused.append(replace(record, sequence=self._next_sequence()))
            del self._refused[: max(0, len(self._refused) - limit)]

    @override
    def refused(self, *, before_sequence: int = 0, limit: int = 100) -> tuple[UpdateRecord, ...]:
        with self._lock:
            found = [
                record
                for record in reversed(self._refused)
                if not before_sequence or record.sequence < before_sequence
            ]
        return tuple(found[:limit])

    def _records(self) -> list[UpdateRecord]:
        return [kept.record for kept in self._updates.values()]

    def _set(self, update_id: str, **values: object) -> None:
        kept = self._updates[update_id]
        kept.record = replace(kept.record, **values)  # type: ignore[arg-type]

    # --- versions ---------------------------------------------------------------------------

    @override
    def commit(self, version: EncodedVersion, *, by: str) -> None:
        commit = version.commit
        with self._lock:
            assert commit.version == self.current_version + 1, commit.version
            assert commit.event.parent_digest == self.digest(self.current_version)
            if commit.event.kind is VersionKind.MERGE:
                self._mark_merged(commit.marks, commit.version)
            elif commit.event.kind is VersionKind.ROLLBACK:
                self._roll_back(commit)
            else:
                self._drop(commit)
            self._versions.append(version)
            event = commit.event
            self._write(
                by,
                f"version_{event.kind.value}",
                subject=str(event.version),
                digest=event.digest,
                detail=commit.audit_detail,
            )

    def _mark_merged(self, marks: Mapping[str, MergeMark], version: int) -> None:
        for update_id, mark in marks.items():
            assert self._updates[update_id].record.state is UpdateState.PENDING, update_id
            self._set(update_id, state=UpdateState.MERGED, version=version, mark=mark, reason="")

    def _roll_back(self, commit: VersionCommit) -> None:
        event = commit.event
        held = {entry.update_id for entry in commit.entries.values()}
        for record in self._records():
            if record.update_id in held:
                is_back = record.state is not UpdateState.MERGED
                version = event.version if is_back else record.version
                self._set(record.update_id, state=UpdateState.MERGED, version=version, reason="")
            elif record.state is UpdateState.MERGED and record.version > event.content_version:
                reason = f"version {event.version} went back to version {event.content_version}"
                self._set(record.update_id, state=UpdateState.ROLLED_BACK, reason=reason)

    def _drop(self, commit: VersionCommit) -> None:
        for record in self._records():
            if record.task_id in commit.event.task_ids:
                reason = f"version {commit.version} removed the task"
                self._set(record.update_id, state=UpdateState.DROPPED, reason=reason)

    @property
    @override
    def current_version(self) -> int:
        return len(self._versions)

    @property
    @override
    def first_version(self) -> int:
        return max(self._compacted, default=-1) + 1

    @override
    def is_kept(self, version: int) -> bool:
        return version not in self._compacted

    @override
    def digest(self, version: int) -> str:
        self.require_exists(version)
        if version == 0:
            return origin_digest(self.store_id, self._name)
        return self._versions[version - 1].commit.event.digest

    @override
    def subspace(self, version: int) -> Subspace:
        self.require_version(version)
        if version:
            return self._versions[version - 1].commit.subspace
        return empty_subspace(self._fingerprint)

    @override
    def tasks(self, version: int) -> KeptTasks:
        self.require_version(version)
        if version == 0:
            return KeptTasks()
        commit = self._versions[version - 1].commit
        return KeptTasks(commit.tasks, commit.entries)

    @override
    def rotation(self, version: int) -> bytes:
        self.require_version(version)
        return self._versions[version - 1].commit.rotation if version else b""

    @override
    def drift(self, version: int) -> dict[str, float]:
        self.require_exists(version)
        return dict(self._versions[version - 1].commit.drift) if version else {}

    @override
    def events(self, after_version: int, limit: int) -> tuple[VersionEvent, ...]:
        return tuple(kept.commit.event for kept in self._versions[after_version:][:limit])

    @override
    def versions(self, after_version: int, limit: int) -> tuple[VersionSummary, ...]:
        return tuple(
            VersionSummary(event, self.is_kept(event.version), self._stored_bytes(event.version))
            for event in self.events(after_version, limit)
        )

    @override
    def report(self, version: int) -> dict[str, object]:
        self.require_exists(version)
        # read from JSON as from a disk: what was a tuple there is a list
        report: dict[str, object] = (
            json.loads(self._versions[version - 1].report) if version else {}
        )
        return report

    @override
    def held_updates(self, version: int) -> frozenset[str]:
        return frozenset(entry.update_id for entry in self.tasks(version).entries.values())

    @override
    def finished_updates(self) -> tuple[FinishedUpdate, ...]:
        with self._lock:
            return tuple(
                FinishedUpdate(r.update_id, r.state, r.base_version, r.update_bytes)
                for r in self._records()
                if r.state in FINISHED and r.let_go_at is None
            )

    @override
    def compact(
        self, versions: Collection[int], update_ids: Collection[str] = (), *, by: str
    ) -> int:
        with self._lock:
            gone = sorted({*versions} - self._compacted - {0, self.current_version})
            gone = [version for version in gone if version < self.current_version]
            finished = {update.update_id for update in self.finished_updates()} & {*update_ids}
            before = self._kept_payloads()
            self._compacted |= {*gone}
            for update_id in finished:
                self._set(update_id, let_go_at=self.current_version)
            if gone or finished:
                subject, detail = told_of_compaction(gone, len(finished))
                self._write(by, "versions_compacted", subject=subject, detail=detail)
            return sum(map(len, before - self._kept_payloads()))

    def _kept_payloads(self) -> set[bytes]:
        kept = (version for version in range(1, self.current_version + 1) if self.is_kept(version))
        of_versions = {payload for version in kept for payload in self._payloads(version)}
        return of_versions | {
            update.payload for update in self._updates.values() if update.record.let_go_at is None
        }

    def _payloads(self, version: int) -> tuple[bytes, ...]:
        kept = self._versions[version - 1]
        return (kept.subspace, kept.tasks, kept.commit.rotation)

    def _stored_bytes(self, version: int) -> int:
        return sum(map(len, self._payloads(version))) if self.is_kept(version) else 0

    # --- tasks ------------------------------------------------------------------------------

    @override
    def task_summary(self, task_id: str) -> TaskSummary:
        with self._lock:
            newest = self._newest()
            if task_id not in newest:
                raise unknown_task(task_id)
            return self._summarise(newest[task_id])

    @override
    def task_summaries(self, after_task_id: str = "", limit: int = 0) -> tuple[TaskSummary, ...]:
        with self._lock:
            newest = [
                record for name, record in sorted(self._newest().items()) if name > after_task_id
            ]
            return tuple(self._summarise(record) for record in newest[: limit or None])

    def _newest(self) -> dict[str, UpdateRecord]:
        """Every task -> its newest update."""
        return {record.task_id: record for record in self._records()}

    def _summarise(self, newest: UpdateRecord) -> TaskSummary:
        """Describe a task by the update that the current version holds of it, else its newest."""
        newer = NewerUpdate(newest.update_id, newest.state, newest.reason)
        entry = self.tasks(self.current_version).entries.get(newest.task_id)
        if entry is None:
            return summarise(newest, 0.0, newer)
        return summarise(self._updates[entry.update_id].record, entry.cumulative_drift, newer)

    def _write(self, by: str, action: str, **fields: str) -> None:
        self._catalog.write(by, action, subspace=self._name, **fields)
