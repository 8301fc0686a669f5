import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from share_dist.pb import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Wait(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAIT_UNSPECIFIED: _ClassVar[Wait]
    WAIT_DURABLE: _ClassVar[Wait]
    WAIT_MERGED: _ClassVar[Wait]
WAIT_UNSPECIFIED: Wait
WAIT_DURABLE: Wait
WAIT_MERGED: Wait

class Fingerprint(_message.Message):
    __slots__ = ("base_model", "metric", "wire_version", "layers")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    metric: str
    wire_version: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerShape]
    def __init__(self, base_model: _Optional[str] = ..., metric: _Optional[str] = ..., wire_version: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerShape, _Mapping]]] = ...) -> None: ...

class LayerShape(_message.Message):
    __slots__ = ("name", "in_features", "out_features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    in_features: int
    out_features: int
    def __init__(self, name: _Optional[str] = ..., in_features: _Optional[int] = ..., out_features: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("worker_id", "fingerprint", "subspace")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    fingerprint: Fingerprint
    subspace: str
    def __init__(self, worker_id: _Optional[str] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., subspace: _Optional[str] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("lease_epoch", "lease_duration", "current_version", "fingerprint", "store_id", "takes_late_digest")
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    TAKES_LATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    lease_epoch: int
    lease_duration: _duration_pb2.Duration
    current_version: int
    fingerprint: Fingerprint
    store_id: str
    takes_late_digest: bool
    def __init__(self, lease_epoch: _Optional[int] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., current_version: _Optional[int] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., store_id: _Optional[str] = ..., takes_late_digest: bool = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker_id", "lease_epoch", "subspace")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease_epoch: int
    subspace: str
    def __init__(self, worker_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., subspace: _Optional[str] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("lease_duration", "current_version")
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    lease_duration: _duration_pb2.Duration
    current_version: int
    def __init__(self, lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., current_version: _Optional[int] = ...) -> None: ...

class PushUpdateRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: _tensor_pb2.Chunk
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.Chunk, _Mapping]] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("update_id", "task_id", "worker_id", "lease_epoch", "base_version", "fingerprint_digest", "weight", "num_samples", "scores", "head", "payload", "wait", "base_digest", "first_chunk", "subspace")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    task_id: str
    worker_id: str
    lease_epoch: int
    base_version: int
    fingerprint_digest: str
    weight: float
    num_samples: int
    scores: _containers.ScalarMap[str, float]
    head: HeadInfo
    payload: _tensor_pb2.PayloadHeader
    wait: Wait
    base_digest: str
    first_chunk: int
    subspace: str
    def __init__(self, update_id: _Optional[str] = ..., task_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., base_version: _Optional[int] = ..., fingerprint_digest: _Optional[str] = ..., weight: _Optional[float] = ..., num_samples: _Optional[int] = ..., scores: _Optional[_Mapping[str, float]] = ..., head: _Optional[_Union[HeadInfo, _Mapping]] = ..., payload: _Optional[_Union[_tensor_pb2.PayloadHeader, _Mapping]] = ..., wait: _Optional[_Union[Wait, str]] = ..., base_digest: _Optional[str] = ..., first_chunk: _Optional[int] = ..., subspace: _Optional[str] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("update_id", "sha256", "subspace")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    sha256: bytes
    subspace: str
    def __init__(self, update_id: _Optional[str] = ..., sha256: _Optional[bytes] = ..., subspace: _Optional[str] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("num_chunks", "num_bytes", "prefix_sha256")
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_SHA256_FIELD_NUMBER: _ClassVar[int]
    num_chunks: int
    num_bytes: int
    prefix_sha256: bytes
    def __init__(self, num_chunks: _Optional[int] = ..., num_bytes: _Optional[int] = ..., prefix_sha256: _Optional[bytes] = ...) -> None: ...

class HeadInfo(_message.Message):
    __slots__ = ("task_type", "num_labels", "label_names")
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_NAMES_FIELD_NUMBER: _ClassVar[int]
    task_type: str
    num_labels: int
    label_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, task_type: _Optional[str] = ..., num_labels: _Optional[int] = ..., label_names: _Optional[_Iterable[str]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("update_id", "state", "version", "lag", "angle", "reason")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Receipt.State]
        PENDING: _ClassVar[Receipt.State]
        MERGED: _ClassVar[Receipt.State]
        PARKED: _ClassVar[Receipt.State]
        QUARANTINED: _ClassVar[Receipt.State]
        REFUSED: _ClassVar[Receipt.State]
        ROLLED_BACK: _ClassVar[Receipt.State]
        DROPPED: _ClassVar[Receipt.State]
    STATE_UNSPECIFIED: Receipt.State
    PENDING: Receipt.State
    MERGED: Receipt.State
    PARKED: Receipt.State
    QUARANTINED: Receipt.State
    REFUSED: Receipt.State
    ROLLED_BACK: Receipt.State
    DROPPED: Receipt.State
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    ANGLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    state: Receipt.State
    version: int
    lag: int
    angle: float
    reason: str
    def __init__(self, update_id: _Optional[str] = ..., state: _Optional[_Union[Receipt.State, str]] = ..., version: _Optional[int] = ..., lag: _Optional[int] = ..., angle: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class PullSubspaceRequest(_message.Message):
    __slots__ = ("version", "held_version", "held_digest", "min_version", "precision", "with_tail", "accept_rotation", "held_chain", "worker_id", "lease_epoch", "subspace")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HELD_VERSION_FIELD_NUMBER: _ClassVar[int]
    HELD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    WITH_TAIL_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_ROTATION_FIELD_NUMBER: _ClassVar[int]
    HELD_CHAIN_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    version: int
    held_version: int
    held_digest: str
    min_version: int
    precision: _tensor_pb2.Precision
    with_tail: bool
    accept_rotation: bool
    held_chain: bytes
    worker_id: str
    lease_epoch: int
    subspace: str
    def __init__(self, version: _Optional[int] = ..., held_version: _Optional[int] = ..., held_digest: _Optional[str] = ..., min_version: _Optional[int] = ..., precision: _Optional[_Union[_tensor_pb2.Precision, str]] = ..., with_tail: bool = ..., accept_rotation: bool = ..., held_chain: _Optional[bytes] = ..., worker_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., subspace: _Optional[str] = ...) -> None: ...

class PullSubspaceResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SubspaceHeader
    chunk: _tensor_pb2.Chunk
    def __init__(self, header: _Optional[_Union[SubspaceHeader, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.Chunk, _Mapping]] = ...) -> None: ...

class SubspaceHeader(_message.Message):
    __slots__ = ("version", "not_modified", "fingerprint", "payload", "digest", "store_id", "precision", "precision_loss", "has_tail", "rotated_from_version", "chain")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_LOSS_FIELD_NUMBER: _ClassVar[int]
    HAS_TAIL_FIELD_NUMBER: _ClassVar[int]
    ROTATED_FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    version: int
    not_modified: bool
    fingerprint: Fingerprint
    payload: _tensor_pb2.PayloadHeader
    digest: str
    store_id: str
    precision: _tensor_pb2.Precision
    precision_loss: float
    has_tail: bool
    rotated_from_version: int
    chain: bytes
    def __init__(self, version: _Optional[int] = ..., not_modified: bool = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., payload: _Optional[_Union[_tensor_pb2.PayloadHeader, _Mapping]] = ..., digest: _Optional[str] = ..., store_id: _Optional[str] = ..., precision: _Optional[_Union[_tensor_pb2.Precision, str]] = ..., precision_loss: _Optional[float] = ..., has_tail: bool = ..., rotated_from_version: _Optional[int] = ..., chain: _Optional[bytes] = ...) -> None: ...

class PullTaskRequest(_message.Message):
    __slots__ = ("task_id", "version", "precision", "subspace")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    version: int
    precision: _tensor_pb2.Precision
    subspace: str
    def __init__(self, task_id: _Optional[str] = ..., version: _Optional[int] = ..., precision: _Optional[_Union[_tensor_pb2.Precision, str]] = ..., subspace: _Optional[str] = ...) -> None: ...

class PullTaskResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: TaskHeader
    chunk: _tensor_pb2.Chunk
    def __init__(self, header: _Optional[_Union[TaskHeader, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.Chunk, _Mapping]] = ...) -> None: ...

class TaskHeader(_message.Message):
    __slots__ = ("task", "version", "payload", "precision", "precision_loss", "digest")
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_LOSS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    task: TaskSummary
    version: int
    payload: _tensor_pb2.PayloadHeader
    precision: _tensor_pb2.Precision
    precision_loss: float
    digest: str
    def __init__(self, task: _Optional[_Union[TaskSummary, _Mapping]] = ..., version: _Optional[int] = ..., payload: _Optional[_Union[_tensor_pb2.PayloadHeader, _Mapping]] = ..., precision: _Optional[_Union[_tensor_pb2.Precision, str]] = ..., precision_loss: _Optional[float] = ..., digest: _Optional[str] = ...) -> None: ...

class TaskSummary(_message.Message):
    __slots__ = ("task_id", "worker_id", "update_id", "state", "base_version", "merged_version", "lag", "cumulative_drift", "num_samples", "scores", "head", "pushed_at", "update_bytes", "head_bytes", "angle", "truncation", "owner", "reason", "newer")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MERGED_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_DRIFT_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PUSHED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    ANGLE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEWER_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    worker_id: str
    update_id: str
    state: Receipt.State
    base_version: int
    merged_version: int
    lag: int
    cumulative_drift: float
    num_samples: int
    scores: _containers.ScalarMap[str, float]
    head: HeadInfo
    pushed_at: _timestamp_pb2.Timestamp
    update_bytes: int
    head_bytes: int
    angle: float
    truncation: float
    owner: str
    reason: str
    newer: NewerUpdate
    def __init__(self, task_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., update_id: _Optional[str] = ..., state: _Optional[_Union[Receipt.State, str]] = ..., base_version: _Optional[int] = ..., merged_version: _Optional[int] = ..., lag: _Optional[int] = ..., cumulative_drift: _Optional[float] = ..., num_samples: _Optional[int] = ..., scores: _Optional[_Mapping[str, float]] = ..., head: _Optional[_Union[HeadInfo, _Mapping]] = ..., pushed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_bytes: _Optional[int] = ..., head_bytes: _Optional[int] = ..., angle: _Optional[float] = ..., truncation: _Optional[float] = ..., owner: _Optional[str] = ..., reason: _Optional[str] = ..., newer: _Optional[_Union[NewerUpdate, _Mapping]] = ...) -> None: ...

class NewerUpdate(_message.Message):
    __slots__ = ("update_id", "state", "reason")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    state: Receipt.State
    reason: str
    def __init__(self, update_id: _Optional[str] = ..., state: _Optional[_Union[Receipt.State, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "subspace")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    subspace: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "current_version", "next_page_token")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskSummary]
    current_version: int
    next_page_token: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskSummary, _Mapping]]] = ..., current_version: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchVersionsRequest(_message.Message):
    __slots__ = ("after_version", "after_digest", "subspace")
    AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    AFTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    after_version: int
    after_digest: str
    subspace: str
    def __init__(self, after_version: _Optional[int] = ..., after_digest: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class VersionEvent(_message.Message):
    __slots__ = ("version", "merged_at", "update_ids", "task_ids", "lowest_energy_kept", "mean_energy_kept", "angle", "num_factors", "subspace_bytes", "drift", "merge_duration", "kind", "digest", "parent_digest", "content_version", "rotation_bytes", "num_moved", "largest_drift")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MERGE: _ClassVar[VersionEvent.Kind]
        ROLLBACK: _ClassVar[VersionEvent.Kind]
        REMOVAL: _ClassVar[VersionEvent.Kind]
    MERGE: VersionEvent.Kind
    ROLLBACK: VersionEvent.Kind
    REMOVAL: VersionEvent.Kind
    class DriftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MERGED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    LOWEST_ENERGY_KEPT_FIELD_NUMBER: _ClassVar[int]
    MEAN_ENERGY_KEPT_FIELD_NUMBER: _ClassVar[int]
    ANGLE_FIELD_NUMBER: _ClassVar[int]
    NUM_FACTORS_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    MERGE_DURATION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROTATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_MOVED_FIELD_NUMBER: _ClassVar[int]
    LARGEST_DRIFT_FIELD_NUMBER: _ClassVar[int]
    version: int
    merged_at: _timestamp_pb2.Timestamp
    update_ids: _containers.RepeatedScalarFieldContainer[str]
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    lowest_energy_kept: float
    mean_energy_kept: float
    angle: float
    num_factors: int
    subspace_bytes: int
    drift: _containers.ScalarMap[str, float]
    merge_duration: _duration_pb2.Duration
    kind: VersionEvent.Kind
    digest: str
    parent_digest: str
    content_version: int
    rotation_bytes: int
    num_moved: int
    largest_drift: float
    def __init__(self, version: _Optional[int] = ..., merged_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_ids: _Optional[_Iterable[str]] = ..., task_ids: _Optional[_Iterable[str]] = ..., lowest_energy_kept: _Optional[float] = ..., mean_energy_kept: _Optional[float] = ..., angle: _Optional[float] = ..., num_factors: _Optional[int] = ..., subspace_bytes: _Optional[int] = ..., drift: _Optional[_Mapping[str, float]] = ..., merge_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., kind: _Optional[_Union[VersionEvent.Kind, str]] = ..., digest: _Optional[str] = ..., parent_digest: _Optional[str] = ..., content_version: _Optional[int] = ..., rotation_bytes: _Optional[int] = ..., num_moved: _Optional[int] = ..., largest_drift: _Optional[float] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("subspace",)
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    subspace: str
    def __init__(self, subspace: _Optional[str] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("current_version", "first_version", "fingerprint", "num_tasks", "num_pending", "num_quarantined", "workers", "num_watchers", "started_at", "release", "subspace", "store_id", "digest", "num_parked", "num_synced_watchers", "num_catching_up_watchers", "num_slow_watchers", "bytes_in_flight", "principal", "role", "newest_version_at", "merge_failure", "merges_fail_since")
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_TASKS_FIELD_NUMBER: _ClassVar[int]
    NUM_PENDING_FIELD_NUMBER: _ClassVar[int]
    NUM_QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_WATCHERS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_PARKED_FIELD_NUMBER: _ClassVar[int]
    NUM_SYNCED_WATCHERS_FIELD_NUMBER: _ClassVar[int]
    NUM_CATCHING_UP_WATCHERS_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOW_WATCHERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NEWEST_VERSION_AT_FIELD_NUMBER: _ClassVar[int]
    MERGE_FAILURE_FIELD_NUMBER: _ClassVar[int]
    MERGES_FAIL_SINCE_FIELD_NUMBER: _ClassVar[int]
    current_version: int
    first_version: int
    fingerprint: Fingerprint
    num_tasks: int
    num_pending: int
    num_quarantined: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    num_watchers: int
    started_at: _timestamp_pb2.Timestamp
    release: str
    subspace: str
    store_id: str
    digest: str
    num_parked: int
    num_synced_watchers: int
    num_catching_up_watchers: int
    num_slow_watchers: int
    bytes_in_flight: int
    principal: str
    role: str
    newest_version_at: _timestamp_pb2.Timestamp
    merge_failure: str
    merges_fail_since: _timestamp_pb2.Timestamp
    def __init__(self, current_version: _Optional[int] = ..., first_version: _Optional[int] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., num_tasks: _Optional[int] = ..., num_pending: _Optional[int] = ..., num_quarantined: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., num_watchers: _Optional[int] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., release: _Optional[str] = ..., subspace: _Optional[str] = ..., store_id: _Optional[str] = ..., digest: _Optional[str] = ..., num_parked: _Optional[int] = ..., num_synced_watchers: _Optional[int] = ..., num_catching_up_watchers: _Optional[int] = ..., num_slow_watchers: _Optional[int] = ..., bytes_in_flight: _Optional[int] = ..., principal: _Optional[str] = ..., role: _Optional[str] = ..., newest_version_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., merge_failure: _Optional[str] = ..., merges_fail_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker_id", "lease_epoch", "is_live", "last_heartbeat_at", "base_version", "num_merged")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    IS_LIVE_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_AT_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_MERGED_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease_epoch: int
    is_live: bool
    last_heartbeat_at: _timestamp_pb2.Timestamp
    base_version: int
    num_merged: int
    def __init__(self, worker_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., is_live: bool = ..., last_heartbeat_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., base_version: _Optional[int] = ..., num_merged: _Optional[int] = ...) -> None: ...
