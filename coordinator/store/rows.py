"""Questions to the tables, and changes of them, as functions of a connection."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa

from coordinator.store.base import (
    FINISHED,
    MergeMark,
    TaskEntry,
    UpdateRecord,
    VersionCommit,
    summarise,
)
from coordinator.store.tables import (
    audit,
    audit_to_row,
    facts,
    record_from_row,
    refused_updates,
    tasks,
    updates,
    versions,
)
from share_dist.wire.records import AuditEntry, NewerUpdate, TaskSummary, UpdateState, VersionKind

ItemT = TypeVar("ItemT")

_SEEN_SECONDS = "seen_seconds"
"""Name of a fact."""

BATCH = 500
"""Names in one statement."""


def fact(rows: sa.Connection, name: str) -> str:
    """Return a single value."""
    value: str = rows.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar_one()
    return value


def seen_seconds_in(rows: sa.Connection) -> float:
    """Return the latest time that an owner has told of; 0 if none has."""
    select = sa.select(facts.c.value).where(facts.c.name == _SEEN_SECONDS)
    return float(rows.execute(select).scalar_one_or_none() or 0.0)


def note_seen_seconds(rows: sa.Connection, seconds: float) -> None:
    """Remember the latest time that an owner has told of."""
    rows.execute(sa.delete(facts).where(facts.c.name == _SEEN_SECONDS))
    rows.execute(sa.insert(facts).values(name=_SEEN_SECONDS, value=repr(seconds)))


def add_audit(rows: sa.Connection, entries: Iterable[AuditEntry]) -> None:
    """Write lines into the audit log, each with the next sequence number."""
    last: int = rows.execute(sa.select(sa.func.max(audit.c.sequence))).scalar() or 0
    lines = [
        audit_to_row(replace(entry, sequence=last + index))
        for index, entry in enumerate(entries, 1)
    ]
    if lines:
        rows.execute(sa.insert(audit), lines)


# --- updates --------------------------------------------------------------------------------


def select_updates(rows: sa.Connection, select: "sa.Select[Any]") -> tuple[UpdateRecord, ...]:
    """Return the records that a ``SELECT`` of ``updates`` finds."""
    return tuple(record_from_row(row) for row in rows.execute(select))


def find_update(rows: sa.Connection, subspace: str, update_id: str) -> UpdateRecord | None:
    """Return an update's record, if it was ever kept."""
    select = sa.select(updates).where(
        updates.c.subspace == subspace, updates.c.update_id == update_id
    )
    return next(iter(select_updates(rows, select)), None)


def task_owner(rows: sa.Connection, subspace: str, task_id: str) -> str | None:
    """Whom a task belongs to; None if it was never pushed."""
    select = sa.select(tasks.c.owner).where(
        tasks.c.subspace == subspace, tasks.c.task_id == task_id
    )
    owner: str | None = rows.execute(select).scalar_one_or_none()
    return owner


def next_sequence(rows: sa.Connection, subspace: str) -> int:
    """Return the place of the next update in the order of arrival."""
    newest = 0
    for table in (updates, refused_updates):
        select = sa.select(sa.func.max(table.c.sequence)).where(table.c.subspace == subspace)
        newest = max(newest, rows.execute(select).scalar() or 0)
    return newest + 1


def forget_refused(rows: sa.Connection, subspace: str, limit: int) -> None:
    """Keep the newest of the pushes that were refused."""
    mine, sequence = refused_updates.c.subspace == subspace, refused_updates.c.sequence
    beyond = sa.select(sequence).where(mine).order_by(sequence.desc()).offset(limit).limit(1)
    newest_beyond = rows.execute(beyond).scalar()
    if newest_beyond is not None:
        rows.execute(sa.delete(refused_updates).where(mine, sequence <= newest_beyond))


def finished_updates(rows: sa.Connection, subspace: str) -> Sequence["sa.Row[Any]"]:
    """Return the rows of updates that wait for nothing and whose payloads are kept."""
    columns = ("update_id", "state", "base_version", "update_bytes", "payload_digest")
    select = sa.select(*(updates.c[name] for name in columns)).where(
        updates.c.subspace == subspace,
        updates.c.let_go_at.is_(None),
        updates.c.state.in_([state.value for state in FINISHED]),
    )
    return rows.execute(select.order_by(updates.c.sequence)).all()


def let_go_of(rows: sa.Connection, subspace: str, update_ids: Collection[str]) -> None:
    """Note of updates that their payloads are no longer kept."""
    here = updates.c.subspace == subspace
    current = newest_version(rows, subspace)
    for batch in batches(update_ids):
        those = sa.and_(here, updates.c.update_id.in_(batch))
        rows.execute(sa.update(updates).where(those).values(let_go_at=current))


# --- versions -------------------------------------------------------------------------------


def newest_version(rows: sa.Connection, subspace: str) -> int:
    """Return the newest version; 0 if there is none yet."""
    newest = sa.select(sa.func.max(versions.c.version)).where(versions.c.subspace == subspace)
    return int(rows.execute(newest).scalar() or 0)


