"""Catalogs of every kind to open, leave and open again, and versions made without a coordinator."""

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from coordinator.store import MemoryCatalog, open_catalog
from coordinator.store.base import (
    COORDINATOR,
    Catalog,
    EncodedVersion,
    KeptTasks,
    MergeMark,
    Store,
    TaskEntry,
    UpdateRecord,
    VersionCommit,
    entries_after,
    refused_record,
)
from coordinator.store.durable import DurableCatalog
from coordinator.store.format import describe_update, encode_version
from coordinator.store.tables import owner
from share_dist.core.merge import merge
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.wire.records import VersionEvent, VersionKind
from tests.coordinator.support import NOW

KINDS = ("memory", "sqlite", "postgres-memory", "postgres-files")

OBJECT_STORE = "sqlite-s3"
"""A kind whose blobs travel by HTTP, so that its tests take minutes."""


class Opener:
    """
    Opens one catalog again and again; a catalog in memory is its own reopening.

    Args:
        kind: One of ``KINDS``, or ``OBJECT_STORE``.
        path: A folder for it.
        url: A database of its own, for the kinds in PostgreSQL; a folder in a bucket of its own, for
            the one that keeps blobs in an object store.
    """

    def __init__(self, kind: str, path: Path, url: str = "") -> None:
        self.kind = kind
        self.path = path
        self.options: dict[str, Any] = {"store": str(path / "store")}
        if kind == "sqlite-files":
            self.options |= {"inline_bytes": 0}
        elif kind == OBJECT_STORE:
            self.options |= {"blobs": url, "inline_bytes": 0}
        elif kind == "postgres-memory":
            # some payloads inside the database, some outside
            blobs = f"memory://{uuid.uuid4().hex}"
            self.options |= {"store": url, "blobs": blobs, "inline_bytes": 1600}
        elif kind == "postgres-files":
            blobs = str(path / "blobs")
            self.options |= {"store": url, "blobs": blobs, "inline_bytes": 0}
        self.catalog = self.open()

    def open(self, **options: Any) -> Catalog:
        if self.kind == "memory":
            return MemoryCatalog()
        return open_catalog(**(self.options | options))

    def reopen(self) -> Catalog:
        """Close, and open again."""
        if self.kind != "memory":
            self.catalog.close()
            self.catalog = self.open()
        return self.catalog

    def crash(self) -> Catalog:
        """Leave the catalog as a process that is killed does, and open it again."""
        if self.kind != "memory":
            abandon(self.catalog)
            self.catalog = self.open()
        return self.catalog

    @property
    def store(self) -> Store:
        return self.catalog.create("default", by="operator")

    def reopened(self) -> Store:
        return self.reopen().store("default")

    def remove(self) -> None:
        self.catalog.close()
        shutil.rmtree(self.path, ignore_errors=True)


def abandon(catalog: Catalog) -> None:
    """Let go of nothing, as a process that is killed; its lease is over, for the process is gone."""
    assert isinstance(catalog, DurableCatalog)
    catalog._writer.close()
    with catalog.database.transaction() as rows:
        rows.execute(sa.update(owner).values(expires_at=0.0, expires_since_boot=0.0))
        rows.commit()
    catalog.database.close()


def add(
    store: Store, update: TaskUpdate, worker_id: str = "w", *, by: str = "", **options: Any
) -> UpdateRecord:
    described = describe_update(update, worker_id=worker_id, pushed_at=NOW, **options)
    return store.add_update(described, by=by or worker_id).record


def refuse(store: Store, update_id: str, reason: str = "zero norm", *, limit: int = 100) -> None:
    """Note a push that was refused."""
    store.refuse(
        refused_record(
            update_id=update_id,
            task_id="cats",
            worker_id="w",
            owner="w",
            base_version=0,
            pushed_at=NOW,
            content_digest="d" * 64,
            update_bytes=99,
            reason=reason,
        ),
        limit,
    )


def commit(store: Store, version: EncodedVersion) -> EncodedVersion:
    store.commit(version, by=COORDINATOR)
    return version


def merged(
    store: Store, update_ids: list[str], *, num_factors: int = 6, oversample: int = 0
) -> EncodedVersion:
    """Merge updates of a store for real."""
    current = store.current_version
    kept = store.tasks(current)
    updates = [store.load_update(update_id) for update_id in update_ids]
    bases = {update.base_version: store.subspace(update.base_version) for update in updates}
    outcome = merge(
        store.subspace(current),
        kept.tasks,
        updates,
        num_factors,
        oversample=oversample,
        bases=bases,
    )
    report = outcome.report
    of_task = {update.task_id: update.update_id for update in updates}
    marks = {
        update_id: MergeMark(
            report.lag[update_id], report.base_angle[update_id], report.truncation[update_id]
        )
        for update_id in report.update_ids
    }
    event = event_of(
        outcome.subspace,
        VersionKind.MERGE,
        update_ids=report.update_ids,
        task_ids=report.task_ids,
        angle=report.angle,
        num_factors=report.num_factors,
        drift=dict(report.drift),
    )
    return encode(
        store,
        outcome.subspace,
        KeptTasks(outcome.tasks, entries_after(kept.entries, report.drift, of_task)),
        event,
        marks=marks,
        drift=dict(report.drift),
        report=report.to_dict(),
        rotation=b"rotation to " + str(report.version).encode(),
    )


def rolled_back(store: Store, version: int) -> EncodedVersion:
    """Make a version with the content of an old one."""
    subspace = replace(store.subspace(version), version=store.current_version + 1)
    event = event_of(subspace, VersionKind.ROLLBACK, content_version=version)
    return encode(store, subspace, store.tasks(version), event)


def removed(store: Store, task_id: str) -> EncodedVersion:
    """Make a version without a task; its bases stay, for the store does not look at them."""
    current = store.current_version
    kept = store.tasks(current)
    left = KeptTasks(without(kept.tasks, task_id), without(kept.entries, task_id))
    subspace = replace(store.subspace(current), version=current + 1)
    event = event_of(subspace, VersionKind.REMOVAL, task_ids=(task_id,))
    return encode(store, subspace, left, event)


def without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def event_of(subspace: Subspace, kind: VersionKind, **fields: Any) -> VersionEvent:
    values: dict[str, Any] = {
        "update_ids": (),
        "task_ids": (),
        "lowest_energy_kept": 1.0,
        "mean_energy_kept": 1.0,
        "angle": 0.0,
        "num_factors": 6,
        "subspace_bytes": 1000,
    }
    return VersionEvent(version=subspace.version, merged_at=NOW, kind=kind, **(values | fields))


def encode(
    store: Store, subspace: Subspace, kept: KeptTasks, event: VersionEvent, **fields: Any
) -> EncodedVersion:
    tasks = {name: replace(task, version=subspace.version) for name, task in kept.tasks.items()}
    version = VersionCommit(subspace, tasks, kept.entries, event, **fields)
    return encode_version(version, parent_digest=store.digest(store.current_version))


def entries_of(store: Store) -> Mapping[str, TaskEntry]:
    return store.tasks(store.current_version).entries
