"""
Records to protobuf messages and back: one ``to``/``from`` pair per record.

Every ``from`` checks what protobuf cannot say, and raises only errors of ours.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from share_dist.core.values import METRICS, Fingerprint, Head, LayerShape, TaskUpdate
from share_dist.errors import MalformedMessage
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import tensor_pb2 as tensor_pb
from share_dist.wire.checks import (
    MAX_ID_CHARACTERS,
    MAX_NAME_CHARACTERS,
    duration_to_pb,
    optional_time_from_pb,
    optional_time_to_pb,
    require_count,
    require_counts,
    require_hex_digest,
    require_id,
    require_length,
    require_subspace,
    seconds_from_pb,
    time_from_pb,
    time_to_pb,
    told_drifts,
)
from share_dist.wire.chunks import PayloadHeader
from share_dist.wire.payloads import update_tensors_from_bytes
from share_dist.wire.records import (
    CoordinatorStatus,
    Lease,
    NewerUpdate,
    Precision,
    Receipt,
    TaskSummary,
    UpdateState,
    UploadProgress,
    VersionEvent,
    VersionKind,
    Wait,
    WorkerStatus,
)
from share_dist.wire.tensors import Buffer

MAX_LAYERS = 10_000
MAX_LAYER_NAME_CHARACTERS = 500
"""Bounds of a fingerprint's layers."""

MAX_SCORES = 64
"""Most scores of an update."""

MAX_LABEL_BYTES = 64 * 2**10
"""Most bytes of all label names together in UTF-8, each name counted with one byte more."""

_STATES: dict[UpdateState, pb.Receipt.State] = {
    UpdateState.PENDING: pb.Receipt.PENDING,
    UpdateState.MERGED: pb.Receipt.MERGED,
    UpdateState.PARKED: pb.Receipt.PARKED,
    UpdateState.QUARANTINED: pb.Receipt.QUARANTINED,
    UpdateState.REFUSED: pb.Receipt.REFUSED,
    UpdateState.ROLLED_BACK: pb.Receipt.ROLLED_BACK,
    UpdateState.DROPPED: pb.Receipt.DROPPED,
}
_KINDS: dict[VersionKind, pb.VersionEvent.Kind] = {
    VersionKind.MERGE: pb.VersionEvent.MERGE,
    VersionKind.ROLLBACK: pb.VersionEvent.ROLLBACK,
    VersionKind.REMOVAL: pb.VersionEvent.REMOVAL,
}
_WAITS: dict[Wait, pb.Wait] = {"durable": pb.WAIT_DURABLE, "merged": pb.WAIT_MERGED}
_PRECISIONS: dict[Precision, tensor_pb.Precision] = {
    "float32": tensor_pb.FLOAT32,
    "bfloat16": tensor_pb.BFLOAT16,
    "int8": tensor_pb.INT8,
    "int4": tensor_pb.INT4,
}


def wait_to_pb(wait: Wait) -> pb.Wait:
    """Say what a push waits for."""
    return _WAITS[wait]


def wait_from_pb(value: pb.Wait) -> Wait:
    """Read what a push waits for; unspecified means durable."""
    for wait, known in _WAITS.items():
        if value == known:
            return wait
    if value == pb.WAIT_UNSPECIFIED:
        return "durable"
    raise MalformedMessage(f"wait has the unknown value {value}", field="wait")


def precision_to_pb(precision: Precision) -> tensor_pb.Precision:
    """Say how the numbers of a payload are written."""
    return _PRECISIONS[precision]


def precision_from_pb(value: tensor_pb.Precision) -> Precision:
    """Read how the numbers of a payload are written; unspecified means float32."""
    for precision, known in _PRECISIONS.items():
        if value == known:
            return precision
    if value == tensor_pb.PRECISION_UNSPECIFIED:
        return "float32"
    raise MalformedMessage(f"precision has the unknown value {value}", field="precision")


def upload_progress_to_pb(progress: UploadProgress) -> pb.GetUploadResponse:
    """Write how much of an interrupted push is here."""
    return pb.GetUploadResponse(
        num_chunks=progress.num_chunks,
        num_bytes=progress.num_bytes,
        prefix_sha256=progress.prefix_sha256,
    )