def change_updates(rows: sa.Connection, subspace: str, commit: VersionCommit) -> None:
    """Bring the updates into the states that a new version says."""
    if commit.event.kind is VersionKind.MERGE:
        _mark_merged(rows, subspace, commit.marks, commit.version)
    elif commit.event.kind is VersionKind.ROLLBACK:
        _roll_back(rows, subspace, commit)
    else:
        _drop(rows, subspace, commit)


def replace_entries(rows: sa.Connection, subspace: str, entries: Mapping[str, TaskEntry]) -> None:
    """Let the tasks be told by what the current version holds of each."""
    held = sa.and_(tasks.c.subspace == subspace, tasks.c.update_id.is_not(None))
    rows.execute(sa.update(tasks).where(held).values(update_id=None, cumulative_drift=0.0))
    one = sa.and_(tasks.c.subspace == subspace, tasks.c.task_id == sa.bindparam("of_task"))
    statement = sa.update(tasks).where(one)
    lines = [
        {
            "of_task": task_id,
            "update_id": entry.update_id,
            "cumulative_drift": entry.cumulative_drift,
        }
        for task_id, entry in entries.items()
    ]
    if lines:
        changed = rows.execute(statement, lines)
        assert changed.rowcount in {len(lines), -1}, "an entry names a task that was never pushed"


def _mark_merged(
    rows: sa.Connection, subspace: str, marks: Mapping[str, MergeMark], version: int
) -> None:
    for update_id, mark in marks.items():
        changed = rows.execute(
            sa.update(updates)
            .where(updates.c.subspace == subspace, updates.c.update_id == update_id)
            .where(updates.c.state == UpdateState.PENDING.value)
            .values(
                state=UpdateState.MERGED.value,
                reason="",
                version=version,
                lag=mark.lag,
                angle=mark.angle,
                truncation=mark.truncation,
            )
        )
        assert changed.rowcount == 1, update_id


def _roll_back(rows: sa.Connection, subspace: str, commit: VersionCommit) -> None:
    event = commit.event
    reason = f"version {event.version} went back to version {event.content_version}"
    merged_since = sa.and_(
        updates.c.subspace == subspace,
        updates.c.state == UpdateState.MERGED.value,
        updates.c.version > event.content_version,
    )
    held = [
        sa.and_(updates.c.subspace == subspace, updates.c.update_id.in_(update_ids))
        for update_ids in batches([entry.update_id for entry in commit.entries.values()])
    ]
    for those in held:
        rows.execute(
            sa.update(updates)
            .where(those, updates.c.state != UpdateState.MERGED.value)
            .values(version=event.version)
        )
    rows.execute(
        sa.update(updates)
        .where(merged_since)
        .values(state=UpdateState.ROLLED_BACK.value, reason=reason)
    )
    for those in held:
        rows.execute(
            sa.update(updates).where(those).values(state=UpdateState.MERGED.value, reason="")
        )


def _drop(rows: sa.Connection, subspace: str, commit: VersionCommit) -> None:
    reason = f"version {commit.version} removed the task"
    for task_ids in batches(commit.event.task_ids):
        gone = sa.and_(updates.c.subspace == subspace, updates.c.task_id.in_(task_ids))
        rows.execute(
            sa.update(updates).where(gone).values(state=UpdateState.DROPPED.value, reason=reason)
        )


def compactable(
    rows: sa.Connection, subspace: str, asked: Collection[int]
) -> Sequence["sa.Row[Any]"]:
    """Return the rows of those versions that are kept and not the newest, oldest first."""
    older = sa.select(versions).where(
        versions.c.subspace == subspace,
        versions.c.is_kept,
        versions.c.version < newest_version(rows, subspace),
    )
    found = rows.execute(older.order_by(versions.c.version))
    return [row for row in found if row.version in {*asked}]


# --- tasks ----------------------------------------------------------------------------------


def summaries(
    rows: sa.Connection, subspace: str, *where: "sa.ColumnElement[bool]", limit: int = 0
) -> tuple[TaskSummary, ...]:
    """Describe tasks, by name: each by what the current version holds of it, else by its newest."""
    shown = sa.func.coalesce(tasks.c.update_id, tasks.c.newest_update_id)
    newest = updates.alias("newest")
    select = (
        sa.select(
            updates,
            tasks.c.cumulative_drift,
            newest.c.update_id.label("newest_update_id"),
            newest.c.state.label("newest_state"),
            newest.c.reason.label("newest_reason"),
        )
        .join(tasks, sa.and_(updates.c.subspace == tasks.c.subspace, updates.c.update_id == shown))
        .join(
            newest,
            sa.and_(
                newest.c.subspace == tasks.c.subspace,
                newest.c.update_id == tasks.c.newest_update_id,
            ),
        )
        .where(tasks.c.subspace == subspace, *where)
        .order_by(tasks.c.task_id)
        .limit(limit or None)
    )
    return tuple(
        summarise(
            record_from_row(row),
            row.cumulative_drift,
            NewerUpdate(row.newest_update_id, UpdateState(row.newest_state), row.newest_reason),
        )
        for row in rows.execute(select)
    )


def batches(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    """Part names into lists that one statement can hold."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch
