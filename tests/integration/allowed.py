"""
The list of what may travel: every field of the protocol, and what it may hold.

A field that is not here may not be sent. ``test_no_sample_leaves`` holds this
list against the protocol, so that a new field must be thought about here first.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from share_dist.core.values import SIDES, LayerShape, Side, Subspace

TensorShapes: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> its dtype and its shape."""


@dataclass(frozen=True)
class Setup:
    """
    What the run was told, and no sample: all strings and sizes that may travel come from it.

    Args:
        worker_id: Who learns.
        num_labels: Task id -> classes.
        layers: The adapted layers.
        hidden: Width of what the model gives to a head.
        pseudo_rank: ``p``.
        num_temporary: ``f``.
        versions: Every version that came to be.
        base_model: Digest of the frozen model.
        fingerprint_digest: Digest of the fingerprint.
        digests: Digests of all versions.
        store_id: Of the coordinator's store.
        label_names: What a worker was told to share; by default nothing.
    """

    worker_id: str
    num_labels: Mapping[str, int]
    layers: Mapping[str, LayerShape]
    hidden: int
    pseudo_rank: int
    num_temporary: int
    versions: Mapping[int, Subspace]
    base_model: str
    fingerprint_digest: str
    digests: tuple[str, ...]
    store_id: str
    label_names: tuple[str, ...] = ()

    def update_shapes(self, task_id: str, base_version: int) -> TensorShapes:
        """Tensors of a push."""
        p, f = self.pseudo_rank, self.num_temporary
        shapes = self.task_shapes(task_id, base_version)
        for name, side, features in self._sides():
            shapes[f"{name}.{side}.temporary"] = ("F32", (features, f))
            shapes[f"{name}.{side}.temporary_coefficients"] = ("F32", (f, p))
        return shapes

    def task_shapes(self, task_id: str, version: int) -> TensorShapes:
        """Tensors of a task that is pulled."""
        shapes: TensorShapes = {
            f"{name}.{side}.coefficients": ("F32", (self._k(version, name, side), self.pseudo_rank))
            for name, side, _ in self._sides()
        }
        labels = self.num_labels[task_id]
        return shapes | {
            "head.weight": ("F32", (labels, self.hidden)),
            "head.bias": ("F32", (labels,)),
        }

    def subspace_shapes(self, version: int) -> TensorShapes:
        """Tensors of a version that is pulled."""
        shapes: TensorShapes = {}
        for name, side, features in self._sides():
            k = self._k(version, name, side)
            shapes[f"{name}.{side}.vectors"] = ("F32", (features, k))
            shapes[f"{name}.{side}.energies"] = ("F64", (k,))
        return shapes

    def _sides(self) -> list[tuple[str, Side, int]]:
        return [
            (name, side, shape.features(side))
            for name, shape in self.layers.items()
            for side in SIDES
        ]

    def _k(self, version: int, name: str, side: Side) -> int:
        return self.versions[version].layers[name][side].num_factors


Rule: TypeAlias = Callable[[Any, Setup], bool]
"""Whether a field may hold a value. Messages are looked into, and need no rule of their own."""


def _matching(pattern: str) -> Rule:
    return lambda value, _: re.fullmatch(pattern, value) is not None


def _among(*values: Any) -> Rule:
    return lambda value, _: value in values


def _map_of(key: Rule, value: Rule) -> Rule:
    return lambda pairs, setup: all(key(k, setup) and value(v, setup) for k, v in pairs.items())


def _message(_value: Any, _setup: Setup) -> bool:
    return True


def _payload(_value: Any, _setup: Setup) -> bool:
    """Looked into as a whole, once its chunks are joined."""
    return True


def _count(value: Any, _setup: Setup) -> bool:
    return bool(0 <= value < 100_000)


def _size(value: Any, _setup: Setup) -> bool:
    return bool(0 <= value < 2**31)


def _time(value: Any, _setup: Setup) -> bool:
    return bool(0 <= value < 2**32)


def _number(value: Any, _setup: Setup) -> bool:
    return math.isfinite(value) and value >= 0


def _share(value: Any, _setup: Setup) -> bool:
    return bool(0 <= value <= 1)


def _worker(value: Any, setup: Setup) -> bool:
    return bool(value == setup.worker_id)


def _task(value: Any, setup: Setup) -> bool:
    return value in setup.num_labels


def _layer(value: Any, setup: Setup) -> bool:
    return value in setup.layers


def _version_digest(value: Any, setup: Setup) -> bool:
    return value in setup.digests


def _nothing(_value: Any, _setup: Setup) -> bool:
    """Stands for fields that no worker sends and no coordinator tells a worker in such a run."""
    return False


_UPDATE = _matching("[0-9a-f]{32}")
_SUBSPACE = _among("default")
_SCORES = _map_of(_among("accuracy", "macro_f1"), _share)