def upload_progress_from_pb(message: pb.GetUploadResponse) -> UploadProgress:
    """Read how much of an interrupted push is there."""
    require_counts(message)
    return UploadProgress(message.num_chunks, message.num_bytes, message.prefix_sha256)


def fingerprint_to_pb(fingerprint: Fingerprint) -> pb.Fingerprint:
    """Write a fingerprint."""
    return pb.Fingerprint(
        base_model=fingerprint.base_model,
        metric=fingerprint.metric,
        wire_version=fingerprint.wire_version,
        layers=[
            pb.LayerShape(name=name, in_features=shape.in_features, out_features=shape.out_features)
            for name, shape in fingerprint.layers.items()
        ],
    )


def fingerprint_from_pb(message: pb.Fingerprint) -> Fingerprint:
    """
    Read a fingerprint.

    Raises:
        MalformedMessage: A field is missing or unknown, or a layer comes twice.
    """
    layers = _fingerprint_layers(message)
    require_id(message.base_model, "fingerprint.base_model")
    for metric in METRICS:
        if message.metric == metric:
            return Fingerprint(message.base_model, layers, metric, message.wire_version)
    raise MalformedMessage(
        f"a fingerprint has the unknown metric {message.metric[:MAX_NAME_CHARACTERS]!r}: "
        f"known are {', '.join(METRICS)}",
        field="fingerprint.metric",
    )


def _fingerprint_layers(message: pb.Fingerprint) -> dict[str, LayerShape]:
    if len(message.layers) > MAX_LAYERS:
        raise MalformedMessage(
            f"a fingerprint names {len(message.layers)} layers, at most {MAX_LAYERS} are taken: "
            "adapt fewer",
            field="fingerprint.layers",
        )
    layers = {}
    for layer in message.layers:
        require_length(layer.name, 1, MAX_LAYER_NAME_CHARACTERS, "fingerprint.layers.name")
        layers[layer.name] = LayerShape(layer.in_features, layer.out_features)
    if len(layers) != len(message.layers):
        raise MalformedMessage("a layer comes twice in a fingerprint", field="fingerprint.layers")
    return layers


def lease_to_pb(lease: Lease) -> pb.RegisterResponse:
    """Write a lease, as Register answers it."""
    return pb.RegisterResponse(
        lease_epoch=lease.lease_epoch,
        lease_duration=duration_to_pb(lease.duration_seconds),
        current_version=lease.current_version,
        fingerprint=optional_fingerprint_to_pb(lease.fingerprint),
        store_id=lease.store_id,
        takes_late_digest=lease.takes_late_digest,
    )


def lease_from_pb(message: pb.RegisterResponse, *, worker_id: str) -> Lease:
    """Read a lease that ``worker_id`` asked for."""
    require_counts(message)
    return Lease(
        worker_id=worker_id,
        lease_epoch=message.lease_epoch,
        duration_seconds=seconds_from_pb(message.lease_duration),
        current_version=message.current_version,
        fingerprint=optional_fingerprint_from_pb(message),
        store_id=message.store_id,
        takes_late_digest=message.takes_late_digest,
    )


def heartbeat_to_pb(lease: Lease) -> pb.HeartbeatResponse:
    """Write what a heartbeat renews of a lease."""
    return pb.HeartbeatResponse(
        lease_duration=duration_to_pb(lease.duration_seconds),
        current_version=lease.current_version,
    )


def heartbeat_from_pb(message: pb.HeartbeatResponse, *, lease: Lease) -> Lease:
    """Read a heartbeat's answer into the lease that it renews."""
    require_counts(message)
    return replace(
        lease,
        duration_seconds=seconds_from_pb(message.lease_duration),
        current_version=message.current_version,
    )


def head_info_to_pb(head: Head) -> pb.HeadInfo:
    """
    Write what is needed to use a head's tensors.

    Raises:
        MalformedMessage: Task type or label names are too long to be sent.
    """
    _require_short_head(head)
    return pb.HeadInfo(
        task_type=head.task_type, num_labels=head.num_labels, label_names=head.label_names
    )


def head_info_from_pb(message: pb.HeadInfo, tensors: Mapping[str, Tensor] | None = None) -> Head:
    """
    Read a head; without ``tensors`` it has none.

    Raises:
        MalformedMessage: Task type or label names are longer than may be sent.
    """
    names = tuple(message.label_names)
    return _require_short_head(Head(tensors or {}, message.task_type, message.num_labels, names))


