"""One named subspace of a durable catalog."""

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from typing_extensions import override

from coordinator import faults
from coordinator.store.base import (
    DescribedUpdate,
    EncodedVersion,
    FinishedUpdate,
    Kept,
    KeptTasks,
    Store,
    UpdateRecord,
    UpdateSizes,
    empty_subspace,
    let_go,
    not_owner,
    require_transition,
    told_of_compaction,
    unknown_task,
    unknown_update,
)
from coordinator.store.format import (
    drift_from_bytes,
    entries_from_bytes,
    event_from_json,
    fingerprint_from_json,
    fingerprint_to_json,
    origin_digest,
    tasks_from_bytes,
)
from coordinator.store.payloads import Payload
from coordinator.store.rows import (
    change_updates,
    compactable,
    find_update,
    finished_updates,
    forget_refused,
    let_go_of,
    newest_version,
    next_sequence,
    replace_entries,
    select_updates,
    summaries,
    task_owner,
)
from coordinator.store.tables import (
    refused_from_row,
    refused_to_row,
    refused_updates,
    subspaces,
    tasks,
    update_to_row,
    updates,
    versions,
    workers,
)
from share_dist.core.values import Fingerprint, Subspace, TaskUpdate
from share_dist.errors import StoreCorrupt
from share_dist.wire import codec
from share_dist.wire.records import TaskSummary, UpdateState, VersionEvent, VersionSummary

if TYPE_CHECKING:
    from coordinator.store.durable import DurableCatalog

ResultT = TypeVar("ResultT")

PAYLOADS = (
    versions.c.subspace_digest,
    versions.c.subspace_bytes,
    versions.c.tasks_digest,
    versions.c.tasks_bytes,
    versions.c.rotation_digest,
    versions.c.rotation_bytes,
)


