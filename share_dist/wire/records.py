"""The small records of the protocol: what a coordinator answers beside tensors."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from share_dist.core.values import Coefficients, Fingerprint, Head, Subspace

Wait: TypeAlias = Literal["durable", "merged"]


class UpdateState(enum.Enum):
    """Where an update is on its way into a version."""

    PENDING = "pending"
    MERGED = "merged"
    PARKED = "parked"
    QUARANTINED = "quarantined"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to push, until it expires or another registration takes it over."""

    worker_id: str
    lease_epoch: int
    duration_seconds: float
    current_version: int
    fingerprint: Fingerprint | None


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
    head: Head
    """Without tensors: task type, number of labels and, if shared, their names."""
    pushed_at: datetime
    update_bytes: int
    head_bytes: int


@dataclass(frozen=True, slots=True)
class PulledTask:
    """One task at one version: enough to use it or to export it."""

    summary: TaskSummary
    coefficients: Coefficients
    head: Head
    subspace: Subspace


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """A version came to be: what a watcher is told."""

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


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as the coordinator sees it."""

    worker_id: str
    lease_epoch: int
    is_live: bool
    last_heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """How a coordinator is."""

    current_version: int
    first_version: int
    fingerprint: Fingerprint | None
    num_tasks: int
    num_pending: int
    num_quarantined: int
    workers: tuple[WorkerStatus, ...]
    num_watchers: int
    started_at: datetime
    release: str