def update_header(
    update: TaskUpdate,
    *,
    worker_id: str,
    fingerprint_digest: str,
    payload: PayloadHeader,
    wait: Wait,
    base_digest: str = "",
    subspace: str = "",
) -> pb.UpdateHeader:
    """
    Write all of an update but its tensors.

    Args:
        update: What is pushed.
        worker_id: Who pushes.
        fingerprint_digest: Of the model that it was trained on.
        payload: Announces what ``update_to_bytes`` made of the same update.
        wait: When the coordinator shall answer.
        base_digest: Of the version that it was trained against; empty: not checked.
        subspace: Which one it is for; empty for the default.

    Raises:
        MalformedMessage: A field is longer, or a number greater, than may be sent.
    """
    return pb.UpdateHeader(
        update_id=require_id(update.update_id, "update_id"),
        task_id=require_id(update.task_id, "task_id"),
        worker_id=worker_id,
        lease_epoch=require_count(update.lease_epoch, "lease_epoch"),
        base_version=require_count(update.base_version, "base_version"),
        fingerprint_digest=fingerprint_digest,
        weight=update.weight,
        num_samples=require_count(update.num_samples, "num_samples"),
        scores=_scores(update.scores),
        head=head_info_to_pb(update.head),
        payload=payload,
        wait=wait_to_pb(wait),
        base_digest=base_digest,
        subspace=subspace,
    )


def update_from_wire(header: pb.UpdateHeader, payload: Buffer) -> TaskUpdate:
    """
    Put an update together from its header and its joined payload.

    Raises:
        WireError: Header or payload are malformed, or a field of the header passes its bound.
        ShapeMismatch: The matrices of a layer do not fit together.
        NotFinite: An entry is no number.
        UpdateRefused: The weight is not a positive number.
    """
    require_counts(header)
    require_length(header.worker_id, 0, MAX_ID_CHARACTERS, "worker_id")
    require_length(header.fingerprint_digest, 0, MAX_ID_CHARACTERS, "fingerprint_digest")
    require_hex_digest(header.base_digest, "base_digest")
    layers, tensors = update_tensors_from_bytes(payload)
    return TaskUpdate(
        update_id=require_id(header.update_id, "update_id"),
        task_id=require_id(header.task_id, "task_id"),
        base_version=header.base_version,
        layers=layers,
        head=head_info_from_pb(header.head, tensors),
        weight=header.weight,
        num_samples=header.num_samples,
        scores=_scores(header.scores),
        lease_epoch=header.lease_epoch,
    )


def receipt_to_pb(receipt: Receipt) -> pb.Receipt:
    """Write what became of a push."""
    return pb.Receipt(
        update_id=receipt.update_id,
        state=_STATES[receipt.state],
        version=receipt.version,
        lag=receipt.lag,
        angle=receipt.angle,
        reason=receipt.reason,
    )


def receipt_from_pb(message: pb.Receipt) -> Receipt:
    """Read what became of a push."""
    require_counts(message)
    return Receipt(
        update_id=message.update_id,
        state=state_from_pb(message.state),
        version=message.version,
        lag=message.lag,
        angle=message.angle,
        reason=message.reason,
    )


def task_summary_to_pb(summary: TaskSummary) -> pb.TaskSummary:
    """Write one task as the coordinator knows it."""
    return pb.TaskSummary(
        task_id=summary.task_id,
        worker_id=summary.worker_id,
        update_id=summary.update_id,
        state=_STATES[summary.state],
        base_version=summary.base_version,
        merged_version=summary.merged_version,
        lag=summary.lag,
        angle=summary.angle,
        truncation=summary.truncation,
        cumulative_drift=summary.cumulative_drift,
        num_samples=summary.num_samples,
        scores=summary.scores,
        head=head_info_to_pb(summary.head),
        pushed_at=time_to_pb(summary.pushed_at),
        update_bytes=summary.update_bytes,
        head_bytes=summary.head_bytes,
        owner=summary.owner,
        reason=summary.reason,
        newer=None if summary.newer is None else _newer_to_pb(summary.newer),
    )


