"""What the first release kept, moved into the named subspace that is meant where none is named."""

import contextlib
import fcntl
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from coordinator.store.base import (
    COORDINATOR,
    EncodedVersion,
    TaskEntry,
    VersionCommit,
    entries_after,
)
from coordinator.store.blobs import Blobs, LocalBlobs
from coordinator.store.format import (
    content_digest,
    digest_of,
    encode_version,
    event_from_json,
    origin_digest,
)
from share_dist.errors import StoreLocked
from share_dist.wire import codec
from share_dist.wire.records import DEFAULT_SUBSPACE, MAX_TOLD_DRIFTS

_REFUSED_BY_FIRST_RELEASE = "2"
"""Schema version in ``facts``: the first release reads it there, and opens 1 only."""

_LOCAL = "local"
"""Principal of everybody in the first release, which authenticated nobody."""

Rows = list[dict[str, Any]]


def require_closed(folder: Path) -> None:
    """
    Raise if a coordinator of the first release has a store open; it locks a file for its life.

    Raises:
        StoreLocked: One has.
    """
    path = folder / "lock"
    if not path.is_file():
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _locked(folder, path) from error


def _locked(folder: Path, path: Path) -> StoreLocked:
    holder: dict[str, Any] = {"pid": 0, "host": "(unknown)"}
    with contextlib.suppress(ValueError):
        holder |= json.loads(path.read_text(encoding="utf-8"))
    return StoreLocked(
        f"store {folder} is owned by process {holder['pid']} on {holder['host']}, of an older "
        "release: stop that coordinator first, its store is then migrated",
        path=str(folder),
        pid=int(holder["pid"]),
        host=str(holder["host"]),
    )


