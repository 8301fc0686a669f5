"""
The store that survives: rows in SQLite, tensors in files, one thread that writes rows.

What a call did is on disk when it returns: SQLite runs in WAL mode with
``synchronous=FULL``, and blobs are written, synced, renamed and their folder
synced before a row names them. All rows of one version are one transaction.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert
from typing_extensions import override

from coordinator import faults
from coordinator.store import format as on_disk
from coordinator.store.base import (
    EncodedVersion,
    Kept,
    Store,
    UpdateRecord,
    VersionCommit,
    drift_after,
    empty_subspace,
    summarise,
)
from coordinator.store.blobs import BlobFolder, full, storage_errors
from coordinator.store.lock import StoreLock
from share_dist.core.values import Fingerprint, MergedTask, Subspace, TaskUpdate
from share_dist.errors import StoreCorrupt, StoreTooNew, StoreUnavailable
from share_dist.files import make_folder
from share_dist.wire import codec
from share_dist.wire.records import TaskSummary, UpdateState, VersionEvent

ResultT = TypeVar("ResultT")


class DurableStore(Store):
    """
    A store in one folder, owned by one process.

    Args:
        path: The folder; made if it is not there.

    Raises:
        StoreLocked: Another coordinator owns it.
        StoreTooNew: A newer release wrote it.
        StoreCorrupt: Its rows cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            make_folder(path)
            self._lock = StoreLock(path / "lock")
            self._blobs = BlobFolder(path / "blobs")
        self._rows_path = path / "rows.sqlite"
        self._engine = sa.create_engine(f"sqlite:///{self._rows_path}")
        sa.event.listen(self._engine, "connect", _make_durable)
        # one writer, first come first served: SQLite's own lock starves some threads
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        try:
            self._write(_create_tables(self._rows_path))
            self._current_version = self._read(_newest_version)
        except BaseException:
            self.close()
            raise

    # --- fingerprint and leases -------------------------------------------------------------

    @override
    def fingerprint(self) -> Fingerprint | None:
        return self._read(_fingerprint)

    @override
    def bind(self, fingerprint: Fingerprint) -> bool:
        def write(rows: sa.Connection) -> bool:
            known = _fingerprint(rows)
            if known is not None:
                known.require(fingerprint)
                return False
            value = on_disk.fingerprint_to_json(fingerprint)
            rows.execute(sa.insert(on_disk.facts).values(name="fingerprint", value=value))
            return True

        return self._write(write)

    @override
    def next_epoch(self, worker_id: str) -> int:
        epoch = on_disk.workers.c.lease_epoch
        statement = (
            upsert(on_disk.workers)
            .values(worker_id=worker_id, lease_epoch=1)
            .on_conflict_do_update(index_elements=["worker_id"], set_={"lease_epoch": epoch + 1})
            .returning(epoch)
        )
        return self._write(lambda rows: int(rows.execute(statement).scalar_one()))

    @override
    def epochs(self) -> dict[str, int]:
        found = self._read(lambda rows: rows.execute(sa.select(on_disk.workers)).all())
        return {row.worker_id: row.lease_epoch for row in found}

    # --- updates ----------------------------------------------------------------------------

    @override
    def add_update(self, update: TaskUpdate, *, worker_id: str, pushed_at: datetime) -> Kept:
        described = on_disk.describe_update(update, worker_id=worker_id, pushed_at=pushed_at)
        digest = described.encoded.content_digest
        blob = self._blobs.write(described.encoded.payload, "update")

        def write(rows: sa.Connection) -> Kept:
            known = _find(rows, update.update_id)
            if known is not None:
                known.require_same_content(digest)
                return Kept(known, is_new=False)
            row = on_disk.record_to_row(described, blob)
            sequence = rows.execute(
                sa.insert(on_disk.updates).values(row).returning(on_disk.updates.c.sequence)
            ).scalar_one()
            faults.reach("before-update-commit")
            return Kept(replace(described.record, sequence=sequence), is_new=True)

        kept = self._write(write)
        faults.reach("after-update-commit")
        return kept

    @override
    def knows(self, update_id: str) -> bool:
        select = sa.select(on_disk.updates.c.sequence).where(
            on_disk.updates.c.update_id == update_id
        )
        return self._read(lambda rows: rows.execute(select).first()) is not None

    @override
    def repeat_of(self, update: TaskUpdate) -> UpdateRecord | None:
        known = self._read(lambda rows: _find(rows, update.update_id))
        if known is not None:
            known.require_same_content(on_disk.encode_update(update).content_digest)
        return known

    @override
    def update_record(self, update_id: str) -> UpdateRecord:
        record = self._read(lambda rows: _find(rows, update_id))
        assert record is not None, update_id
        return record

    @override
    def load_update(self, update_id: str) -> TaskUpdate:
        table = on_disk.updates.c
        select = sa.select(table.metadata, table.blob).where(table.update_id == update_id)
        metadata, blob = self._read(lambda rows: rows.execute(select).one())
        return codec.update_from_record(json.loads(metadata), self._blobs.read(blob))

    @override
    def pending(self) -> tuple[UpdateRecord, ...]:
        state = on_disk.updates.c.state
        return self._read(lambda rows: _select(rows, state == UpdateState.PENDING.value))

    @override
    def set_aside(self, update_id: str, reason: str) -> UpdateRecord:
        values = {"state": UpdateState.QUARANTINED.value, "reason": reason}

        def write(rows: sa.Connection) -> None:
            _change_pending(rows, update_id, values)

        self._write(write)
        return self.update_record(update_id)

    @override
    def num_updates(self, state: UpdateState) -> int:
        count = sa.select(sa.func.count()).where(on_disk.updates.c.state == state.value)
        return self._read(lambda rows: int(rows.execute(count).scalar_one()))

    # --- versions ---------------------------------------------------------------------------

    @override
    def commit(self, version: EncodedVersion) -> None:
        commit = version.commit
        assert commit.version == self._current_version + 1, commit.version
        row = {
            "version": commit.version,
            "metric": commit.subspace.metric,
            "subspace_blob": self._blobs.write(version.subspace, "merge"),
            "tasks_blob": self._blobs.write(version.tasks, "merge"),
            "event": version.event,
            "report": version.report,
        }

        def write(rows: sa.Connection) -> None:
            rows.execute(sa.insert(on_disk.versions).values(row))
            _mark_merged(rows, commit)
            faults.reach("before-merge-commit")

        self._write(write)
        self._current_version = commit.version
        faults.reach("after-merge-commit")

    @property
    @override
    def current_version(self) -> int:
        return self._current_version

    @override
    def subspace(self, version: int) -> Subspace:
        self.require_version(version)
        if version == 0:
            return empty_subspace(self.fingerprint())
        row = self._version_row(version)
        payload = self._blobs.read(row.subspace_blob)
        # the blob's digest vouches for it: it is what was committed
        return codec.subspace_from_bytes(payload, version=version, metric=row.metric, check=False)

    @override
    def merged_tasks(self) -> dict[str, MergedTask]:
        version = self._current_version
        if version == 0:
            return {}
        payload = self._blobs.read(self._version_row(version).tasks_blob)
        return codec.merged_tasks_from_bytes(payload, version=version)

    @override
    def merged_update_ids(self) -> dict[str, str]:
        found = self._read(lambda rows: rows.execute(sa.select(on_disk.tasks)).all())
        return {row.task_id: row.update_id for row in found}

    @override
    def events(self, after_version: int, limit: int) -> tuple[VersionEvent, ...]:
        table = on_disk.versions.c
        select = (
            sa.select(table.event)
            .where(table.version > after_version)
            .order_by(table.version)
            .limit(limit)
        )
        found = self._read(lambda rows: rows.execute(select).scalars().all())
        return tuple(on_disk.event_from_json(text) for text in found)

    @override
    def report(self, version: int) -> dict[str, object]:
        report: dict[str, object] = json.loads(self._version_row(version).report)
        return report

    def _version_row(self, version: int) -> sa.Row[Any]:
        select = sa.select(on_disk.versions).where(on_disk.versions.c.version == version)
        return self._read(lambda rows: rows.execute(select).one())

    # --- tasks ------------------------------------------------------------------------------

    @override
    def task_summary(self, update_id: str) -> TaskSummary:
        def read(rows: sa.Connection) -> TaskSummary:
            record = _find(rows, update_id)
            assert record is not None, update_id
            return _summarise(rows, record)

        return self._read(read)

    @override
    def task_summaries(self) -> tuple[TaskSummary, ...]:
        table = on_disk.updates.c
        newest = sa.select(sa.func.max(table.sequence)).group_by(table.task_id)

        def read(rows: sa.Connection) -> tuple[TaskSummary, ...]:
            merged = _select(rows, table.update_id.in_(sa.select(on_disk.tasks.c.update_id)))
            shown = {record.task_id: record for record in _select(rows, table.sequence.in_(newest))}
            shown |= {record.task_id: record for record in merged}
            return tuple(_summarise(rows, record) for _, record in sorted(shown.items()))

        return self._read(read)

    # --- rows -------------------------------------------------------------------------------

    @override
    def close(self) -> None:
        self._writer.shutdown()
        self._engine.dispose()
        self._lock.release()

    def _write(self, write: Callable[[sa.Connection], ResultT]) -> ResultT:
        """Run one transaction on the writer's thread; it is on disk when this returns."""

        def transact() -> ResultT:
            with self._database_errors(), self._engine.begin() as rows:
                return write(rows)

        return self._writer.submit(transact).result()

    def _read(self, read: Callable[[sa.Connection], ResultT]) -> ResultT:
        with self._database_errors(), self._engine.connect() as rows:
            return read(rows)

    @contextlib.contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError):
            raise  # a bug of ours: no disk is to blame
        except sa.exc.DBAPIError as error:
            said = str(error.orig)
            if "full" in said:
                raise full(self._rows_path, 4096) from error
            if "malformed" in said or "not a database" in said:
                raise StoreCorrupt(
                    f"{self._rows_path} cannot be read: {said}: restore it from a copy of the store",
                    path=str(self._rows_path),
                    expected="an SQLite database",
                    found=said,
                ) from error
            raise StoreUnavailable(
                f"{self._rows_path}: {said}: check the disk", path=str(self._rows_path)
            ) from error