def _newer_to_pb(newer: NewerUpdate) -> pb.NewerUpdate:
    return pb.NewerUpdate(
        update_id=newer.update_id, state=_STATES[newer.state], reason=newer.reason
    )


def task_summary_from_pb(message: pb.TaskSummary) -> TaskSummary:
    """Read one task as the coordinator knows it."""
    require_counts(message)
    return TaskSummary(
        task_id=message.task_id,
        worker_id=message.worker_id,
        update_id=message.update_id,
        state=state_from_pb(message.state),
        base_version=message.base_version,
        merged_version=message.merged_version,
        lag=message.lag,
        angle=message.angle,
        truncation=message.truncation,
        cumulative_drift=message.cumulative_drift,
        num_samples=message.num_samples,
        scores=_scores(message.scores),
        head=head_info_from_pb(message.head),
        pushed_at=time_from_pb(message.pushed_at, "pushed_at"),
        update_bytes=message.update_bytes,
        head_bytes=message.head_bytes,
        owner=message.owner,
        reason=message.reason,
        newer=_newer_from_pb(message.newer) if message.HasField("newer") else None,
    )


def _newer_from_pb(message: pb.NewerUpdate) -> NewerUpdate:
    return NewerUpdate(message.update_id, state_from_pb(message.state), message.reason)


def version_event_to_pb(event: VersionEvent) -> pb.VersionEvent:
    """Write what a watcher is told."""
    return pb.VersionEvent(
        version=event.version,
        merged_at=time_to_pb(event.merged_at),
        update_ids=event.update_ids,
        task_ids=event.task_ids,
        lowest_energy_kept=event.lowest_energy_kept,
        mean_energy_kept=event.mean_energy_kept,
        angle=event.angle,
        num_factors=event.num_factors,
        subspace_bytes=event.subspace_bytes,
        drift=told_drifts(event.drift),
        merge_duration=duration_to_pb(event.merge_seconds),
        kind=_KINDS[event.kind],
        digest=event.digest,
        parent_digest=event.parent_digest,
        content_version=event.content_version,
        rotation_bytes=event.rotation_bytes,
        num_moved=event.num_moved,
        largest_drift=event.largest_drift,
    )


def version_event_from_pb(message: pb.VersionEvent) -> VersionEvent:
    """Read what a watcher is told."""
    require_counts(message)
    return VersionEvent(
        version=message.version,
        merged_at=time_from_pb(message.merged_at, "merged_at"),
        update_ids=tuple(message.update_ids),
        task_ids=tuple(message.task_ids),
        lowest_energy_kept=message.lowest_energy_kept,
        mean_energy_kept=message.mean_energy_kept,
        angle=message.angle,
        num_factors=message.num_factors,
        subspace_bytes=message.subspace_bytes,
        drift=dict(message.drift),
        merge_seconds=seconds_from_pb(message.merge_duration),
        kind=_kind_from_pb(message.kind),
        digest=message.digest,
        parent_digest=message.parent_digest,
        content_version=message.content_version,
        rotation_bytes=message.rotation_bytes,
        num_moved=message.num_moved,
        largest_drift=message.largest_drift,
    )


def status_to_pb(status: CoordinatorStatus) -> pb.GetStatusResponse:
    """Write how a coordinator is."""
    return pb.GetStatusResponse(
        current_version=status.current_version,
        first_version=status.first_version,
        fingerprint=optional_fingerprint_to_pb(status.fingerprint),
        num_tasks=status.num_tasks,
        num_pending=status.num_pending,
        num_quarantined=status.num_quarantined,
        workers=[_worker_to_pb(worker) for worker in status.workers],
        num_watchers=status.num_watchers,
        started_at=time_to_pb(status.started_at),
        release=status.release,
        subspace=status.subspace,
        store_id=status.store_id,
        digest=status.digest,
        num_parked=status.num_parked,
        num_synced_watchers=status.num_synced_watchers,
        num_catching_up_watchers=status.num_catching_up_watchers,
        num_slow_watchers=status.num_slow_watchers,
        bytes_in_flight=status.bytes_in_flight,
        principal=status.principal,
        role=status.role,
        newest_version_at=optional_time_to_pb(status.newest_version_at),
        merge_failure=status.merge_failure,
        merges_fail_since=optional_time_to_pb(status.merges_fail_since),
    )


