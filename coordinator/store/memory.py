"""The store that forgets at exit: the reference that the durable one is tested against."""

import threading
from dataclasses import replace
from datetime import datetime

from typing_extensions import override

from coordinator.store.base import (
    EncodedVersion,
    Kept,
    MergeMark,
    Store,
    UpdateRecord,
    VersionCommit,
    drift_after,
    empty_subspace,
    summarise,
)
from coordinator.store.format import describe_update, encode_update
from share_dist.core.values import Fingerprint, MergedTask, Subspace, TaskUpdate
from share_dist.wire.records import TaskSummary, UpdateState, VersionEvent


class MemoryStore(Store):
    """Keeps everything in dictionaries under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fingerprint: Fingerprint | None = None
        self._epochs: dict[str, int] = {}
        self._records: dict[str, UpdateRecord] = {}
        self._updates: dict[str, TaskUpdate] = {}
        self._commits: list[VersionCommit] = []
        self._merged: dict[str, str] = {}
        self._drift: dict[str, float] = {}

    @override
    def fingerprint(self) -> Fingerprint | None:
        return self._fingerprint

    @override
    def bind(self, fingerprint: Fingerprint) -> bool:
        with self._lock:
            if self._fingerprint is not None:
                self._fingerprint.require(fingerprint)
                return False
            self._fingerprint = fingerprint
            return True

    @override
    def next_epoch(self, worker_id: str) -> int:
        with self._lock:
            self._epochs[worker_id] = self._epochs.get(worker_id, 0) + 1
            return self._epochs[worker_id]

    @override
    def epochs(self) -> dict[str, int]:
        return dict(self._epochs)

    @override
    def add_update(self, update: TaskUpdate, *, worker_id: str, pushed_at: datetime) -> Kept:
        with self._lock:
            known = self.repeat_of(update)
            if known is not None:
                return Kept(known, is_new=False)
            described = describe_update(update, worker_id=worker_id, pushed_at=pushed_at)
            record = replace(described.record, sequence=len(self._records) + 1)
            self._records[update.update_id] = record
            self._updates[update.update_id] = replace(update, lease_epoch=0)
            return Kept(record, is_new=True)

    @override
    def knows(self, update_id: str) -> bool:
        return update_id in self._records

    @override
    def repeat_of(self, update: TaskUpdate) -> UpdateRecord | None:
        known = self._records.get(update.update_id)
        if known is not None:
            known.require_same_content(encode_update(update).content_digest)
        return known

    @override
    def update_record(self, update_id: str) -> UpdateRecord:
        return self._records[update_id]

    @override
    def load_update(self, update_id: str) -> TaskUpdate:
        return self._updates[update_id]

    @override
    def pending(self) -> tuple[UpdateRecord, ...]:
        with self._lock:
            return tuple(r for r in self._records.values() if r.state is UpdateState.PENDING)

    @override
    def set_aside(self, update_id: str, reason: str) -> UpdateRecord:
        with self._lock:
            record = self._records[update_id]
            assert record.state is UpdateState.PENDING, record
            aside = replace(record, state=UpdateState.QUARANTINED, reason=reason)
            self._records[update_id] = aside
            return aside

    @override
    def num_updates(self, state: UpdateState) -> int:
        with self._lock:
            return sum(record.state is state for record in self._records.values())

    @override
    def commit(self, version: EncodedVersion) -> None:
        commit = version.commit
        with self._lock:
            assert commit.version == self.current_version + 1, commit.version
            for update_id, mark in commit.marks.items():
                self._mark_merged(update_id, mark, commit.version)
            replaced = [self._records[update_id].task_id for update_id in commit.marks]
            self._drift = drift_after(self._drift, commit.event, replaced)
            self._commits.append(commit)

    def _mark_merged(self, update_id: str, mark: MergeMark, version: int) -> None:
        record = self._records[update_id]
        self._records[update_id] = replace(
            record, state=UpdateState.MERGED, version=version, mark=mark
        )
        self._merged[record.task_id] = update_id

    @property
    @override
    def current_version(self) -> int:
        return len(self._commits)

    @override
    def subspace(self, version: int) -> Subspace:
        self.require_version(version)
        if version:
            return self._commits[version - 1].subspace
        return empty_subspace(self._fingerprint)

    @override
    def merged_tasks(self) -> dict[str, MergedTask]:
        return dict(self._commits[-1].tasks) if self._commits else {}

    @override
    def merged_update_ids(self) -> dict[str, str]:
        return dict(self._merged)

    @override
    def events(self, after_version: int, limit: int) -> tuple[VersionEvent, ...]:
        return tuple(commit.event for commit in self._commits[after_version:][:limit])

    @override
    def report(self, version: int) -> dict[str, object]:
        return dict(self._commits[version - 1].report)

    @override
    def task_summary(self, update_id: str) -> TaskSummary:
        with self._lock:
            return self._summarise(self._records[update_id])

    @override
    def task_summaries(self) -> tuple[TaskSummary, ...]:
        with self._lock:
            shown = {record.task_id: record for record in self._records.values()}
            shown |= {task_id: self._records[merged] for task_id, merged in self._merged.items()}
            return tuple(self._summarise(record) for _, record in sorted(shown.items()))

    def _summarise(self, record: UpdateRecord) -> TaskSummary:
        first = next(r for r in self._records.values() if r.task_id == record.task_id)
        return summarise(record, first.worker_id, self._drift.get(record.task_id, 0.0))

    @override
    def close(self) -> None:
        """Nothing is held that would need letting go."""