def _make_durable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _create_tables(path: Path) -> Callable[[sa.Connection], None]:
    def write(rows: sa.Connection) -> None:
        on_disk.facts.create(rows, checkfirst=True)
        found = int(_fact(rows, "schema_version") or 0)
        if found > on_disk.SCHEMA_VERSION:
            raise StoreTooNew(
                f"{path} has schema version {found}, this release knows "
                f"{on_disk.SCHEMA_VERSION}: install the release that wrote it, or a newer one",
                path=str(path),
                found=found,
                supported=on_disk.SCHEMA_VERSION,
            )
        on_disk.tables.create_all(rows)
        if not found:
            schema = {"name": "schema_version", "value": str(on_disk.SCHEMA_VERSION)}
            rows.execute(sa.insert(on_disk.facts).values(schema))

    return write


def _fact(rows: sa.Connection, name: str) -> str | None:
    select = sa.select(on_disk.facts.c.value).where(on_disk.facts.c.name == name)
    value: str | None = rows.execute(select).scalar_one_or_none()
    return value


def _fingerprint(rows: sa.Connection) -> Fingerprint | None:
    text = _fact(rows, "fingerprint")
    return None if text is None else on_disk.fingerprint_from_json(text)


def _newest_version(rows: sa.Connection) -> int:
    return int(rows.execute(sa.select(sa.func.max(on_disk.versions.c.version))).scalar() or 0)


