"""What each call does, on values and records: one function per RPC, no gRPC in sight."""

import asyncio
import difflib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version as release_of

import torch

from coordinator import faults
from coordinator.admission import Admitted, Refused, admit, check_fingerprint, check_version
from coordinator.leases import WorkerLease
from coordinator.state import Coordinator
from coordinator.store.base import Kept, Store, UpdateRecord
from coordinator.versions import ServedPayload, Snapshot
from share_dist.core.values import WIRE_VERSION, Fingerprint, LayerUpdate, SideUpdate, TaskUpdate
from share_dist.errors import (
    ConfigError,
    Overloaded,
    ShareError,
    UnknownTask,
    VersionCompacted,
)
from share_dist.telemetry import Event
from share_dist.wire import codec
from share_dist.wire.records import (
    CoordinatorStatus,
    Lease,
    Receipt,
    TaskSummary,
    UpdateState,
    VersionEvent,
    Wait,
    WorkerStatus,
)

MAX_FEATURES = 2**31
"""Most features of one side of a layer."""

_MAX_COMPARED_TASKS = 1000
"""How many names an unknown one is compared with: each takes up to a millisecond."""


@dataclass(frozen=True, slots=True)
class Push:
    """A decoded PushUpdate."""

    update: TaskUpdate
    worker_id: str
    fingerprint_digest: str
    wait: Wait = "durable"


@dataclass(frozen=True, slots=True)
class AnnouncedPush:
    """What is known of a PushUpdate before its tensors have come."""

    update_id: str
    task_id: str
    worker_id: str
    lease_epoch: int
    base_version: int
    fingerprint_digest: str


@dataclass(frozen=True, slots=True)
class ServedSubspace:
    """A version as it is sent; no payload when the caller has it already."""

    version: int
    fingerprint: Fingerprint | None
    served: ServedPayload | None


@dataclass(frozen=True, slots=True)
class ServedTask:
    """One task in the bases of a version, as it is sent."""

    summary: TaskSummary
    version: int
    served: ServedPayload


async def register(
    coordinator: Coordinator, worker_id: str, fingerprint: Fingerprint | None
) -> Lease:
    """
    Give a worker a lease; the first fingerprint is what the coordinator works on from then on.

    Raises:
        FingerprintMismatch: The worker's model, layers or metric are not the coordinator's.
        ConfigError: The fingerprint has no layers, or an empty one.
        WireError: It has layers of which no update could be sent.
    """
    if fingerprint is not None:
        await _bind(coordinator, fingerprint)
    epoch = await asyncio.to_thread(coordinator.store.next_epoch, worker_id)
    coordinator.leases.grant(worker_id, epoch, coordinator.clock.monotonic_seconds())
    coordinator.log.info(Event.WORKER_REGISTERED.value, worker_id=worker_id, lease_epoch=epoch)
    return await _lease(coordinator, worker_id, epoch)


async def heartbeat(coordinator: Coordinator, worker_id: str, lease_epoch: int) -> Lease:
    """
    Keep a worker's lease.

    Raises:
        LeaseExpired: It has ended or was taken over.
    """
    coordinator.leases.renew(worker_id, lease_epoch, coordinator.clock.monotonic_seconds())
    return await _lease(coordinator, worker_id, lease_epoch)


async def announce_push(coordinator: Coordinator, push: AnnouncedPush) -> None:
    """
    Refuse a push by its header alone, before its tensors cost anything.

    A push that repeats a known one is let through: what became of that one is its answer.

    Raises:
        LeaseExpired: The worker's lease has ended or was taken over.
        FingerprintMismatch: The update is of another model, other layers or another metric.
        VersionInFuture: Its base version does not exist.
        BaseVersionTooOld: Its base version is no longer kept.
        Overloaded: Too many updates wait.
    """
    store = coordinator.store
    if await asyncio.to_thread(store.knows, push.update_id):
        return
    try:
        now_seconds = coordinator.clock.monotonic_seconds()
        coordinator.leases.renew(push.worker_id, push.lease_epoch, now_seconds)
        await asyncio.to_thread(_check_announced, coordinator, push)
    except ShareError as error:
        _note_refusal(coordinator, push.update_id, push.task_id, error)
        raise


async def push_update(coordinator: Coordinator, push: Push) -> Receipt:
    """
    Admit an update and keep it; a push that is known gets the receipt of what became of it.

    Raises:
        UpdateConflict: The ``update_id`` is known with other content.
        LeaseExpired: The worker's lease has ended or was taken over.
        FingerprintMismatch: The update is of another model, other layers or another metric.
        VersionInFuture: Its base version does not exist.
        BaseVersionTooOld: Its base version is no longer kept.
        ShapeMismatch: It does not fit its base version.
        UpdateRefused: It may not be merged.
        Overloaded: Too many updates wait.
        StoreFull: There is no room; nothing was kept.
        StoreUnavailable: The disk fails; nothing was kept.
    """
    try:
        record = await asyncio.to_thread(coordinator.store.repeat_of, push.update)
        if record is None:
            record = await _admit(coordinator, push)
        else:
            _note_repeat(coordinator, record)
    except ShareError as error:
        _note_refusal(coordinator, push.update.update_id, push.update.task_id, error)
        raise
    coordinator.writer.notify()
    if push.wait == "merged":
        record = await coordinator.writer.settled(record.update_id)
    faults.reach("before-reply")
    return record.receipt()