def status_from_pb(message: pb.GetStatusResponse) -> CoordinatorStatus:
    """Read how a coordinator is."""
    require_counts(message)
    return CoordinatorStatus(
        current_version=message.current_version,
        first_version=message.first_version,
        fingerprint=optional_fingerprint_from_pb(message),
        num_tasks=message.num_tasks,
        num_pending=message.num_pending,
        num_quarantined=message.num_quarantined,
        workers=tuple(_worker_from_pb(worker) for worker in message.workers),
        num_watchers=message.num_watchers,
        started_at=time_from_pb(message.started_at, "started_at"),
        release=message.release,
        subspace=require_subspace(message.subspace),
        store_id=message.store_id,
        digest=message.digest,
        num_parked=message.num_parked,
        num_synced_watchers=message.num_synced_watchers,
        num_catching_up_watchers=message.num_catching_up_watchers,
        num_slow_watchers=message.num_slow_watchers,
        bytes_in_flight=message.bytes_in_flight,
        principal=message.principal,
        role=message.role,
        newest_version_at=optional_time_from_pb(message, "newest_version_at"),
        merge_failure=message.merge_failure,
        merges_fail_since=optional_time_from_pb(message, "merges_fail_since"),
    )


def _worker_to_pb(worker: WorkerStatus) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        worker_id=worker.worker_id,
        lease_epoch=worker.lease_epoch,
        is_live=worker.is_live,
        last_heartbeat_at=time_to_pb(worker.last_heartbeat_at),
        base_version=worker.base_version,
        num_merged=worker.num_merged,
    )


def _worker_from_pb(message: pb.WorkerStatus) -> WorkerStatus:
    require_counts(message)
    return WorkerStatus(
        worker_id=message.worker_id,
        lease_epoch=message.lease_epoch,
        is_live=message.is_live,
        last_heartbeat_at=time_from_pb(message.last_heartbeat_at, "last_heartbeat_at"),
        base_version=message.base_version,
        num_merged=message.num_merged,
    )


def optional_fingerprint_to_pb(fingerprint: Fingerprint | None) -> pb.Fingerprint | None:
    """Write a fingerprint that may not be known yet."""
    return None if fingerprint is None else fingerprint_to_pb(fingerprint)


def optional_fingerprint_from_pb(message: Any) -> Fingerprint | None:
    """
    Read the fingerprint of a message that may have none.

    Raises:
        MalformedMessage: It has one with a field that is missing or unknown.
    """
    return fingerprint_from_pb(message.fingerprint) if message.HasField("fingerprint") else None


def state_to_pb(state: UpdateState) -> pb.Receipt.State:
    """Write where an update is on its way."""
    return _STATES[state]


def _kind_from_pb(value: pb.VersionEvent.Kind) -> VersionKind:
    for kind, known in _KINDS.items():
        if value == known:
            return kind
    raise MalformedMessage(f"a version has the unknown kind {value}", field="kind")


def state_from_pb(value: pb.Receipt.State) -> UpdateState:
    """
    Read where an update is on its way.

    Raises:
        MalformedMessage: It is nowhere that this release knows.
    """
    for state, known in _STATES.items():
        if value == known:
            return state
    raise MalformedMessage(f"an update has the unknown state {value}", field="state")


def _require_short_head(head: Head) -> Head:
    require_length(head.task_type, 0, MAX_NAME_CHARACTERS, "head.task_type")
    label_bytes = sum(len(name.encode()) + 1 for name in head.label_names)
    if label_bytes > MAX_LABEL_BYTES:
        raise MalformedMessage(
            f"{len(head.label_names)} label names take {label_bytes} bytes, at most "
            f"{MAX_LABEL_BYTES} are taken: shorten them, or do not share them",
            field="head.label_names",
        )
    return head


def _scores(scores: Mapping[str, float]) -> dict[str, float]:
    if len(scores) > MAX_SCORES:
        raise MalformedMessage(
            f"an update has {len(scores)} scores, at most {MAX_SCORES} are taken", field="scores"
        )
    for name, value in scores.items():
        require_length(name, 0, MAX_NAME_CHARACTERS, "scores.key")
        if not math.isfinite(value):
            raise MalformedMessage(f"score {name!r} is {value}, not a number", field="scores")
    return dict(scores)
