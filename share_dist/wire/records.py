"""The small records of the protocol: what a coordinator answers beside tensors."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    # what a command needs before it knows what it is asked must not bring torch
    from share_dist.core.values import Coefficients, Fingerprint, Head, Subspace


Wait: TypeAlias = Literal["durable", "merged"]


class UpdateState(enum.Enum):
    """Where an update is on its way into a version."""

    PENDING = "pending"
    MERGED = "merged"
    PARKED = "parked"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    DROPPED = "dropped"


class VersionKind(enum.Enum):
    """How a version came to be."""

    MERGE = "merge"
    ROLLBACK = "rollback"
    REMOVAL = "removal"


Precision: TypeAlias = Literal["float32", "bfloat16", "int8", "int4"]
"""How the numbers of a payload are written."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "int4")

Role: TypeAlias = Literal["reader", "worker", "admin"]
"""What a principal may do in a subspace; each may do what those before it may."""

ROLES: tuple[Role, ...] = ("reader", "worker", "admin")

DEFAULT_SUBSPACE = "default"
"""The subspace that is meant where none is named."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to push, until it expires or another registration takes it over."""

    worker_id: str
    lease_epoch: int
    duration_seconds: float
    current_version: int
    fingerprint: "Fingerprint | None"
    store_id: str = ""
    takes_late_digest: bool = False
    """Whether a push may be hashed while it is sent."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a push. ``version`` and ``lag`` count once the state is MERGED."""

    update_id: str
    state: UpdateState
    version: int = 0
    lag: int = 0
    angle: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How much of an interrupted push is here: whole chunks, their bytes, and the SHA-256 of those."""

    num_chunks: int
    num_bytes: int
    prefix_sha256: bytes


@dataclass(frozen=True, slots=True)
class NewerUpdate:
    """A task's newest update, where the version holds a former one: it waits, or was set aside for this reason."""

    update_id: str
    state: UpdateState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task as the coordinator knows it, without its tensors."""

    task_id: str
    worker_id: str
    update_id: str
    state: UpdateState
    base_version: int
    merged_version: int
    lag: int
    angle: float
    truncation: float
    cumulative_drift: float
    num_samples: int
    scores: Mapping[str, float]
    head: "Head"
    """Without tensors: task type, number of labels and, if shared, their names."""
    pushed_at: datetime
    update_bytes: int
    head_bytes: int
    owner: str = ""
    reason: str = ""
    newer: NewerUpdate | None = None


@dataclass(frozen=True, slots=True)
class PulledTask:
    """One task at one version: enough to use it or to export it."""

    summary: TaskSummary
    coefficients: "Coefficients"
    head: "Head"
    subspace: "Subspace"


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """
    A version came to be: what a watcher is told.

    Args:
        version: Its number.
        merged_at: When.
        update_ids: What was merged.
        task_ids: Their tasks; the tasks taken out by a removal.
        lowest_energy_kept: Smallest share of energy that a side of a layer keeps.
        mean_energy_kept: The same, averaged.
        angle: Largest principal angle to the version before, radians.
        num_factors: Largest ``k``.
        subspace_bytes: As it is pulled.
        drift: Of the tasks that were moved most, at most ``MAX_TOLD_DRIFTS``.
        merge_seconds: How long the merge took.
        kind: How it came to be.
        digest: SHA-256 (hex) over its number, its content and its parent's digest.
        parent_digest: Of the version before.
        content_version: What a rollback went back to.
        rotation_bytes: Bytes of the steps from the version before; 0 when there are none.
        num_moved: How many tasks it moved.
        largest_drift: Largest drift of a single task.
    """

    version: int
    merged_at: datetime
    update_ids: tuple[str, ...]
    task_ids: tuple[str, ...]
    lowest_energy_kept: float
    mean_energy_kept: float
    angle: float
    num_factors: int
    subspace_bytes: int
    drift: Mapping[str, float] = field(default_factory=dict)
    merge_seconds: float = 0.0
    kind: VersionKind = VersionKind.MERGE
    digest: str = ""
    parent_digest: str = ""
    content_version: int = 0
    rotation_bytes: int = 0
    num_moved: int = 0
    largest_drift: float = 0.0


MAX_TOLD_DRIFTS = 100
"""Drifts in one event: an event must fit into one message however many tasks there are."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as the coordinator sees it."""

    worker_id: str
    lease_epoch: int
    is_live: bool
    last_heartbeat_at: datetime
    base_version: int = 0
    num_merged: int = 0


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """How a coordinator is."""

    current_version: int
    first_version: int
    fingerprint: "Fingerprint | None"
    num_tasks: int
    num_pending: int
    num_quarantined: int
    workers: tuple[WorkerStatus, ...]
    num_watchers: int
    started_at: datetime
    release: str
    subspace: str = DEFAULT_SUBSPACE
    store_id: str = ""
    digest: str = ""
    num_parked: int = 0
    num_synced_watchers: int = 0
    num_catching_up_watchers: int = 0
    num_slow_watchers: int = 0
    bytes_in_flight: int = 0
    principal: str = ""
    role: str = ""
    newest_version_at: datetime | None = None
    merge_failure: str = ""
    """Why the last attempt to merge failed; empty where it did not."""
    merges_fail_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class SubspaceSummary:
    """One named subspace of a coordinator."""

    name: str
    fingerprint: "Fingerprint | None"
    current_version: int
    first_version: int
    num_tasks: int
    num_pending: int
    role: str = ""


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A version in its lineage; ``is_kept`` while its tensors are."""

    event: VersionEvent
    is_kept: bool
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """One side of one layer in two versions; the angle in radians."""

    layer: str
    side: str
    angle: float
    num_factors_a: int
    num_factors_b: int


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What lies between two versions; drifts as served, of the tasks in both that moved most."""

    version_a: int
    version_b: int
    layers: tuple[LayerDiff, ...]
    angle: float
    added_task_ids: tuple[str, ...]
    removed_task_ids: tuple[str, ...]
    drift: Mapping[str, float]
    num_moved: int