def _select(rows: sa.Connection, where: sa.ColumnElement[bool]) -> tuple[UpdateRecord, ...]:
    table = on_disk.updates
    found = rows.execute(sa.select(table).where(where).order_by(table.c.sequence))
    return tuple(on_disk.record_from_row(row) for row in found)


def _find(rows: sa.Connection, update_id: str) -> UpdateRecord | None:
    return next(iter(_select(rows, on_disk.updates.c.update_id == update_id)), None)


def _change_pending(rows: sa.Connection, update_id: str, values: dict[str, Any]) -> None:
    table = on_disk.updates
    is_pending = table.c.state == UpdateState.PENDING.value
    changed = rows.execute(
        sa.update(table).where(table.c.update_id == update_id, is_pending).values(values)
    )
    assert changed.rowcount == 1, update_id


def _mark_merged(rows: sa.Connection, commit: VersionCommit) -> None:
    merged: dict[str, str] = {}
    for update_id, mark in commit.marks.items():
        record = _find(rows, update_id)
        assert record is not None, update_id
        merged[record.task_id] = update_id
        values = {
            "state": UpdateState.MERGED.value,
            "version": commit.version,
            "lag": mark.lag,
            "angle": mark.angle,
            "truncation": mark.truncation,
        }
        _change_pending(rows, update_id, values)
    held = {row.task_id: row for row in rows.execute(sa.select(on_disk.tasks))}
    drift = drift_after(
        {task_id: row.cumulative_drift for task_id, row in held.items()}, commit.event, [*merged]
    )
    update_ids = {task_id: row.update_id for task_id, row in held.items()} | merged
    for task_id, update_id in update_ids.items():
        values = {"update_id": update_id, "cumulative_drift": drift[task_id]}
        rows.execute(
            upsert(on_disk.tasks)
            .values(task_id=task_id, **values)
            .on_conflict_do_update(index_elements=["task_id"], set_=values)
        )


def _summarise(rows: sa.Connection, record: UpdateRecord) -> TaskSummary:
    table = on_disk.updates.c
    first = sa.select(table.worker_id).where(table.task_id == record.task_id)
    drift = sa.select(on_disk.tasks.c.cumulative_drift).where(
        on_disk.tasks.c.task_id == record.task_id
    )
    return summarise(
        record,
        rows.execute(first.order_by(table.sequence).limit(1)).scalar_one(),
        rows.execute(drift).scalar() or 0.0,
    )
