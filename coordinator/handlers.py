"""What each call does, on values and records: one function per RPC, no gRPC in sight."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version as release_of

import torch

from coordinator import faults
from coordinator.access import Principal
from coordinator.admission import (
    Admitted,
    Refused,
    Suspicious,
    admit,
    check_fingerprint,
    check_version,
)
from coordinator.bounds import may_be_set_aside_later, require_room_aside
from coordinator.broadcast import WatcherState
from coordinator.leases import WorkerLease
from coordinator.policy import require_fresh
from coordinator.state import Call, Coordinator, Lineage
from coordinator.store.base import (
    DescribedUpdate,
    Kept,
    ReadyFile,
    Store,
    UpdateRecord,
    not_owner,
    refused_record,
)
from coordinator.store.format import describe_update
from coordinator.uploads import upload_key
from coordinator.writer import MergeFailure
from share_dist.core.allocation import require_first_factors
from share_dist.core.prepared import angle_between
from share_dist.core.values import WIRE_VERSION, Fingerprint, LayerUpdate, SideUpdate, TaskUpdate
from share_dist.errors import (
    ConfigError,
    Overloaded,
    ShareError,
    StoreError,
)
from share_dist.telemetry import Event
from share_dist.wire import codec
from share_dist.wire.checks import MAX_COUNT
from share_dist.wire.records import (
    DEFAULT_SUBSPACE,
    CoordinatorStatus,
    Lease,
    Receipt,
    UpdateState,
    UploadProgress,
    Wait,
    WorkerStatus,
)
from share_dist.wire.tensors import Buffer

_LARGE_BYTES = 2**23
"""From here on an update's layers are measured several at once."""

MAX_FEATURES = 2**31
"""Most features of one side of a layer."""


@dataclass(frozen=True, slots=True)
class Push:
    """A decoded PushUpdate."""

    update: TaskUpdate
    worker_id: str
    fingerprint_digest: str
    base_digest: str = ""
    wait: Wait = "durable"
    payload: Buffer | None = None
    """The update's tensors as they came; made anew when absent."""
    payload_digest: str = ""
    """SHA-256 (hex) of the payload, where it was compared already."""
    file: ReadyFile | None = None
    """Has the payload on disk already."""


@dataclass(frozen=True, slots=True)
class AnnouncedPush:
    """What is known of a PushUpdate before its tensors have come."""

    update_id: str
    task_id: str
    worker_id: str
    lease_epoch: int
    base_version: int
    fingerprint_digest: str
    base_digest: str = ""
    payload_digest: str = ""
    """SHA-256 (hex) of its tensors; empty where it is said behind them."""
    update_bytes: int = 0


async def open_lineage(coordinator: Coordinator, principal: Principal, name: str) -> Lineage:
    """
    Return the lineage that a worker registers with; an administrator's first worker makes it.

    Raises:
        UnknownSubspace: There is none of this name, and the caller may not make one.
        ConfigError: The name can be none.
    """
    name = name or DEFAULT_SUBSPACE
    if coordinator.access.role(principal, name) == "admin":
        return await coordinator.lineages.open(name, by=principal.name)
    return coordinator.lineages.get(name)


async def register(call: Call, worker_id: str, fingerprint: Fingerprint | None) -> Lease:
    """
    Give a worker a lease; the first fingerprint is what the subspace works on from then on.

    Raises:
        FingerprintMismatch: The worker's model, layers or metric are not the subspace's.
        NotPermitted: The ``worker_id`` belongs to another principal.
        ConfigError: The fingerprint has no layers, or an empty one, or so many that ``max_bytes`` do
            not hold a factor of each side.
        WireError: It has layers of which no update could be sent.
        Overloaded: The caller has registered too often within an hour.
    """
    lineage = call.lineage
    lineage.registrations.take(call.principal.name, call.clock.monotonic_seconds())
    if fingerprint is not None:
        await _bind(call, fingerprint)
    owner = _owner(call, worker_id)
    epoch = await asyncio.to_thread(lineage.store.next_epoch, worker_id, by=owner)
    lineage.leases.grant(
        worker_id, epoch, call.clock.monotonic_seconds(), lineage.writer.snapshot.version
    )
    lineage.log.info(Event.WORKER_REGISTERED.value, worker_id=worker_id, lease_epoch=epoch)
    return await _lease(lineage, worker_id, epoch)


async def heartbeat(call: Call, worker_id: str, lease_epoch: int) -> Lease:
    """
    Keep a worker's lease.

    Raises:
        LeaseExpired: It has ended or was taken over.
        NotPermitted: The worker belongs to another principal.
    """
    await require_own_worker(call, worker_id)
    call.lineage.leases.renew(worker_id, lease_epoch, call.clock.monotonic_seconds())
    return await _lease(call.lineage, worker_id, lease_epoch)