async def pull_subspace(
    coordinator: Coordinator, version: int | None, held_version: int | None
) -> ServedSubspace:
    """
    Return the newest version or a given one, unless the caller has it.

    Raises:
        VersionInFuture: There is no such version yet.
        VersionCompacted: It is no longer kept.
    """
    version = coordinator.writer.snapshot.version if version is None else version
    coordinator.store.require_version(version)
    fingerprint = await asyncio.to_thread(coordinator.store.fingerprint)
    if version == held_version:
        return ServedSubspace(version, fingerprint, served=None)
    served = await asyncio.to_thread(coordinator.versions.served, version)
    return ServedSubspace(version, fingerprint, served)


async def pull_task(coordinator: Coordinator, task_id: str, version: int | None) -> ServedTask:
    """
    Return one task in the bases of the current version.

    Raises:
        UnknownTask: The current version does not contain it.
        VersionInFuture: There is no such version yet.
        VersionCompacted: The version is not the current one.
    """
    snapshot = coordinator.writer.snapshot
    if version is not None and version != snapshot.version:
        _require_newest(coordinator, version, snapshot.version)
    if task_id not in snapshot.tasks:
        raise await asyncio.to_thread(_unknown_task, snapshot, task_id)
    return await asyncio.to_thread(_served_task, coordinator.store, snapshot, task_id)


async def list_tasks(coordinator: Coordinator) -> tuple[tuple[TaskSummary, ...], int]:
    """Return every task, merged or waiting, and the current version."""
    summaries = await asyncio.to_thread(coordinator.store.task_summaries)
    return summaries, coordinator.writer.snapshot.version


async def watch_versions(
    coordinator: Coordinator, after_version: int | None
) -> AsyncIterator[VersionEvent]:
    """
    Yield every version after the one that the caller holds, until the coordinator stops.

    Raises:
        VersionInFuture: The caller holds a version that does not exist here.
        VersionCompacted: What came after it is no longer kept.
        Overloaded: There are too many watchers.
    """
    current = coordinator.broadcast.current_version
    after_version = current if after_version is None else after_version
    coordinator.store.require_version(after_version)
    async for event in coordinator.broadcast.watch(after_version):
        yield event


async def get_status(coordinator: Coordinator) -> CoordinatorStatus:
    """Tell how the coordinator is."""
    store = coordinator.store
    now_seconds = coordinator.clock.monotonic_seconds()
    return CoordinatorStatus(
        current_version=coordinator.writer.snapshot.version,
        first_version=store.first_version,
        fingerprint=await asyncio.to_thread(store.fingerprint),
        num_tasks=len(coordinator.writer.snapshot.tasks),
        num_pending=await asyncio.to_thread(store.num_updates, UpdateState.PENDING),
        num_quarantined=await asyncio.to_thread(store.num_updates, UpdateState.QUARANTINED),
        workers=tuple(
            _worker_status(coordinator, lease, now_seconds)
            for lease in coordinator.leases.all(now_seconds)
        ),
        num_watchers=coordinator.broadcast.num_watchers,
        started_at=coordinator.started_at,
        release=release_of("share-dist"),
    )


# --- register -----------------------------------------------------------------------------------


async def _bind(coordinator: Coordinator, fingerprint: Fingerprint) -> None:
    await asyncio.to_thread(_require_layers, fingerprint)
    # an unbound store would take anything: what this coordinator was told to do is checked first
    replace(fingerprint, metric=coordinator.config.metric, wire_version=WIRE_VERSION).require(
        fingerprint
    )
    if await asyncio.to_thread(coordinator.store.bind, fingerprint):
        coordinator.log.info(Event.STORE_BOUND.value, fingerprint_digest=fingerprint.digest)


def _require_layers(fingerprint: Fingerprint) -> None:
    """Refuse layers of which no update could ever be sent: a store is bound for ever."""
    sizes = [features for shape in fingerprint.layers.values() for features in shape]
    if not sizes or min(sizes) < 1 or max(sizes) > MAX_FEATURES:
        raise ConfigError(
            f"a fingerprint needs layers with 1 to {MAX_FEATURES} features on both sides, got "
            f"{len(fingerprint.layers)} layers: choose targets that the model has",
            key="layers",
        )
    # the codec itself, on an update without content: it knows which names and how many it takes
    empty = {
        name: LayerUpdate(*(_empty_side(features) for features in shape))
        for name, shape in fingerprint.layers.items()
    }
    codec.update_tensors_from_bytes(codec.update_to_bytes(TaskUpdate("-", "-", 0, empty)))


def _empty_side(features: int) -> SideUpdate:
    return SideUpdate(torch.zeros(0, 0), torch.zeros(features, 0), torch.zeros(0, 0))


