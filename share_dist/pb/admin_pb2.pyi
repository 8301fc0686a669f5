import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from share_dist.pb import coordinator_pb2 as _coordinator_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListSubspacesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSubspacesResponse(_message.Message):
    __slots__ = ("subspaces",)
    SUBSPACES_FIELD_NUMBER: _ClassVar[int]
    subspaces: _containers.RepeatedCompositeFieldContainer[SubspaceSummary]
    def __init__(self, subspaces: _Optional[_Iterable[_Union[SubspaceSummary, _Mapping]]] = ...) -> None: ...

class SubspaceSummary(_message.Message):
    __slots__ = ("name", "fingerprint", "current_version", "first_version", "num_tasks", "num_pending", "role")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_TASKS_FIELD_NUMBER: _ClassVar[int]
    NUM_PENDING_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: _coordinator_pb2.Fingerprint
    current_version: int
    first_version: int
    num_tasks: int
    num_pending: int
    role: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[_Union[_coordinator_pb2.Fingerprint, _Mapping]] = ..., current_version: _Optional[int] = ..., first_version: _Optional[int] = ..., num_tasks: _Optional[int] = ..., num_pending: _Optional[int] = ..., role: _Optional[str] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("after_version", "page_size", "subspace")
    AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    after_version: int
    page_size: int
    subspace: str
    def __init__(self, after_version: _Optional[int] = ..., page_size: _Optional[int] = ..., subspace: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "current_version")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionSummary]
    current_version: int
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionSummary, _Mapping]]] = ..., current_version: _Optional[int] = ...) -> None: ...

class VersionSummary(_message.Message):
    __slots__ = ("event", "is_kept", "stored_bytes")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    IS_KEPT_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    event: _coordinator_pb2.VersionEvent
    is_kept: bool
    stored_bytes: int
    def __init__(self, event: _Optional[_Union[_coordinator_pb2.VersionEvent, _Mapping]] = ..., is_kept: bool = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class DiffVersionsRequest(_message.Message):
    __slots__ = ("version_a", "version_b", "subspace")
    VERSION_A_FIELD_NUMBER: _ClassVar[int]
    VERSION_B_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    version_a: int
    version_b: int
    subspace: str
    def __init__(self, version_a: _Optional[int] = ..., version_b: _Optional[int] = ..., subspace: _Optional[str] = ...) -> None: ...

class VersionDiff(_message.Message):
    __slots__ = ("version_a", "version_b", "layers", "angle", "added_task_ids", "removed_task_ids", "drift", "num_moved")
    class DriftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_A_FIELD_NUMBER: _ClassVar[int]
    VERSION_B_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ANGLE_FIELD_NUMBER: _ClassVar[int]
    ADDED_TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    NUM_MOVED_FIELD_NUMBER: _ClassVar[int]
    version_a: int
    version_b: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerDiff]
    angle: float
    added_task_ids: _containers.RepeatedScalarFieldContainer[str]
    removed_task_ids: _containers.RepeatedScalarFieldContainer[str]
    drift: _containers.ScalarMap[str, float]
    num_moved: int
    def __init__(self, version_a: _Optional[int] = ..., version_b: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerDiff, _Mapping]]] = ..., angle: _Optional[float] = ..., added_task_ids: _Optional[_Iterable[str]] = ..., removed_task_ids: _Optional[_Iterable[str]] = ..., drift: _Optional[_Mapping[str, float]] = ..., num_moved: _Optional[int] = ...) -> None: ...

class LayerDiff(_message.Message):
    __slots__ = ("layer", "side", "angle", "num_factors_a", "num_factors_b")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    ANGLE_FIELD_NUMBER: _ClassVar[int]
    NUM_FACTORS_A_FIELD_NUMBER: _ClassVar[int]
    NUM_FACTORS_B_FIELD_NUMBER: _ClassVar[int]
    layer: str
    side: str
    angle: float
    num_factors_a: int
    num_factors_b: int
    def __init__(self, layer: _Optional[str] = ..., side: _Optional[str] = ..., angle: _Optional[float] = ..., num_factors_a: _Optional[int] = ..., num_factors_b: _Optional[int] = ...) -> None: ...