async def announce_push(call: Call, push: AnnouncedPush) -> None:
    """
    Refuse a push by its header alone, before its tensors cost anything.

    A push that repeats a known one is let through: what became of that one is its answer.

    Raises:
        LeaseExpired: The worker's lease has ended or was taken over.
        NotPermitted: The worker, or the task, belongs to another principal.
        FingerprintMismatch: The update is of another model, other layers or another metric.
        VersionInFuture: Its base version does not exist.
        BaseVersionTooOld: Its base version is no longer kept.
        Overloaded: Too many updates wait.
        TooManySetAside: Too many are set aside, and this one might be.
    """
    store = call.lineage.store
    if await asyncio.to_thread(store.find_update, push.update_id):
        return
    try:
        await require_own_worker(call, push.worker_id)
        now_seconds = call.clock.monotonic_seconds()
        call.lineage.leases.renew(
            push.worker_id, push.lease_epoch, now_seconds, push.base_version, is_push=True
        )
        await asyncio.to_thread(_check_announced, call, push)
    except ShareError as error:
        await _note_refusal(call, push, error)
        raise


async def keep_update(call: Call, push: Push) -> UpdateRecord:
    """
    Admit an update and keep it; a push that is known gets the record of what became of it.

    Raises:
        UpdateConflict: The ``update_id`` is known with other content.
        LeaseExpired: The worker's lease has ended or was taken over.
        FingerprintMismatch: The update is of another model, other layers or another metric.
        VersionInFuture: Its base version does not exist.
        BaseVersionTooOld: Its base version is no longer kept.
        ShapeMismatch: It does not fit its base version.
        UpdateRefused: It may not be merged.
        Overloaded: Too many updates wait.
        TooManySetAside: It would be set aside, and too many are.
        StoreFull: There is no room; nothing was kept.
        StoreUnavailable: The disk fails; nothing was kept.
    """
    lineage = call.lineage
    try:
        described, record = await asyncio.to_thread(_described_and_known, call, push)
        if record is None:
            record = await _admit(call, push, described)
        else:
            record.require_same_content(described.record.content_digest)
            _require_owner(call, record)
            _note_repeat(lineage, record)
    except ShareError as error:
        await _note_refusal(call, _announced(push), error)
        raise
    lineage.writer.notify()
    return record


async def answer_push(call: Call, record: UpdateRecord, wait: Wait) -> Receipt:
    """Tell what became of an update that is kept, at once or when a version contains it."""
    if wait == "merged":
        record = await call.lineage.writer.settled(record.update_id)
    faults.reach("before-reply")
    return record.receipt()


async def upload_progress(call: Call, update_id: str, sha256: bytes) -> UploadProgress:
    """Tell how much of an interrupted push is here; only the principal who pushes it may know."""
    key = upload_key(call.lineage.name, call.principal.name, update_id, sha256)
    # it is hashed anew: in the threads of all other calls, who asks often would hold these up
    return await call.resume(lambda: call.coordinator.uploads.progress(key))


async def get_status(call: Call) -> CoordinatorStatus:
    """Tell how the coordinator is."""
    return await asyncio.to_thread(describe, call)


# --- register -----------------------------------------------------------------------------------


async def _bind(call: Call, fingerprint: Fingerprint) -> None:
    lineage = call.lineage
    await asyncio.to_thread(_require_layers, fingerprint)
    if lineage.config.max_bytes is not None:
        require_first_factors(fingerprint.layers, lineage.config.max_bytes)
    # an unbound store would take anything: what this subspace was told to do is checked first
    replace(fingerprint, metric=lineage.config.metric, wire_version=WIRE_VERSION).require(
        fingerprint
    )
    if await asyncio.to_thread(lineage.store.bind, fingerprint, by=call.principal.name):
        lineage.log.info(Event.STORE_BOUND.value, fingerprint_digest=fingerprint.digest)


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


def _owner(call: Call, worker_id: str) -> str:
    return call.coordinator.access.owner(call.principal, worker_id)


async def require_own_worker(call: Call, worker_id: str) -> None:
    """
    Refuse who knows another one's worker and epoch: its lease is not theirs to use.

    Raises:
        NotPermitted: The worker belongs to another principal.
    """
    if call.principal.how == "local":
        return
    owner = await asyncio.to_thread(call.lineage.store.worker_owner, worker_id)
    if owner not in {None, call.principal.name}:
        raise not_owner(f"worker {worker_id!r}", str(owner), call.principal.name)


async def _lease(lineage: Lineage, worker_id: str, lease_epoch: int) -> Lease:
    return Lease(
        worker_id=worker_id,
        lease_epoch=lease_epoch,
        duration_seconds=lineage.leases.duration_seconds,
        current_version=lineage.writer.snapshot.version,
        fingerprint=await asyncio.to_thread(lineage.store.fingerprint),
        store_id=lineage.store.store_id,
        takes_late_digest=True,
    )


