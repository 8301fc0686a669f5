"""What an operator asks for, on values and records: one function per call, no gRPC in sight."""

import asyncio
import difflib
import itertools
from collections.abc import Collection, Iterator

from coordinator.access import Principal
from coordinator.candidate import (
    Candidate,
    Stopwatch,
    candidate_of_removal,
    candidate_of_rollback,
    largest_drifts,
)
from coordinator.compaction import waiting_updates
from coordinator.comparison import compare
from coordinator.screening import merge_of, truncation_of
from coordinator.state import Call, Coordinator, Lineage
from coordinator.store.base import Store, UpdateRecord, not_owner
from coordinator.versions import Snapshot
from share_dist.core.measure import measure_update
from share_dist.core.outcome import MergeOutcome
from share_dist.core.prepared import prepare_merge
from share_dist.core.removal import remove_tasks
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import (
    ConfigError,
    SubspaceError,
    UnknownTask,
    VersionCompacted,
    WrongState,
)
from share_dist.telemetry import Event
from share_dist.wire.records import (
    AuditEntry,
    Compaction,
    LayerMeasure,
    Receipt,
    Removal,
    SubspaceSummary,
    TaskMove,
    UpdateInspection,
    UpdateState,
    UpdateSummary,
    VersionDiff,
    VersionEvent,
    VersionKind,
    VersionSummary,
)

PAGE = 1000
"""Most records of one answer; a servicer may cut it shorter, for its bytes."""

_REPEAT_WITHIN_VERSIONS = 100
"""How far back a removal is looked for that is asked for again, as its answer may have been lost."""


# --- what is there ------------------------------------------------------------------------------


async def list_subspaces(
    coordinator: Coordinator, principal: Principal
) -> tuple[SubspaceSummary, ...]:
    """Describe every named subspace; of one in which the caller may do nothing, only its name."""
    return await asyncio.to_thread(
        lambda: tuple(
            _subspace_summary(lineage, coordinator.access.role(principal, lineage.name) or "")
            for lineage in coordinator.lineages.all()
        )
    )


def _subspace_summary(lineage: Lineage, role: str) -> SubspaceSummary:
    if not role:
        return SubspaceSummary(lineage.name, None, 0, 0, 0, 0)
    snapshot, store = lineage.writer.snapshot, lineage.store
    return SubspaceSummary(
        name=lineage.name,
        fingerprint=store.fingerprint(),
        current_version=snapshot.version,
        first_version=store.first_version,
        num_tasks=len(snapshot.tasks),
        num_pending=store.num_updates(UpdateState.PENDING),
        role=role,
    )


async def list_versions(
    call: Call, after_version: int, page_size: int
) -> tuple[tuple[VersionSummary, ...], int]:
    """Return the oldest versions after one, and the current version."""
    store, current_version = call.lineage.store, call.lineage.writer.snapshot.version
    found = await asyncio.to_thread(store.versions, after_version, _limit(page_size))
    # a version is in the store a moment before everyone may know of it
    return tuple(each for each in found if each.event.version <= current_version), current_version


async def diff_versions(call: Call, version_a: int, version_b: int) -> VersionDiff:
    """
    Say what lies between two versions.

    Raises:
        VersionInFuture: One does not exist yet.
        VersionCompacted: One is no longer kept.
    """
    store = call.lineage.store
    return await call.look(
        lambda: compare(Snapshot.load(store, version_a), Snapshot.load(store, version_b))
    )


async def task_history(call: Call, task_id: str) -> tuple[TaskMove, ...]:
    """
    Say how far each version moved a task, oldest first; of versions that did, or that merged it.

    Raises:
        UnknownTask: It was never pushed.
    """
    return await call.look(lambda: _history(call.lineage, task_id))


def _history(lineage: Lineage, task_id: str) -> tuple[TaskMove, ...]:
    if lineage.store.owner(task_id) is None:
        raise unknown_task(lineage.writer.snapshot, task_id)
    moves = (_move(lineage.store, event, task_id) for event in _events(lineage.store, 0))
    return tuple(move for move in moves if move.drift > 0 or move.is_own_merge)


def _move(store: Store, event: VersionEvent, task_id: str) -> TaskMove:
    is_own_merge = event.kind is VersionKind.MERGE and task_id in event.task_ids
    drift = store.drift(event.version).get(task_id, 0.0) if event.num_moved else 0.0
    return TaskMove(event.version, drift, is_own_merge, event.update_ids)


def _events(store: Store, after_version: int) -> Iterator[VersionEvent]:
    while events := store.events(after_version, PAGE):
        yield from events
        after_version = events[-1].version