async def _lease(coordinator: Coordinator, worker_id: str, lease_epoch: int) -> Lease:
    return Lease(
        worker_id=worker_id,
        lease_epoch=lease_epoch,
        duration_seconds=coordinator.leases.duration_seconds,
        current_version=coordinator.writer.snapshot.version,
        fingerprint=await asyncio.to_thread(coordinator.store.fingerprint),
    )


# --- push ---------------------------------------------------------------------------------------


async def _admit(coordinator: Coordinator, push: Push) -> UpdateRecord:
    now_seconds = coordinator.clock.monotonic_seconds()
    coordinator.leases.renew(push.worker_id, push.update.lease_epoch, now_seconds)
    record, is_new = await asyncio.to_thread(_check_and_keep, coordinator, push)
    if not is_new:
        _note_repeat(coordinator, record)
        return record
    coordinator.metrics.pushes.labels("admitted").inc()
    coordinator.metrics.update_bytes.inc(record.update_bytes)
    coordinator.log.info(
        Event.UPDATE_ADMITTED.value,
        update_id=record.update_id,
        task_id=record.task_id,
        worker_id=record.worker_id,
        base_version=record.base_version,
        update_bytes=record.update_bytes,
    )
    return record


def _announced(push: Push) -> AnnouncedPush:
    update = push.update
    return AnnouncedPush(
        update.update_id,
        update.task_id,
        push.worker_id,
        update.lease_epoch,
        update.base_version,
        push.fingerprint_digest,
    )


def _check_announced(coordinator: Coordinator, push: AnnouncedPush) -> None:
    store = coordinator.store
    num_pending = store.num_updates(UpdateState.PENDING)
    if num_pending >= coordinator.config.max_pending:
        raise Overloaded(
            f"{num_pending} updates wait to be merged, as many as this coordinator takes: "
            "push again in 5 s",
            retry_after_seconds=5.0,
        )
    refused = check_fingerprint(push.fingerprint_digest, store.fingerprint()) or check_version(
        f"update {push.update_id} for task {push.task_id!r}",
        push.base_version,
        store.first_version,
        store.current_version,
    )
    if refused:
        raise refused.error


def _check_and_keep(coordinator: Coordinator, push: Push) -> Kept:
    store, update = coordinator.store, push.update
    # again: others may have pushed while the tensors came
    _check_announced(coordinator, _announced(push))
    base = coordinator.versions.subspace(update.base_version)
    match admit(update, base, coordinator.config.limits):
        case Refused(error):
            raise error
        case Admitted():
            return store.add_update(
                update, worker_id=push.worker_id, pushed_at=coordinator.clock.now()
            )


def _note_repeat(coordinator: Coordinator, record: UpdateRecord) -> None:
    coordinator.metrics.pushes.labels("repeated").inc()
    coordinator.log.info(
        Event.UPDATE_REPEATED.value, update_id=record.update_id, state=record.state.value
    )


def _note_refusal(
    coordinator: Coordinator, update_id: str, task_id: str, error: ShareError
) -> None:
    coordinator.metrics.pushes.labels("refused").inc()
    coordinator.log.warning(
        Event.UPDATE_REFUSED.value,
        update_id=update_id,
        task_id=task_id,
        error=type(error).__name__,
        reason=error.message,
    )


# --- tasks and status ---------------------------------------------------------------------------


def _require_newest(coordinator: Coordinator, version: int, current_version: int) -> None:
    coordinator.store.require_version(version)
    raise VersionCompacted(
        f"tasks are kept in the current version {current_version} only, asked was {version}: "
        "pull the task without a version, or rebase what you hold",
        version=version,
        first_version=current_version,
        current_version=current_version,
    )


def _served_task(store: Store, snapshot: Snapshot, task_id: str) -> ServedTask:
    update_id = snapshot.update_ids[task_id]
    head = store.load_update(update_id).head
    coefficients = snapshot.tasks[task_id].served(snapshot.subspace)
    payload = codec.task_to_bytes(coefficients, head)
    return ServedTask(store.task_summary(update_id), snapshot.version, ServedPayload.of(payload))


def _unknown_task(snapshot: Snapshot, task_id: str) -> UnknownTask:
    compared = itertools.islice(snapshot.tasks, _MAX_COMPARED_TASKS)
    nearest = difflib.get_close_matches(task_id, compared, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, nearest))}?" if nearest else "see the list of tasks"
    return UnknownTask(
        f"version {snapshot.version} contains no task {task_id!r}: {hint}",
        task_id=task_id,
        nearest=", ".join(nearest),
    )


def _worker_status(
    coordinator: Coordinator, lease: WorkerLease, now_seconds: float
) -> WorkerStatus:
    silent = timedelta(seconds=now_seconds - lease.heard_at_seconds)
    return WorkerStatus(
        worker_id=lease.worker_id,
        lease_epoch=lease.lease_epoch,
        is_live=coordinator.leases.is_live(lease, now_seconds),
        last_heartbeat_at=coordinator.clock.now() - silent,
    )