# --- push ---------------------------------------------------------------------------------------


def _described_and_known(call: Call, push: Push) -> tuple[DescribedUpdate, UpdateRecord | None]:
    described = describe_update(
        push.update,
        worker_id=push.worker_id,
        pushed_at=call.clock.now(),
        owner=_owner(call, push.worker_id),
        payload=push.payload,
        payload_digest=push.payload_digest,
        file=push.file,
    )
    return described, call.lineage.store.find_update(push.update.update_id)


async def _admit(call: Call, push: Push, described: DescribedUpdate) -> UpdateRecord:
    lineage = call.lineage
    now_seconds = call.clock.monotonic_seconds()
    lineage.leases.renew(
        push.worker_id,
        push.update.lease_epoch,
        now_seconds,
        push.update.base_version,
        is_push=True,
    )
    record, is_new = await asyncio.to_thread(_check_and_keep, call, push, described)
    if not is_new:
        _note_repeat(lineage, record)
        return record
    _note_kept(lineage, record)
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
        push.base_digest,
        push.payload_digest,
        0 if push.payload is None else len(push.payload),
    )


def _check_announced(call: Call, push: AnnouncedPush) -> None:
    lineage, store = call.lineage, call.lineage.store
    num_pending = store.num_updates(UpdateState.PENDING)
    if num_pending >= lineage.config.max_pending:
        raise Overloaded(
            f"{num_pending} updates wait to be merged, as many as this coordinator takes: "
            "push again in 5 s",
            retry_after_seconds=5.0,
        )
    if may_be_set_aside_later(lineage.config):
        require_room_aside(store, _owner(call, push.worker_id), push.update_bytes, lineage.config)
    owner, principal = store.owner(push.task_id), _owner(call, push.worker_id)
    if owner not in {None, principal}:
        raise not_owner(f"task {push.task_id!r}", str(owner), principal)
    refused = check_fingerprint(push.fingerprint_digest, store.fingerprint()) or check_version(
        f"update {push.update_id} for task {push.task_id!r}",
        push.base_version,
        store.first_version,
        store.current_version,
        is_kept=_is_kept(lineage, push.base_version),
    )
    if refused:
        raise refused.error
    store.require_digest(push.base_version, push.base_digest)
    _require_fresh(lineage, push)


def _check_and_keep(call: Call, push: Push, described: DescribedUpdate) -> Kept:
    lineage, update = call.lineage, push.update
    # again: others may have pushed while the tensors came
    _check_announced(call, _announced(push))
    base = lineage.versions.subspace(update.base_version)
    current = lineage.versions.subspace(lineage.writer.snapshot.version)
    # several layers at once: the others wait for the disk, and this push for this
    is_large = described.record.update_bytes >= _LARGE_BYTES
    map_layers = call.coordinator.measures.map if is_large else map
    match admit(update, base, current, lineage.config.limits, map_layers=map_layers):
        case Refused(error):
            raise error
        case Suspicious(reason):
            record = described.record
            require_room_aside(lineage.store, record.owner, record.update_bytes, lineage.config)
            aside = replace(described.record, state=UpdateState.QUARANTINED, reason=reason)
            described = replace(described, record=aside)
        case Admitted():
            pass
    return lineage.store.add_update(described, by=call.principal.name)


def _is_kept(lineage: Lineage, version: int) -> bool:
    if version > lineage.store.current_version or lineage.holds.is_leaving(version):
        return False
    return lineage.store.is_kept(version)


def _require_fresh(lineage: Lineage, push: AnnouncedPush) -> None:
    policy, current_version = lineage.config.policy, lineage.writer.snapshot.version
    angle = 0.0
    if policy.needs_angle and push.base_version < current_version:
        base, current = map(lineage.versions.subspace, (push.base_version, current_version))
        angle = angle_between(base, current)
    name = f"update {push.update_id} for task {push.task_id!r}"
    require_fresh(name, push.base_version, current_version, angle, policy)


def _require_owner(call: Call, record: UpdateRecord) -> None:
    """Refuse a repeat of what somebody else pushed: its receipt is not for everyone."""
    principal = _owner(call, record.worker_id)
    if record.owner != principal:
        raise not_owner(f"update {record.update_id}", record.owner, principal)


def _note_kept(lineage: Lineage, record: UpdateRecord) -> None:
    lineage.metrics.update_bytes.inc(record.update_bytes)
    if record.state is UpdateState.QUARANTINED:
        lineage.metrics.pushes("quarantined").inc()
        lineage.metrics.set_aside_updates(record.state.value).inc()
        lineage.log.warning(
            Event.UPDATE_QUARANTINED.value,
            update_id=record.update_id,
            task_id=record.task_id,
            reason=record.reason,
        )
        return
    lineage.metrics.pushes("admitted").inc()
    lineage.log.info(
        Event.UPDATE_ADMITTED.value,
        update_id=record.update_id,
        task_id=record.task_id,
        worker_id=record.worker_id,
        base_version=record.base_version,
        update_bytes=record.update_bytes,
    )