async def list_audit(
    coordinator: Coordinator,
    after_sequence: int,
    page_size: int,
    before_sequence: int | None = None,
) -> tuple[AuditEntry, ...]:
    """
    Return lines of the audit log, oldest first.

    Args:
        coordinator: Whose.
        after_sequence: Only those after this one.
        page_size: At most so many: the oldest, or the newest where ``before_sequence`` is given.
        before_sequence: Only those before this one; 0 for the end of the log.
    """
    return await asyncio.to_thread(
        coordinator.catalog.audit,
        after_sequence,
        _limit(page_size),
        before_sequence=before_sequence,
    )


# --- versions -----------------------------------------------------------------------------------


async def rollback(call: Call, version: int, reason: str) -> VersionEvent:
    """
    Make a new version with the content of an old one; the lineage between stays.

    Asked again at once, or while it is being done, it is answered as the first time.

    Args:
        call: By whom, and in which subspace.
        version: The old one; 0 for the empty subspace.
        reason: Kept with the new version's report.

    Raises:
        VersionInFuture: There is no such version yet.
        VersionCompacted: It is no longer kept.
        WrongState: It holds a task that was removed since.
        ConfigError: It is the current version.
    """
    lineage = call.lineage
    # after what is in hand: it may be the very same, asked by who was cut off meanwhile
    repeated = await lineage.writer.between_merges(lambda: _repeated_rollback(lineage, version))
    if repeated is not None:
        return repeated

    def make(current: Snapshot) -> Candidate:
        stopwatch = Stopwatch(call.clock)
        lineage.store.require_version(version)
        if version == current.version:
            raise ConfigError(
                f"version {version} is the current one: there is nothing to go back to",
                key="version",
            )
        target = Snapshot.load(lineage.store, version)
        _require_nothing_dropped(lineage.store, target)
        origin = origin_of(lineage.store, version)
        return candidate_of_rollback(target, origin, reason, current, stopwatch)

    with lineage.holds.hold(version):
        sentence = _because(f"rollback to version {version}", reason)
        made = await lineage.writer.commit(make, by=call.principal.name, reason=sentence)
    lineage.writer.notify()
    return made.commit.event


def origin_of(store: Store, version: int) -> VersionEvent | None:
    """Return the event of the merge or removal that made a version's content; None for nothing."""
    while version:
        (event,) = store.events(version - 1, 1)
        if event.kind is not VersionKind.ROLLBACK:
            return event
        version = event.content_version
    return None


def _repeated_rollback(lineage: Lineage, version: int) -> VersionEvent | None:
    store, current_version = lineage.store, lineage.writer.snapshot.version
    if not 0 <= version < current_version:
        return None
    (newest,) = store.events(current_version - 1, 1)
    if newest.kind is not VersionKind.ROLLBACK:
        return None
    return newest if origin_of(store, newest.version) == origin_of(store, version) else None


def _require_nothing_dropped(store: Store, target: Snapshot) -> None:
    """What was taken out stays out: a rollback must not bring it back unnoticed."""
    for task_id, entry in target.entries.items():
        if store.update_record(entry.update_id).state is UpdateState.DROPPED:
            raise WrongState(
                f"version {target.version} holds task {task_id!r} by update {entry.update_id}, "
                "which was removed or dropped since: go back to a version without it, or push it "
                "again after going back to an earlier one",
                subject=task_id,
                state=UpdateState.DROPPED.value,
            )


async def compact(call: Call, keep_versions: int, *, dry_run: bool) -> Compaction:
    """
    Let go of old versions, but for those that someone still needs, and of payloads of updates.

    Raises:
        ConfigError: ``keep_versions`` is below 1.
    """
    lineage = call.lineage
    compaction = await lineage.writer.between_merges(
        lambda: lineage.compactor.compact(keep_versions, by=call.principal.name, dry_run=dry_run)
    )
    if not dry_run:
        lineage.writer.tell_of_compaction(compaction)
    return compaction


# --- tasks --------------------------------------------------------------------------------------


async def remove_task(call: Call, task_id: str, reason: str, worker_id: str = "") -> Removal:
    """
    Take a task out of the subspace, and drop all updates of it.

    Asked again at once, or while it is being done, it is answered as the first time.

    Args:
        call: By whom: an administrator, or the owner of the task.
        task_id: The task, merged or waiting.
        reason: Kept with the new version's report.
        worker_id: Who asks, where nobody is authenticated; empty for the operator.

    Raises:
        UnknownTask: It was never pushed, or is gone.
        NotPermitted: It belongs to somebody else.
    """
    lineage = call.lineage
    await asyncio.to_thread(_require_owner, call, task_id, worker_id)
    # after what is in hand: it may be the very same, asked by who was cut off meanwhile
    repeated = await lineage.writer.between_merges(lambda: _repeated_removal(lineage, task_id))
    if repeated is not None:
        return repeated

    dropped: list[str] = []

    def make(current: Snapshot) -> Candidate:
        dropped[:] = _updates_of(lineage, current, task_id)
        stopwatch = Stopwatch(call.clock)
        outcome = _without(lineage, current, task_id)
        return candidate_of_removal(outcome, task_id, reason, current, stopwatch)

    sentence = _because(f"task {task_id!r} was taken out", reason)
    made = await lineage.writer.commit(make, by=call.principal.name, reason=sentence)
    for update_id in dropped:
        _tell_of_change(call, Event.UPDATE_DROPPED, update_id, task_id, sentence)
    lineage.writer.notify()
    return _removal(made.commit.event, made.commit.report)