ALLOWED_FIELDS: dict[str, Rule] = {
    "Fingerprint.base_model": lambda value, setup: value == setup.base_model,
    "Fingerprint.metric": _among("delta", "factors"),
    "Fingerprint.wire_version": _count,
    "Fingerprint.layers": _message,
    "LayerShape.name": _layer,
    "LayerShape.in_features": _count,
    "LayerShape.out_features": _count,
    "RegisterRequest.worker_id": _worker,
    "RegisterRequest.fingerprint": _message,
    "RegisterRequest.subspace": _SUBSPACE,
    "RegisterResponse.lease_epoch": _count,
    "RegisterResponse.lease_duration": _message,
    "RegisterResponse.current_version": _count,
    "RegisterResponse.fingerprint": _message,
    "RegisterResponse.store_id": lambda value, setup: value == setup.store_id,
    "RegisterResponse.takes_late_digest": _among(True),
    "HeartbeatRequest.worker_id": _worker,
    "HeartbeatRequest.lease_epoch": _count,
    "HeartbeatRequest.subspace": _SUBSPACE,
    "HeartbeatResponse.lease_duration": _message,
    "HeartbeatResponse.current_version": _count,
    "PushUpdateRequest.header": _message,
    "PushUpdateRequest.chunk": _message,
    "UpdateHeader.update_id": _UPDATE,
    "UpdateHeader.task_id": _task,
    "UpdateHeader.worker_id": _worker,
    "UpdateHeader.lease_epoch": _count,
    "UpdateHeader.base_version": _count,
    "UpdateHeader.fingerprint_digest": lambda value, setup: value == setup.fingerprint_digest,
    "UpdateHeader.weight": _among(1.0),
    "UpdateHeader.num_samples": _count,
    "UpdateHeader.scores": _SCORES,
    "UpdateHeader.head": _message,
    "UpdateHeader.payload": _message,
    "UpdateHeader.wait": _among(1, 2),
    "UpdateHeader.base_digest": _version_digest,
    "UpdateHeader.first_chunk": _count,
    "UpdateHeader.subspace": _SUBSPACE,
    "GetUploadRequest.update_id": _UPDATE,
    "GetUploadRequest.sha256": lambda value, _: len(value) in (0, 32),
    "GetUploadRequest.subspace": _SUBSPACE,
    "GetUploadResponse.num_chunks": _count,
    "GetUploadResponse.num_bytes": _size,
    "GetUploadResponse.prefix_sha256": lambda value, _: len(value) == 32,
    "HeadInfo.task_type": _among("text-classification", "image-classification"),
    "HeadInfo.num_labels": _count,
    "HeadInfo.label_names": lambda value, setup: tuple(value) == setup.label_names,
    "PayloadHeader.wire_version": _among(1),
    "PayloadHeader.num_bytes": _size,
    "PayloadHeader.num_chunks": _count,
    "PayloadHeader.sha256": lambda value, _: len(value) in (0, 32),
    "Chunk.index": _count,
    "Chunk.data": _payload,
    "Chunk.prefix_sha256": _payload,
    "Receipt.update_id": _UPDATE,
    "Receipt.state": _among(1, 2, 3, 4, 5),
    "Receipt.version": _count,
    "Receipt.lag": _count,
    "Receipt.angle": _number,
    "Receipt.reason": _among(""),
    "PullSubspaceRequest.version": _count,
    "PullSubspaceRequest.held_version": _count,
    "PullSubspaceRequest.held_digest": _version_digest,
    "PullSubspaceRequest.min_version": _count,
    "PullSubspaceRequest.precision": _among(1),
    "PullSubspaceRequest.with_tail": _nothing,
    "PullSubspaceRequest.accept_rotation": _nothing,
    "PullSubspaceRequest.held_chain": _nothing,
    "PullSubspaceRequest.worker_id": _worker,
    "PullSubspaceRequest.lease_epoch": _count,
    "PullSubspaceRequest.subspace": _SUBSPACE,
    "PullSubspaceResponse.header": _message,
    "PullSubspaceResponse.chunk": _message,
    "SubspaceHeader.version": _count,
    "SubspaceHeader.not_modified": _among(True),
    "SubspaceHeader.fingerprint": _message,
    "SubspaceHeader.payload": _message,
    "SubspaceHeader.digest": _version_digest,
    "SubspaceHeader.store_id": lambda value, setup: value == setup.store_id,
    "SubspaceHeader.precision": _among(1),
    "SubspaceHeader.precision_loss": _nothing,
    "SubspaceHeader.has_tail": _nothing,
    "SubspaceHeader.rotated_from_version": _nothing,
    "SubspaceHeader.chain": lambda value, _: len(value) == 32,
    "PullTaskRequest.task_id": _task,
    "PullTaskRequest.version": _count,
    "PullTaskRequest.precision": _among(1),
    "PullTaskRequest.subspace": _SUBSPACE,
    "PullTaskResponse.header": _message,
    "PullTaskResponse.chunk": _message,
    "TaskHeader.task": _message,
    "TaskHeader.version": _count,
    "TaskHeader.payload": _message,
    "TaskHeader.precision": _among(1),
    "TaskHeader.precision_loss": _nothing,
    "TaskHeader.digest": _version_digest,
    "TaskSummary.task_id": _task,
    "TaskSummary.worker_id": _worker,
    "TaskSummary.update_id": _UPDATE,
    "TaskSummary.state": _among(1, 2, 3, 4, 5),
    "TaskSummary.base_version": _count,
    "TaskSummary.merged_version": _count,
    "TaskSummary.lag": _count,
    "TaskSummary.cumulative_drift": _number,
    "TaskSummary.num_samples": _count,
    "TaskSummary.scores": _SCORES,
    "TaskSummary.head": _message,
    "TaskSummary.pushed_at": _message,
    "TaskSummary.update_bytes": _size,
    "TaskSummary.head_bytes": _size,
    "TaskSummary.angle": _number,
    "TaskSummary.truncation": _number,
    "TaskSummary.owner": _worker,
    "TaskSummary.reason": _nothing,
    "TaskSummary.newer": _message,
    "NewerUpdate.update_id": _UPDATE,
    "NewerUpdate.state": _among(1, 2, 3, 4, 5),
    "NewerUpdate.reason": _nothing,
    "ListTasksRequest.page_size": _count,
    "ListTasksRequest.page_token": _task,
    "ListTasksRequest.subspace": _SUBSPACE,
    "ListTasksResponse.next_page_token": _task,
    "ListTasksResponse.tasks": _message,
    "ListTasksResponse.current_version": _count,
    "WatchVersionsRequest.after_version": _count,
    "WatchVersionsRequest.after_digest": _version_digest,
    "WatchVersionsRequest.subspace": _SUBSPACE,
    "VersionEvent.version": _count,
    "VersionEvent.merged_at": _message,
    "VersionEvent.update_ids": lambda value, setup: all(_UPDATE(each, setup) for each in value),
    "VersionEvent.task_ids": lambda value, setup: all(_task(each, setup) for each in value),
    "VersionEvent.lowest_energy_kept": _number,
    "VersionEvent.mean_energy_kept": _number,
    "VersionEvent.angle": _number,
    "VersionEvent.num_factors": _count,
    "VersionEvent.subspace_bytes": _size,
    "VersionEvent.drift": _map_of(_task, _number),
    "VersionEvent.merge_duration": _message,
    "VersionEvent.kind": _nothing,
    "VersionEvent.digest": _version_digest,
    "VersionEvent.parent_digest": _version_digest,
    "VersionEvent.content_version": _nothing,
    "VersionEvent.rotation_bytes": _size,
    "VersionEvent.num_moved": _count,
    "VersionEvent.largest_drift": _number,
    "GetStatusRequest.subspace": _SUBSPACE,
    "GetStatusResponse.current_version": _count,
    "GetStatusResponse.first_version": _count,
    "GetStatusResponse.fingerprint": _message,
    "GetStatusResponse.num_tasks": _count,
    "GetStatusResponse.num_pending": _count,
    "GetStatusResponse.num_quarantined": _count,
    "GetStatusResponse.workers": _message,
    "GetStatusResponse.num_watchers": _count,
    "GetStatusResponse.started_at": _message,
    "GetStatusResponse.release": _matching(r"\d+(\.\w+)+"),
    "WorkerStatus.worker_id": _worker,
    "WorkerStatus.lease_epoch": _count,
    "WorkerStatus.is_live": _among(True),
    "WorkerStatus.last_heartbeat_at": _message,
    "WorkerStatus.base_version": _count,
    "WorkerStatus.num_merged": _count,
    "GetStatusResponse.subspace": _SUBSPACE,
    "GetStatusResponse.store_id": lambda value, setup: value == setup.store_id,
    "GetStatusResponse.digest": _version_digest,
    "GetStatusResponse.num_parked": _nothing,
    "GetStatusResponse.num_synced_watchers": _count,
    "GetStatusResponse.num_catching_up_watchers": _count,
    "GetStatusResponse.num_slow_watchers": _count,
    "GetStatusResponse.bytes_in_flight": _size,
    "GetStatusResponse.principal": _among("local"),
    "GetStatusResponse.role": _among("admin"),
    "GetStatusResponse.newest_version_at": _message,
    "GetStatusResponse.merge_failure": _among(""),
    "GetStatusResponse.merges_fail_since": _message,
    "Timestamp.seconds": _time,
    "Timestamp.nanos": _time,
    "Duration.seconds": _time,
    "Duration.nanos": _time,
}

ALLOWED_METADATA: dict[tuple[str, str], str] = {
    ("to coordinator", "user-agent"): r"grpc-python/[\d.]+ grpc-c/[\d.]+ \(\w+; \w+\)",
}
"""(direction, key) -> pattern of its value. In a run without refusals there is nothing else."""