class GetTaskHistoryRequest(_message.Message):
    __slots__ = ("task_id", "subspace")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    subspace: str
    def __init__(self, task_id: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class TaskHistory(_message.Message):
    __slots__ = ("moves",)
    MOVES_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[TaskMove]
    def __init__(self, moves: _Optional[_Iterable[_Union[TaskMove, _Mapping]]] = ...) -> None: ...

class TaskMove(_message.Message):
    __slots__ = ("version", "drift", "is_own_merge", "update_ids")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    IS_OWN_MERGE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    drift: float
    is_own_merge: bool
    update_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., drift: _Optional[float] = ..., is_own_merge: bool = ..., update_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("version", "reason", "subspace")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    version: int
    reason: str
    subspace: str
    def __init__(self, version: _Optional[int] = ..., reason: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class CompactRequest(_message.Message):
    __slots__ = ("keep_versions", "dry_run", "subspace")
    KEEP_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    keep_versions: int
    dry_run: bool
    subspace: str
    def __init__(self, keep_versions: _Optional[int] = ..., dry_run: bool = ..., subspace: _Optional[str] = ...) -> None: ...

class CompactResponse(_message.Message):
    __slots__ = ("versions", "freed_bytes", "first_version", "kept", "num_updates")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FIRST_VERSION_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATES_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    freed_bytes: int
    first_version: int
    kept: _containers.RepeatedCompositeFieldContainer[KeptVersion]
    num_updates: int
    def __init__(self, versions: _Optional[_Iterable[int]] = ..., freed_bytes: _Optional[int] = ..., first_version: _Optional[int] = ..., kept: _Optional[_Iterable[_Union[KeptVersion, _Mapping]]] = ..., num_updates: _Optional[int] = ...) -> None: ...

class KeptVersion(_message.Message):
    __slots__ = ("version", "reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    version: int
    reason: str
    def __init__(self, version: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RemoveTaskRequest(_message.Message):
    __slots__ = ("task_id", "reason", "worker_id", "subspace")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: str
    worker_id: str
    subspace: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[str] = ..., worker_id: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class RemoveTaskResponse(_message.Message):
    __slots__ = ("event", "residue_bound")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RESIDUE_BOUND_FIELD_NUMBER: _ClassVar[int]
    event: _coordinator_pb2.VersionEvent
    residue_bound: float
    def __init__(self, event: _Optional[_Union[_coordinator_pb2.VersionEvent, _Mapping]] = ..., residue_bound: _Optional[float] = ...) -> None: ...

class ListUpdatesRequest(_message.Message):
    __slots__ = ("states", "before_sequence", "page_size", "subspace")
    STATES_FIELD_NUMBER: _ClassVar[int]
    BEFORE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[_coordinator_pb2.Receipt.State]
    before_sequence: int
    page_size: int
    subspace: str
    def __init__(self, states: _Optional[_Iterable[_Union[_coordinator_pb2.Receipt.State, str]]] = ..., before_sequence: _Optional[int] = ..., page_size: _Optional[int] = ..., subspace: _Optional[str] = ...) -> None: ...

class ListUpdatesResponse(_message.Message):
    __slots__ = ("updates",)
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[UpdateSummary]
    def __init__(self, updates: _Optional[_Iterable[_Union[UpdateSummary, _Mapping]]] = ...) -> None: ...

class UpdateSummary(_message.Message):
    __slots__ = ("sequence", "receipt", "task_id", "worker_id", "base_version", "pushed_at", "update_bytes", "digest", "let_go_at")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUSHED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LET_GO_AT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    receipt: _coordinator_pb2.Receipt
    task_id: str
    worker_id: str
    base_version: int
    pushed_at: _timestamp_pb2.Timestamp
    update_bytes: int
    digest: str
    let_go_at: int
    def __init__(self, sequence: _Optional[int] = ..., receipt: _Optional[_Union[_coordinator_pb2.Receipt, _Mapping]] = ..., task_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., base_version: _Optional[int] = ..., pushed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_bytes: _Optional[int] = ..., digest: _Optional[str] = ..., let_go_at: _Optional[int] = ...) -> None: ...

class InspectUpdateRequest(_message.Message):
    __slots__ = ("update_id", "subspace")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    subspace: str
    def __init__(self, update_id: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class UpdateInspection(_message.Message):
    __slots__ = ("update", "layers", "influence")
    class InfluenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    update: UpdateSummary
    layers: _containers.RepeatedCompositeFieldContainer[LayerMeasure]
    influence: _containers.ScalarMap[str, float]
    def __init__(self, update: _Optional[_Union[UpdateSummary, _Mapping]] = ..., layers: _Optional[_Iterable[_Union[LayerMeasure, _Mapping]]] = ..., influence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class LayerMeasure(_message.Message):
    __slots__ = ("layer", "norm", "largest_singular", "smallest_singular", "energy_outside")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SINGULAR_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_SINGULAR_FIELD_NUMBER: _ClassVar[int]
    ENERGY_OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    layer: str
    norm: float
    largest_singular: float
    smallest_singular: float
    energy_outside: float
    def __init__(self, layer: _Optional[str] = ..., norm: _Optional[float] = ..., largest_singular: _Optional[float] = ..., smallest_singular: _Optional[float] = ..., energy_outside: _Optional[float] = ...) -> None: ...

class ReplayUpdateRequest(_message.Message):
    __slots__ = ("update_id", "reason", "subspace")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    reason: str
    subspace: str
    def __init__(self, update_id: _Optional[str] = ..., reason: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class DropUpdateRequest(_message.Message):
    __slots__ = ("update_id", "reason", "subspace")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    update_id: str
    reason: str
    subspace: str
    def __init__(self, update_id: _Optional[str] = ..., reason: _Optional[str] = ..., subspace: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("token_id", "principal", "role", "subspaces", "created_at", "expires_at", "revoked_at")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SUBSPACES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    principal: str
    role: str
    subspaces: _containers.RepeatedScalarFieldContainer[str]
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    revoked_at: _timestamp_pb2.Timestamp
    def __init__(self, token_id: _Optional[str] = ..., principal: _Optional[str] = ..., role: _Optional[str] = ..., subspaces: _Optional[_Iterable[str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revoked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("principal", "role", "subspaces", "valid_seconds")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SUBSPACES_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    principal: str
    role: str
    subspaces: _containers.RepeatedScalarFieldContainer[str]
    valid_seconds: int
    def __init__(self, principal: _Optional[str] = ..., role: _Optional[str] = ..., subspaces: _Optional[_Iterable[str]] = ..., valid_seconds: _Optional[int] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("token", "secret")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    token: Token
    secret: str
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("token_id",)
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    def __init__(self, token_id: _Optional[str] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("after_sequence", "page_size", "before_sequence")
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    page_size: int
    before_sequence: int
    def __init__(self, after_sequence: _Optional[int] = ..., page_size: _Optional[int] = ..., before_sequence: _Optional[int] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("sequence", "at", "principal", "action", "subspace", "subject", "digest", "detail")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SUBSPACE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at: _timestamp_pb2.Timestamp
    principal: str
    action: str
    subspace: str
    subject: str
    digest: str
    detail: str
    def __init__(self, sequence: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., principal: _Optional[str] = ..., action: _Optional[str] = ..., subspace: _Optional[str] = ..., subject: _Optional[str] = ..., digest: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
