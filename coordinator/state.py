"""What the handlers act on: the parts of one running coordinator, in one place."""

from dataclasses import dataclass
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.config import CoordinatorConfig
from coordinator.leases import Leases
from coordinator.metrics import Metrics
from coordinator.store.base import Store
from coordinator.versions import VersionCache
from coordinator.writer import MergeWriter


@dataclass(frozen=True)
class Coordinator:
    """The parts of one running coordinator; made by ``coordinator.app``."""

    config: CoordinatorConfig
    store: Store
    versions: VersionCache
    leases: Leases
    broadcast: Broadcast
    writer: MergeWriter
    metrics: Metrics
    log: FilteringBoundLogger
    clock: Clock
    started_at: datetime
