"""Walks over everything that a catalog keeps, and says what is broken and what to do."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from coordinator.store.base import Finding
from coordinator.store.database import Database
from coordinator.store.format import (
    content_digest,
    event_from_json,
    origin_digest,
    tasks_from_bytes,
    version_digest,
)
from coordinator.store.payloads import Payloads
from coordinator.store.rows import fact
from coordinator.store.tables import subspaces, tasks, updates, versions
from share_dist.errors import ShareError, StoreCorrupt

RESTORE = "restore the store from a backup"
RESTORE_OR_DROP = "restore the store from a backup, or drop this update"
RESTORE_OR_COMPACT = "restore the store from a backup, or compact this version"


def findings(database: Database, payloads: Payloads) -> Iterator[Finding]:
    """
    Check the database's own pages, every payload, the chain of versions, and what names what.

    Args:
        database: It may be in use meanwhile, also by another process.
        payloads: Those that its rows name.
    """
    yield from _pages(database)
    for name in database.read(
        lambda rows: rows.execute(sa.select(subspaces.c.name)).scalars().all()
    ):
        yield from _updates(database, payloads, name)
        yield from _versions(database, payloads, name)
        yield from _tasks(database, payloads, name)
    yield from _leftovers(database, payloads)


def _pages(database: Database) -> Iterator[Finding]:
    if not database.is_sqlite:
        return
    said = database.read(
        lambda rows: rows.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    )
    for line in said:
        if line != "ok":
            yield Finding(database.name, str(line), RESTORE)


def _updates(database: Database, payloads: Payloads, name: str) -> Iterator[Finding]:
    columns = (
        updates.c.update_id,
        updates.c.metadata,
        updates.c.payload_digest,
        updates.c.content_digest,
        updates.c.let_go_at,
    )
    select = sa.select(*columns).where(updates.c.subspace == name).order_by(updates.c.sequence)
    for row in database.read(lambda rows: rows.execute(select).all()):
        subject = f"update {row.update_id} of subspace {name!r}"
        if row.let_go_at is None and _is_still_there(database, name, row.update_id):
            yield from _payload(payloads, row.payload_digest, subject, RESTORE_OR_DROP)
        if content_digest(row.metadata, row.payload_digest) != row.content_digest:
            yield Finding(
                subject, "its metadata is not what the worker said: digests differ", RESTORE_OR_DROP
            )


def _is_still_there(database: Database, name: str, update_id: str) -> bool:
    """Whether an update's payload was not let go of while the walk went on."""
    one = sa.and_(updates.c.subspace == name, updates.c.update_id == update_id)
    select = sa.select(updates.c.let_go_at).where(one)
    return database.read(lambda rows: rows.execute(select).scalar()) is None


def _versions(database: Database, payloads: Payloads, name: str) -> Iterator[Finding]:
    store_id = database.read(lambda rows: fact(rows, "store_id"))
    select = sa.select(versions).where(versions.c.subspace == name).order_by(versions.c.version)
    parent = origin_digest(store_id, name)
    found = database.read(lambda rows: rows.execute(select).all())
    for number, row in enumerate(found, 1):
        subject = f"version {row.version} of subspace {name!r}"
        if row.version != number:
            yield Finding(subject, f"version {number} should come before it and is gone", RESTORE)
            return
        yield from _chain(row, parent, subject)
        parent = row.digest
        for digest in (row.subspace_digest, row.tasks_digest, row.rotation_digest):
            if digest and row.is_kept and _is_still_kept(database, row):
                yield from _payload(payloads, digest, subject, RESTORE_OR_COMPACT)


def _chain(row: "sa.Row[Any]", parent: str, subject: str) -> Iterator[Finding]:
    event = event_from_json(row.event)
    if event.parent_digest != parent:
        yield Finding(
            subject,
            f"it names {event.parent_digest[:12]} as the version before, which is {parent[:12]}",
            RESTORE,
        )
    expected = version_digest(event, row.subspace_digest, row.tasks_digest)
    if not event.digest == row.digest == expected:
        yield Finding(
            subject,
            f"its digest should be {expected[:12]}, found {row.digest[:12]} and {event.digest[:12]}",
            RESTORE,
        )


def _is_still_kept(database: Database, row: "sa.Row[Any]") -> bool:
    """Whether a version was not compacted while the walk went on."""
    one = sa.and_(versions.c.subspace == row.subspace, versions.c.version == row.version)
    return bool(
        database.read(lambda rows: rows.execute(sa.select(versions.c.is_kept).where(one)).scalar())
    )


def _tasks(database: Database, payloads: Payloads, name: str) -> Iterator[Finding]:
    """Compare what the tasks' rows say with the newest version, and both with the updates."""
    with database.snapshot() as rows:
        mine = sa.select(versions).where(versions.c.subspace == name)
        newest = rows.execute(mine.order_by(versions.c.version.desc()).limit(1)).one_or_none()
        held = rows.execute(sa.select(tasks).where(tasks.c.subspace == name)).all()
        ids = sa.select(updates.c.update_id).where(updates.c.subspace == name)
        known = {*rows.execute(ids).scalars()}
    for row in held:
        unknown = sorted({row.newest_update_id, row.update_id or ""} - known - {""})
        if unknown:
            yield Finding(
                f"task {row.task_id!r} of subspace {name!r}",
                f"it names updates that are gone: {', '.join(unknown)}",
                RESTORE,
            )
    expected = {row.task_id: row.update_id for row in held if row.update_id}
    yield from _entries(payloads, newest, expected, name)


def _entries(
    payloads: Payloads, newest: "sa.Row[Any] | None", expected: dict[str, str], name: str
) -> Iterator[Finding]:
    entries: dict[str, str] = {}
    if newest is not None:
        try:
            kept = tasks_from_bytes(payloads.read(newest.tasks_digest), version=newest.version)
        except ShareError:
            return  # the walk over the versions tells
        entries = {task_id: entry.update_id for task_id, entry in kept.entries.items()}
    for task_id in sorted(entries.keys() | expected.keys()):
        if entries.get(task_id) != expected.get(task_id):
            yield Finding(
                f"task {task_id!r} of subspace {name!r}",
                f"the newest version holds update {entries.get(task_id)} of it, its row names "
                f"{expected.get(task_id)}",
                RESTORE,
            )


def _payload(payloads: Payloads, digest: str, subject: str, remedy: str) -> Iterator[Finding]:
    try:
        payloads.read(digest)
    except StoreCorrupt as error:
        yield Finding(subject, error.message.partition(": ")[0], remedy)


def _leftovers(database: Database, payloads: Payloads) -> Iterator[Finding]:
    for digest in database.read(payloads.leftovers):
        yield Finding(
            payloads.blobs.name_of(digest),
            "no row names this file",
            "none needed: a crash left it, and it is removed when the store is next opened",
            is_harmless=True,
        )