@dataclass(frozen=True, slots=True)
class TaskMove:
    """How far one version moved one task."""

    version: int
    drift: float
    is_own_merge: bool
    update_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compaction:
    """
    What compacting did or would do.

    Args:
        versions: Those that went.
        freed_bytes: Of all payloads that went.
        first_version: The oldest version from which every later one is kept.
        kept: Versions kept beyond the newest -> why.
        num_updates: Updates whose payloads went.
    """

    versions: tuple[int, ...]
    freed_bytes: int
    first_version: int
    kept: Mapping[int, str]
    num_updates: int = 0


@dataclass(frozen=True, slots=True)
class Removal:
    """
    A task was taken out.

    Args:
        event: The version that is without it.
        residue_bound: What may be left of it: energy cut while it was present, relative
            to its own; 0 where nothing is.
    """

    event: VersionEvent
    residue_bound: float


@dataclass(frozen=True, slots=True)
class UpdateSummary:
    """
    One update as the coordinator knows it, without its tensors.

    Args:
        sequence: Order of arrival.
        receipt: What became of it.
        task_id: Of which task.
        worker_id: Who pushed it.
        base_version: What it was trained on.
        pushed_at: When it came.
        update_bytes: Of its payload.
        digest: SHA-256 (hex) of what was pushed; of a refused push, of its payload alone.
        let_go_at: The version that was current when a compaction let go of its payload; None
            while that is kept.
    """

    sequence: int
    receipt: Receipt
    task_id: str
    worker_id: str
    base_version: int
    pushed_at: datetime
    update_bytes: int
    digest: str
    let_go_at: int | None = None


@dataclass(frozen=True, slots=True)
class LayerMeasure:
    """An update's ``dW`` in one layer: Frobenius norm, singular values, share of energy outside the bases."""

    layer: str
    norm: float
    largest_singular: float
    smallest_singular: float
    energy_outside: float


@dataclass(frozen=True, slots=True)
class UpdateInspection:
    """
    One update with its measures; without any where its payload was let go of.

    ``influence`` is the drift of others if it alone were merged now.
    """

    update: UpdateSummary
    layers: tuple[LayerMeasure, ...]
    influence: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret."""

    token_id: str
    principal: str
    role: Role
    subspaces: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Which token is asked for. It does not expire where ``valid_seconds`` is 0."""

    principal: str
    role: Role
    subspaces: tuple[str, ...]
    valid_seconds: int = 0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who changed what, and when."""

    sequence: int
    at: datetime
    principal: str
    action: str
    subspace: str = ""
    subject: str = ""
    digest: str = ""
    detail: str = ""