def _updates_of(lineage: Lineage, current: Snapshot, task_id: str) -> list[str]:
    """The update that a version holds of a task, and those that wait or were set aside."""
    held = [current.entries[task_id].update_id] if task_id in current.entries else []
    waiting = waiting_updates(lineage.store)
    return [*held, *(each.update_id for each in waiting if each.task_id == task_id)]


def _require_owner(call: Call, task_id: str, worker_id: str) -> None:
    """Raise unless the caller is an administrator who acts as one, or the owner of a task."""
    access, store = call.coordinator.access, call.lineage.store
    owner = store.owner(task_id)
    if owner is None:
        raise unknown_task(call.lineage.writer.snapshot, task_id)
    if access.role(call.principal, call.lineage.name) == "admin" and not worker_id:
        return
    claimed = access.owner(call.principal, worker_id)
    if claimed != owner:
        raise not_owner(f"task {task_id!r}", owner, claimed)


def _repeated_removal(lineage: Lineage, task_id: str) -> Removal | None:
    store, current_version = lineage.store, lineage.writer.snapshot.version
    if not _is_gone(lineage, task_id):
        return None
    recent = _events(store, max(0, current_version - _REPEAT_WITHIN_VERSIONS))
    found = [e for e in recent if e.kind is VersionKind.REMOVAL and task_id in e.task_ids]
    return _removal(found[-1], store.report(found[-1].version)) if found else None


def _removal(event: VersionEvent, report: object) -> Removal:
    assert isinstance(report, dict), report
    return Removal(event, float(report["residue_bound"]))


def _is_gone(lineage: Lineage, task_id: str) -> bool:
    """Whether nothing of a task that was pushed once is left to be taken out."""
    store = lineage.store
    if store.task_summary(task_id).state is not UpdateState.DROPPED:
        return False
    return all(record.task_id != task_id for record in waiting_updates(store))


def _without(lineage: Lineage, current: Snapshot, task_id: str) -> MergeOutcome:
    config = lineage.config
    if task_id in current.tasks:
        return remove_tasks(
            current.subspace,
            current.tasks,
            (task_id,),
            config.num_factors,
            config.energy,
            oversample=config.oversample,
            keeps_factors=config.drift_budget is not None,
            max_bytes=config.max_bytes,
        )
    if _is_gone(lineage, task_id):
        raise unknown_task(current, task_id)
    # it waits, or was rolled back: the subspace stays as it is, and its updates are dropped
    return prepare_merge(current.subspace, current.tasks, ()).cut(truncation_of(config))


def unknown_task(snapshot: Snapshot, task_id: str) -> UnknownTask:
    """Make the error for a task of which nothing is here, with the nearest names that are."""
    compared = itertools.islice(snapshot.tasks, PAGE)
    nearest = difflib.get_close_matches(task_id, compared, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, nearest))}?" if nearest else "see the list of tasks"
    return UnknownTask(
        f"nothing is here of a task {task_id!r}: {hint}",
        task_id=task_id,
        nearest=", ".join(nearest),
    )


# --- updates ------------------------------------------------------------------------------------


async def list_updates(
    call: Call, states: Collection[UpdateState], before_sequence: int, page_size: int
) -> tuple[UpdateSummary, ...]:
    """Return updates by state, newest first; of pushes that were refused, the last ones."""
    records = await asyncio.to_thread(
        _updates_of_states, call.lineage.store, {*(states or UpdateState)}, before_sequence, _limit(page_size)
    )  # fmt: skip
    return tuple(map(_update_summary, records))


def _updates_of_states(
    store: Store, states: Collection[UpdateState], before_sequence: int, limit: int
) -> list[UpdateRecord]:
    found = [*store.updates(states, before_sequence=before_sequence, limit=limit)]
    if UpdateState.REFUSED in states:
        found += store.refused(before_sequence=before_sequence, limit=limit)
    return sorted(found, key=lambda record: -record.sequence)[:limit]


async def inspect_update(call: Call, update_id: str) -> UpdateInspection:
    """
    Measure an update, and what it alone would do to others; nothing of one without a payload.

    Raises:
        UnknownUpdate: It was never kept.
        VersionCompacted: The version that it was trained on is no longer kept.
        StoreCorrupt: What is on disk is not what was written.
    """
    return await call.look(lambda: _inspect(call.lineage, update_id))