def _note_repeat(lineage: Lineage, record: UpdateRecord) -> None:
    lineage.metrics.pushes("repeated").inc()
    lineage.log.info(
        Event.UPDATE_REPEATED.value, update_id=record.update_id, state=record.state.value
    )


async def _note_refusal(call: Call, push: AnnouncedPush, error: ShareError) -> None:
    lineage = call.lineage
    lineage.metrics.pushes("refused").inc()
    lineage.log.warning(
        Event.UPDATE_REFUSED.value,
        update_id=push.update_id,
        task_id=push.task_id,
        error=type(error).__name__,
        reason=error.message,
    )
    if isinstance(error, (Overloaded, StoreError)):
        return  # nothing is wrong with the update: it is pushed again
    call.coordinator.access.note_refused_push(
        call.principal, call.peer, lineage.name, push.update_id, push.payload_digest, error
    )
    try:
        await asyncio.to_thread(_remember_refusal, call, push, error)
    except StoreError as failure:
        lineage.log.warning(Event.AUDIT_FAILED.value, num_entries=1, reason=failure.message)


def _remember_refusal(call: Call, push: AnnouncedPush, error: ShareError) -> None:
    record = refused_record(
        update_id=push.update_id,
        task_id=push.task_id,
        worker_id=push.worker_id,
        owner=_owner(call, push.worker_id),
        base_version=min(push.base_version, MAX_COUNT),
        pushed_at=call.clock.now(),
        content_digest=push.payload_digest,
        update_bytes=push.update_bytes,
        reason=f"{type(error).__name__}: {error.message}",
    )
    call.lineage.store.refuse(record, call.lineage.config.max_refused_updates)


# --- status -------------------------------------------------------------------------------------


def describe(call: Call) -> CoordinatorStatus:
    """Tell how the coordinator is; from any thread, as it reads the store."""
    coordinator, lineage, store = call.coordinator, call.lineage, call.lineage.store
    snapshot, now_seconds = lineage.writer.snapshot, call.clock.monotonic_seconds()
    failure = lineage.writer.failure
    role = coordinator.access.role(call.principal, lineage.name) or ""
    merged = lineage.versions.merged_by_worker(snapshot.version)
    return CoordinatorStatus(
        current_version=snapshot.version,
        first_version=store.first_version,
        fingerprint=store.fingerprint(),
        num_tasks=len(snapshot.tasks),
        num_pending=store.num_updates(UpdateState.PENDING),
        num_quarantined=store.num_updates(UpdateState.QUARANTINED),
        num_parked=store.num_updates(UpdateState.PARKED),
        workers=tuple(
            _worker_status(call, lease, now_seconds, merged[lease.worker_id])
            for lease in lineage.leases.all(now_seconds)
        ),
        num_watchers=lineage.broadcast.num_watchers,
        num_synced_watchers=lineage.broadcast.num_in(WatcherState.SYNCED),
        num_catching_up_watchers=lineage.broadcast.num_in(WatcherState.CATCHING_UP),
        num_slow_watchers=lineage.broadcast.num_in(WatcherState.SLOW),
        started_at=coordinator.started_at,
        release=release_of("share-dist"),
        subspace=lineage.name,
        store_id=store.store_id,
        digest=snapshot.digest,
        bytes_in_flight=coordinator.budget.bytes_in_flight,
        principal=call.principal.name,
        role=role,
        newest_version_at=_newest_version_at(store, snapshot.version),
        merge_failure=_told_of(failure, role),
        merges_fail_since=failure.since if failure else None,
    )


def _told_of(failure: MergeFailure | None, role: str) -> str:
    """Say why merging fails: all of it, such as the names of files, to an administrator alone."""
    if failure is None:
        return ""
    return failure.reason if role == "admin" else failure.kind


def _newest_version_at(store: Store, version: int) -> datetime | None:
    events = store.events(version - 1, 1) if version else ()
    return events[0].merged_at if events else None


def _worker_status(
    call: Call, lease: WorkerLease, now_seconds: float, num_merged: int
) -> WorkerStatus:
    silent = timedelta(seconds=now_seconds - lease.heard_at_seconds)
    return WorkerStatus(
        worker_id=lease.worker_id,
        lease_epoch=lease.lease_epoch,
        is_live=call.lineage.leases.is_live(lease, now_seconds),
        last_heartbeat_at=call.clock.now() - silent,
        base_version=lease.base_version or 0,
        num_merged=num_merged,
    )