@dataclass
class FirstRelease:
    """All rows of a store of the first release; none for a store that is new."""

    facts: dict[str, str]
    workers: Rows
    updates: Rows
    versions: Rows
    tasks: Rows

    @classmethod
    def read(cls, rows: sa.Connection) -> "FirstRelease":
        """Read every table."""

        def of(table: str, order: str) -> Rows:
            query = f"SELECT * FROM {table} ORDER BY {order}"  # noqa: S608 - constants
            return [dict(row) for row in rows.exec_driver_sql(query).mappings()]

        return cls(
            facts={row["name"]: row["value"] for row in of("facts", "name")},
            workers=of("workers", "worker_id"),
            updates=of("updates", "sequence"),
            versions=of("versions", "version"),
            tasks=of("tasks", "task_id"),
        )

    def write(self, rows: sa.Connection, folder: Path | None) -> None:
        """
        Write everything into the tables of schema version 2.

        Args:
            rows: Where these tables are, empty.
            folder: The store's; None for a new catalog, of which there is nothing to move. Its
                blobs hold every payload; the versions' tasks are written anew, with entries.

        Raises:
            StoreCorrupt: A payload is not what was written.
        """
        store_id = uuid.uuid4().hex
        _insert(rows, "facts", [
            {"name": "store_id", "value": store_id},
            {"name": "schema_version", "value": _REFUSED_BY_FIRST_RELEASE},
        ])  # fmt: skip
        if folder is None or not self.facts:
            return
        require_closed(folder)
        blobs = LocalBlobs(folder / "blobs")
        name = {"subspace": DEFAULT_SUBSPACE}
        fingerprint = self.facts.get("fingerprint")
        _insert(rows, "subspaces", [{"name": DEFAULT_SUBSPACE, "fingerprint": fingerprint}])
        _insert(rows, "workers", [name | worker | {"owner": _LOCAL} for worker in self.workers])
        _insert(rows, "updates", [name | update for update in self._updates()])
        _insert(rows, "tasks", [name | task for task in self._tasks()])
        _insert(rows, "versions", [name | row for row in self._versions(store_id, blobs)])
        _insert(rows, "audit", [_audit_line()])

    def _owners(self) -> dict[str, str]:
        """Task -> the worker who first pushed it."""
        return {row["task_id"]: row["worker_id"] for row in reversed(self.updates)}

    def _updates(self) -> Iterator[dict[str, Any]]:
        owners = self._owners()
        for row in self.updates:
            payload_digest = row["blob"]
            added = {
                "owner": owners[row["task_id"]],
                "payload_digest": payload_digest,
                "content_digest": content_digest(row["metadata"], payload_digest),
            }
            yield {key: value for key, value in row.items() if key != "blob"} | added

    def _tasks(self) -> Iterator[dict[str, Any]]:
        newest = {row["task_id"]: row["update_id"] for row in self.updates}
        merged = {row["task_id"]: row for row in self.tasks}
        for task_id, owner in sorted(self._owners().items()):
            held = merged.get(task_id)
            yield {
                "task_id": task_id,
                "owner": owner,
                "newest_update_id": newest[task_id],
                "update_id": held["update_id"] if held else None,
                "cumulative_drift": held["cumulative_drift"] if held else 0.0,
            }

    def _versions(self, store_id: str, blobs: Blobs) -> Iterator[dict[str, Any]]:
        parent = origin_digest(store_id, DEFAULT_SUBSPACE)
        entries: Mapping[str, TaskEntry] = {}
        for row in self.versions:
            commit = self._commit(row, entries, blobs)
            encoded = encode_version(commit, parent_digest=parent)
            parent, entries = encoded.commit.event.digest, commit.entries
            for payload in (encoded.subspace, encoded.tasks):
                blobs.write(digest_of(payload), payload, "merge")
            yield _version_row(encoded)

    def _commit(
        self, row: dict[str, Any], entries: Mapping[str, TaskEntry], blobs: Blobs
    ) -> VersionCommit:
        version = row["version"]
        event = event_from_json(row["event"])
        drift = dict(event.drift)
        told = sorted(drift, key=drift.__getitem__, reverse=True)[:MAX_TOLD_DRIFTS]
        task_of = {update["update_id"]: update["task_id"] for update in self.updates}
        merged = {task_of[update_id]: update_id for update_id in event.update_ids}
        return VersionCommit(
            subspace=codec.subspace_from_bytes(
                blobs.read(row["subspace_blob"]), version=version, metric=row["metric"]
            ),
            tasks=codec.merged_tasks_from_bytes(blobs.read(row["tasks_blob"]), version=version),
            entries=entries_after(entries, drift, merged),
            event=replace(
                event,
                drift={task_id: drift[task_id] for task_id in told},
                num_moved=sum(moved > 0 for moved in drift.values()),
                largest_drift=max(drift.values(), default=0.0),
            ),
            report=json.loads(row["report"]),
            drift=drift,
        )


def _version_row(encoded: EncodedVersion) -> dict[str, Any]:
    return {
        "version": encoded.commit.version,
        "digest": encoded.commit.event.digest,
        "metric": encoded.commit.subspace.metric,
        "is_kept": True,
        "subspace_digest": digest_of(encoded.subspace),
        "tasks_digest": digest_of(encoded.tasks),
        "rotation_digest": "",
        "subspace_bytes": len(encoded.subspace),
        "tasks_bytes": len(encoded.tasks),
        "rotation_bytes": 0,
        "drift": encoded.drift,
        "event": encoded.event,
        "report": encoded.report,
    }


def _audit_line() -> dict[str, Any]:
    return {
        "sequence": 1,
        "at": time.time(),
        "principal": COORDINATOR,
        "action": "store_migrated",
        "subspace": DEFAULT_SUBSPACE,
        "subject": "",
        "digest": "",
        "detail": "from the first release, schema version 1",
    }


def _insert(rows: sa.Connection, table: str, values: Rows) -> None:
    if values:
        columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in values[0]]
        rows.execute(sa.insert(sa.table(table, *columns)), values)