class DurableStore(Store):
    """
    One subspace of a ``DurableCatalog``; made by it.

    Args:
        catalog: Whose rows, payloads and writer this uses.
        name: Of the subspace.
    """

    def __init__(self, catalog: "DurableCatalog", name: str) -> None:
        self._catalog = catalog
        self._name = name
        self._newest: int | None = self._read_newest()
        self._bound: Fingerprint | None = None

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
        # kept once it is read: what is bound is bound for ever
        self._bound = self._bound or self._read(self._fingerprint)
        return self._bound

    @override
    def bind(self, fingerprint: Fingerprint, *, by: str) -> bool:
        text = fingerprint_to_json(fingerprint)

        def write(rows: sa.Connection) -> bool:
            known = self._fingerprint(rows)
            if known is not None:
                known.require(fingerprint)
                return False
            here = subspaces.c.name == self._name
            rows.execute(sa.update(subspaces).where(here).values(fingerprint=text))
            self._audit(rows, by, "subspace_bound", digest=fingerprint.digest)
            return True

        return self._catalog.write("change", write)

    def _fingerprint(self, rows: sa.Connection) -> Fingerprint | None:
        select = sa.select(subspaces.c.fingerprint).where(subspaces.c.name == self._name)
        text: str | None = rows.execute(select).scalar_one()
        return None if text is None else fingerprint_from_json(text)

    # --- workers ----------------------------------------------------------------------------

    @override
    def next_epoch(self, worker_id: str, *, by: str) -> int:
        upsert = self._catalog.database.upsert(workers)
        row = {"subspace": self._name, "worker_id": worker_id, "owner": by, "lease_epoch": 1}
        statement = (
            upsert.values(row)
            .on_conflict_do_update(
                index_elements=["subspace", "worker_id"],
                set_={"lease_epoch": workers.c.lease_epoch + 1},
            )
            .returning(workers.c.lease_epoch, workers.c.owner)
        )

        def write(rows: sa.Connection) -> int:
            epoch, owner = rows.execute(statement).one()
            if owner != by:
                raise not_owner(f"worker {worker_id!r}", owner, by)
            self._audit(rows, by, "worker_registered", subject=worker_id)
            return int(epoch)

        return self._catalog.write("change", write)

    @override
    def epochs(self) -> dict[str, int]:
        select = sa.select(workers).where(workers.c.subspace == self._name)
        found = self._read(lambda rows: rows.execute(select).all())
        return {row.worker_id: row.lease_epoch for row in found}

    @override
    def worker_owner(self, worker_id: str) -> str | None:
        select = sa.select(workers.c.owner).where(
            workers.c.subspace == self._name, workers.c.worker_id == worker_id
        )
        return self._read(lambda rows: rows.execute(select).scalar_one_or_none())

    # --- updates ----------------------------------------------------------------------------

    @override
    def add_update(self, described: DescribedUpdate, *, by: str) -> Kept:
        record = described.record
        payload = Payload(described.payload_digest, described.payload, described.file)
        if self._catalog.payloads.is_large(payload):
            # before its file is written: who repeats a conflict must not wear out the disk
            known = self._read(lambda rows: self._known(rows, record))
            if known is not None:
                return known
        with self._catalog.keeping("update", [payload]) as put:

            def write(rows: sa.Connection) -> Kept:
                return self._known(rows, record) or self._insert(rows, described, put, by)

            return self._catalog.write("update", write)

    def _known(self, rows: sa.Connection, record: UpdateRecord) -> Kept | None:
        """Return an update that was kept before; raise if this one may not be kept."""
        known = find_update(rows, self._name, record.update_id)
        if known is not None:
            known.require_same_content(record.content_digest)
            return Kept(known, is_new=False)
        owner = task_owner(rows, self._name, record.task_id)
        if owner not in {None, record.owner}:
            raise not_owner(f"task {record.task_id!r}", str(owner), record.owner)
        return None

    def _insert(
        self,
        rows: sa.Connection,
        described: DescribedUpdate,
        put: Callable[[sa.Connection], None],
        by: str,
    ) -> Kept:
        put(rows)
        record = replace(described.record, sequence=next_sequence(rows, self._name))
        place = {"subspace": self._name, "sequence": record.sequence}
        rows.execute(sa.insert(updates).values(update_to_row(described) | place))
        faults.reach("after-update-row")
        self._note_task(rows, record)
        pending = record.state is UpdateState.PENDING
        action = f"update_{'admitted' if pending else record.state.value}"
        self._audit(rows, by, action, subject=record.update_id, digest=record.content_digest)
        return Kept(record, is_new=True)

    def _note_task(self, rows: sa.Connection, record: UpdateRecord) -> None:
        """Let a task be known by its newest update, and by the owner of its first."""
        newest = {"newest_update_id": record.update_id}
        row = {"subspace": self._name, "task_id": record.task_id, "owner": record.owner}
        insert = self._catalog.database.upsert(tasks).values(row | newest | {"cumulative_drift": 0})
        rows.execute(
            insert.on_conflict_do_update(index_elements=["subspace", "task_id"], set_=newest)
        )

    @override
    def owner(self, task_id: str) -> str | None:
        return self._read(lambda rows: task_owner(rows, self._name, task_id))

    @override
    def find_update(self, update_id: str) -> UpdateRecord | None:
        return self._read(lambda rows: find_update(rows, self._name, update_id))

    @override
    def update_record(self, update_id: str) -> UpdateRecord:
        return self._read(lambda rows: self._record(rows, update_id))

    def _record(self, rows: sa.Connection, update_id: str) -> UpdateRecord:
        record = find_update(rows, self._name, update_id)
        if record is None:
            raise unknown_update(update_id)
        return record

    @override
    def load_update(self, update_id: str) -> TaskUpdate:
        self._require_payload(update_id)
        one = sa.and_(updates.c.subspace == self._name, updates.c.update_id == update_id)
        select = sa.select(updates.c.metadata, updates.c.payload_digest).where(one)
        found = self._read(lambda rows: rows.execute(select).one())
        try:
            payload = self._catalog.payloads.read(found.payload_digest)
        except StoreCorrupt:
            # it may have been let go of since it was asked for
            self._require_payload(update_id)
            raise
        return codec.update_from_record(json.loads(found.metadata), payload)

    def _require_payload(self, update_id: str) -> None:
        record = self.update_record(update_id)
        if record.let_go_at is not None:
            raise let_go(record)

    @override
    def pending(self) -> tuple[UpdateRecord, ...]:
        return self._select(updates.c.state == UpdateState.PENDING.value, updates.c.sequence)

    @override
    def updates(
        self, states: Collection[UpdateState] = (), *, before_sequence: int = 0, limit: int = 100
    ) -> tuple[UpdateRecord, ...]:
        names = [state.value for state in states or UpdateState]
        asked: list[sa.ColumnElement[bool]] = [updates.c.state.in_(names)]
        if before_sequence:
            asked.append(updates.c.sequence < before_sequence)
        return self._select(sa.and_(*asked), updates.c.sequence.desc(), limit)

    def _select(
        self,
        where: "sa.ColumnElement[bool]",
        order: "sa.ColumnElement[Any]",
        limit: int | None = None,
    ) -> tuple[UpdateRecord, ...]:
        mine = sa.select(updates).where(updates.c.subspace == self._name, where)
        select = mine.order_by(order).limit(limit)
        return self._read(lambda rows: select_updates(rows, select))

    @override
    def change_state(
        self, update_id: str, state: UpdateState, reason: str, *, by: str, consents: bool = False
    ) -> UpdateRecord:
        one = sa.and_(updates.c.subspace == self._name, updates.c.update_id == update_id)

        def write(rows: sa.Connection) -> UpdateRecord:
            record = self._record(rows, update_id)
            require_transition(record, state)
            is_consented = record.is_consented or consents
            values = {"state": state.value, "reason": reason, "is_consented": is_consented}
            rows.execute(sa.update(updates).where(one).values(values))
            self._audit(rows, by, f"update_{state.value}", subject=update_id, detail=reason)
            return replace(record, state=state, reason=reason, is_consented=is_consented)

        return self._catalog.write("change", write)

    @override
    def num_updates(self, state: UpdateState) -> int:
        mine = sa.and_(updates.c.subspace == self._name, updates.c.state == state.value)
        count = sa.select(sa.func.count()).select_from(updates).where(mine)
        return self._read(lambda rows: int(rows.execute(count).scalar_one()))

    @override
    def sizes_of(self, states: Collection[UpdateState], owner: str = "") -> UpdateSizes:
        mine = [updates.c.subspace == self._name, updates.c.state.in_([s.value for s in states])]
        if owner:
            mine.append(updates.c.owner == owner)
        num_bytes = sa.func.coalesce(sa.func.sum(updates.c.update_bytes), 0)
        select = sa.select(sa.func.count(), num_bytes).select_from(updates).where(*mine)
        return UpdateSizes(*map(int, self._read(lambda rows: rows.execute(select).one())))

    @override
    def refuse(self, record: UpdateRecord, limit: int) -> None:
        def write(rows: sa.Connection) -> None:
            numbered = replace(record, sequence=next_sequence(rows, self._name))
            row = refused_to_row(numbered) | {"subspace": self._name}
            rows.execute(sa.insert(refused_updates).values(row))
            forget_refused(rows, self._name, limit)

        self._catalog.write("change", write)

    @override
    def refused(self, *, before_sequence: int = 0, limit: int = 100) -> tuple[UpdateRecord, ...]:
        sequence = refused_updates.c.sequence
        mine = sa.select(refused_updates).where(refused_updates.c.subspace == self._name)
        asked = mine.where(sequence < before_sequence) if before_sequence else mine
        select = asked.order_by(sequence.desc()).limit(limit)
        return tuple(map(refused_from_row, self._read(lambda rows: rows.execute(select).all())))

    # --- versions ---------------------------------------------------------------------------

    @override
    def commit(self, version: EncodedVersion, *, by: str) -> None:
        row, payloads = _encoded_row(version)
        event = version.commit.event

        with self._catalog.keeping("merge", payloads) as put:

            def write(rows: sa.Connection) -> None:
                self._require_next(rows, event)
                put(rows)
                rows.execute(sa.insert(versions).values(row | {"subspace": self._name}))
                faults.reach("after-merge-version-row")
                change_updates(rows, self._name, version.commit)
                faults.reach("after-merge-update-rows")
                replace_entries(rows, self._name, version.commit.entries)
                self._audit(
                    rows,
                    by,
                    f"version_{event.kind.value}",
                    subject=str(event.version),
                    digest=event.digest,
                    detail=version.commit.audit_detail,
                )

            # unknown meanwhile: a commit that fails may have been done, where its answer was lost
            self._newest = None
            self._catalog.write("merge", write)
            self._newest = event.version

    def _require_next(self, rows: sa.Connection, event: VersionEvent) -> None:
        current = newest_version(rows, self._name)
        assert event.version == current + 1, event.version
        assert event.parent_digest == self._digest(rows, current), event.parent_digest

    @property
    @override
    def current_version(self) -> int:
        # not kept when read: a reader that was slow must not undo what a commit noted
        newest = self._newest
        return self._read_newest() if newest is None else newest

    def _read_newest(self) -> int:
        return self._read(lambda rows: newest_version(rows, self._name))

    @property
    @override
    def first_version(self) -> int:
        mine = sa.and_(versions.c.subspace == self._name, ~versions.c.is_kept)
        select = sa.select(sa.func.max(versions.c.version)).where(mine)
        gone = self._read(lambda rows: rows.execute(select).scalar())
        return 0 if gone is None else int(gone) + 1

    @override
    def is_kept(self, version: int) -> bool:
        return version == 0 or bool(self._version(version, versions.c.is_kept).is_kept)

    @override
    def digest(self, version: int) -> str:
        self.require_exists(version)
        return self._read(lambda rows: self._digest(rows, version))

    def _digest(self, rows: sa.Connection, version: int) -> str:
        if version == 0:
            return origin_digest(self.store_id, self._name)
        mine = sa.and_(versions.c.subspace == self._name, versions.c.version == version)
        digest: str = rows.execute(sa.select(versions.c.digest).where(mine)).scalar_one()
        return digest

    @override
    def subspace(self, version: int) -> Subspace:
        self.require_version(version)
        if version == 0:
            return empty_subspace(self.fingerprint())
        row = self._version(version, versions.c.subspace_digest, versions.c.metric)
        payload = self._payload(version, row.subspace_digest)
        # its digest vouches for it: it is what was committed
        return codec.subspace_from_bytes(payload, version=version, metric=row.metric, check=False)

    @override
    def tasks(self, version: int) -> KeptTasks:
        self.require_version(version)
        if version == 0:
            return KeptTasks()
        digest = self._version(version, versions.c.tasks_digest).tasks_digest
        return tasks_from_bytes(self._payload(version, digest), version=version)

    @override
    def rotation(self, version: int) -> bytes:
        self.require_version(version)
        if version == 0:
            return b""
        digest = self._version(version, versions.c.rotation_digest).rotation_digest
        return self._payload(version, digest) if digest else b""

    def _payload(self, version: int, digest: str) -> bytes:
        try:
            return self._catalog.payloads.read(digest)
        except StoreCorrupt:
            # it may have been compacted since it was asked for
            self.require_version(version)
            raise

    @override
    def drift(self, version: int) -> dict[str, float]:
        self.require_exists(version)
        if version == 0:
            return {}
        return drift_from_bytes(bytes(self._version(version, versions.c.drift).drift))

    @override
    def events(self, after_version: int, limit: int) -> tuple[VersionEvent, ...]:
        found = self._versions_after(after_version, limit, versions.c.event)
        return tuple(event_from_json(row.event) for row in found)

    @override
    def versions(self, after_version: int, limit: int) -> tuple[VersionSummary, ...]:
        columns = (versions.c.event, versions.c.is_kept, *PAYLOADS)
        return tuple(
            VersionSummary(event_from_json(row.event), row.is_kept, sum(_sizes_of(row).values()))
            for row in self._versions_after(after_version, limit, *columns)
        )

    @override
    def report(self, version: int) -> dict[str, object]:
        self.require_exists(version)
        if version == 0:
            return {}
        report: dict[str, object] = json.loads(self._version(version, versions.c.report).report)
        return report

    def _version(self, version: int, *columns: "sa.Column[Any]") -> "sa.Row[Any]":
        mine = sa.and_(versions.c.subspace == self._name, versions.c.version == version)
        select = sa.select(*columns).where(mine)
        return self._read(lambda rows: rows.execute(select).one())

    def _versions_after(
        self, version: int, limit: int, *columns: "sa.Column[Any]"
    ) -> "list[sa.Row[Any]]":
        mine = sa.and_(versions.c.subspace == self._name, versions.c.version > version)
        select = sa.select(*columns).where(mine).order_by(versions.c.version).limit(limit)
        return list(self._read(lambda rows: rows.execute(select).all()))

    @override
    def held_updates(self, version: int) -> frozenset[str]:
        self.require_version(version)
        if version == 0:
            return frozenset()
        digest = self._version(version, versions.c.tasks_digest).tasks_digest
        entries = entries_from_bytes(self._payload(version, digest))
        return frozenset(entry.update_id for entry in entries.values())

    @override
    def finished_updates(self) -> tuple[FinishedUpdate, ...]:
        found = self._read(lambda rows: finished_updates(rows, self._name))
        return tuple(
            FinishedUpdate(
                row.update_id, UpdateState(row.state), row.base_version, row.update_bytes
            )
            for row in found
        )

    @override
    def compact(
        self, versions: Collection[int], update_ids: Collection[str] = (), *, by: str
    ) -> int:
        asked, named = {*versions}, {*update_ids}
        freed, gone = self._catalog.write(
            "compaction", lambda rows: self._compact(rows, asked, named, by)
        )
        self._catalog.remove_blobs(gone)
        return freed

    def _compact(
        self, rows: sa.Connection, asked: Collection[int], named: Collection[str], by: str
    ) -> tuple[int, Collection[str]]:
        found = compactable(rows, self._name, asked)
        finished = [row for row in finished_updates(rows, self._name) if row.update_id in named]
        if not found and not finished:
            return 0, ()
        numbers = [row.version for row in found]
        mine = sa.and_(versions.c.subspace == self._name, versions.c.version.in_(numbers))
        faults.reach("before-compaction-rows")
        rows.execute(sa.update(versions).where(mine).values(is_kept=False))
        let_go_of(rows, self._name, [row.update_id for row in finished])
        sizes = {digest: size for row in found for digest, size in _sizes_of(row).items()}
        sizes |= {row.payload_digest: row.update_bytes for row in finished}
        freed, in_files = self._catalog.payloads.forget(rows, sizes)
        faults.reach("after-compaction-rows")
        subject, detail = told_of_compaction(numbers, len(finished))
        self._audit(rows, by, "versions_compacted", subject=subject, detail=detail)
        return sum(sizes[digest] for digest in freed), in_files

    # --- tasks ------------------------------------------------------------------------------

    @override
    def task_summary(self, task_id: str) -> TaskSummary:
        is_it = tasks.c.task_id == task_id
        found = self._read(lambda rows: summaries(rows, self._name, is_it))
        if not found:
            raise unknown_task(task_id)
        return found[0]

    @override
    def task_summaries(self, after_task_id: str = "", limit: int = 0) -> tuple[TaskSummary, ...]:
        after = tasks.c.task_id > after_task_id
        return self._read(lambda rows: summaries(rows, self._name, after, limit=limit))

    def _read(self, read: Callable[[sa.Connection], ResultT]) -> ResultT:
        return self._catalog.database.read(read)

    def _audit(self, rows: sa.Connection, by: str, action: str, **fields: str) -> None:
        self._catalog.audit_in(rows, by, action, subspace=self._name, **fields)


def _encoded_row(version: EncodedVersion) -> tuple[dict[str, Any], list[Payload]]:
    """Return the row of a version, and the payloads that it names."""
    commit = version.commit
    subspace, tasks_, rotation = map(Payload.of, (version.subspace, version.tasks, commit.rotation))
    row = {
        "version": commit.version,
        "digest": commit.event.digest,
        "metric": commit.subspace.metric,
        "is_kept": True,
        "subspace_digest": subspace.digest,
        "subspace_bytes": len(subspace.data),
        "tasks_digest": tasks_.digest,
        "tasks_bytes": len(tasks_.data),
        "rotation_digest": rotation.digest if rotation.data else "",
        "rotation_bytes": len(rotation.data),
        "drift": version.drift,
        "event": version.event,
        "report": version.report,
    }
    return row, [payload for payload in (subspace, tasks_, rotation) if payload.data]


def _sizes_of(row: "sa.Row[Any]") -> dict[str, int]:
    """Digest of each payload that a version keeps -> its bytes."""
    sizes = {
        row.subspace_digest: row.subspace_bytes,
        row.tasks_digest: row.tasks_bytes,
        row.rotation_digest: row.rotation_bytes,
    }
    return {digest: size for digest, size in sizes.items() if row.is_kept and digest}