def _inspect(lineage: Lineage, update_id: str) -> UpdateInspection:
    record = lineage.store.update_record(update_id)
    if record.let_go_at is not None:
        return UpdateInspection(_update_summary(record), (), {})
    with lineage.holds.hold(record.base_version):
        update = lineage.store.load_update(update_id)
        base = lineage.versions.subspace(record.base_version)
    current = lineage.writer.snapshot
    measures = measure_update(update, base, lineage.versions.subspace(current.version))
    return UpdateInspection(
        update=_update_summary(record),
        layers=tuple(
            LayerMeasure(
                layer=name,
                norm=measure.norm,
                largest_singular=measure.largest_singular,
                smallest_singular=measure.smallest_singular,
                energy_outside=measure.energy_outside,
            )
            for name, measure in measures.items()
        ),
        influence=_influence(lineage, record, update, base),
    )


def _influence(
    lineage: Lineage, record: UpdateRecord, update: TaskUpdate, base: Subspace
) -> dict[str, float]:
    if record.state is UpdateState.MERGED:
        return {}
    try:
        outcome = merge_of(
            [update], lineage.writer.snapshot, {update.base_version: base}, lineage.config
        )
    except (SubspaceError, ArithmeticError):
        return {}  # what cannot be merged moves nobody; the reason of its state says why
    return largest_drifts(outcome.report.drift)


async def replay_update(call: Call, update_id: str, reason: str) -> Receipt:
    """
    Let an update that was set aside or rolled back be merged after all.

    Who replays what was quarantined consents to what was suspicious about it, and this consent
    lasts, also where the drift budget, which holds as before, parks the update. Asked again, it is
    answered as the first time.

    Raises:
        UnknownUpdate: It was never kept.
        WrongState: It was dropped or refused, or a compaction let go of its payload.
        VersionCompacted: The version that it was trained on is no longer kept.
    """
    return await _change(call, update_id, UpdateState.PENDING, reason)


async def drop_update(call: Call, update_id: str, reason: str) -> Receipt:
    """
    Give an update that waits or was set aside up for good.

    Asked again, it is answered as the first time.

    Raises:
        UnknownUpdate: It was never kept.
        WrongState: It is merged: remove its task, or roll back.
    """
    return await _change(call, update_id, UpdateState.DROPPED, reason)


_DONE_BEFORE = {
    UpdateState.PENDING: {UpdateState.PENDING, UpdateState.MERGED},
    UpdateState.DROPPED: {UpdateState.DROPPED},
}
"""Asked-for state -> those in which nothing is left to be done."""

_WORDS = {
    UpdateState.PENDING: ("replayed", Event.UPDATE_REPLAYED),
    UpdateState.DROPPED: ("dropped", Event.UPDATE_DROPPED),
}


async def _change(call: Call, update_id: str, state: UpdateState, reason: str) -> Receipt:
    lineage, by = call.lineage, call.principal.name
    verb, event = _WORDS[state]
    sentence = _because(f"{verb} by {by}", reason)

    def work() -> tuple[UpdateRecord, bool]:
        record = lineage.store.update_record(update_id)
        if record.state in _DONE_BEFORE[state]:
            return record, False
        consents = state is UpdateState.PENDING
        if consents:
            _require_base(lineage.store, record)
        changed = lineage.store.change_state(update_id, state, sentence, by=by, consents=consents)
        return changed, True

    record, is_changed = await lineage.writer.between_merges(work)
    if is_changed:
        _tell_of_change(call, event, update_id, record.task_id, reason)
        lineage.writer.notify()
    return record.receipt()


def _require_base(store: Store, record: UpdateRecord) -> None:
    """Raise unless the version is kept that an update is merged against."""
    try:
        store.require_version(record.base_version)
    except VersionCompacted as error:
        raise VersionCompacted(
            f"update {record.update_id} was trained on version {record.base_version}, which was "
            f"compacted, those from {error.first_version} on are kept: it cannot be merged any more. "
            "Let its worker push it again, from a version that is kept, or drop it",
            **error.details,
        ) from None


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


def _tell_of_change(call: Call, event: Event, update_id: str, task_id: str, reason: str) -> None:
    call.lineage.log.info(
        event.value,
        update_id=update_id,
        task_id=task_id,
        principal=call.principal.name,
        reason=reason,
    )


def _update_summary(record: UpdateRecord) -> UpdateSummary:
    return UpdateSummary(
        sequence=record.sequence,
        receipt=record.receipt(),
        task_id=record.task_id,
        worker_id=record.worker_id,
        base_version=record.base_version,
        pushed_at=record.pushed_at,
        update_bytes=record.update_bytes,
        digest=record.content_digest,
        let_go_at=record.let_go_at,
    )


def _limit(page_size: int) -> int:
    return min(page_size or PAGE, PAGE)
