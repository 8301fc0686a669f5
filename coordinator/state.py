"""What the handlers act on: the parts of one running coordinator, in one place."""

from dataclasses import dataclass
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from coordinator.access import Access, Principal
from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.compaction import Compactor, Holds
from coordinator.config import CoordinatorConfig, SubspaceConfig
from coordinator.leases import Leases
from coordinator.lineages import Lineages
from coordinator.metrics import Metrics, SubspaceMetrics
from coordinator.store.base import Catalog, Store
from coordinator.transfers import ByteBudget
from coordinator.uploads import UploadSpool
from coordinator.versions import VersionCache
from coordinator.writer import MergeWriter
from share_dist.wire.records import Role


@dataclass(frozen=True)
class Lineage:
    """One named subspace through all its versions: the parts that serve it."""

    name: str
    config: SubspaceConfig
    store: Store
    versions: VersionCache
    leases: Leases
    broadcast: Broadcast
    holds: Holds
    compactor: Compactor
    writer: MergeWriter
    metrics: SubspaceMetrics
    log: FilteringBoundLogger


@dataclass(frozen=True)
class Coordinator:
    """The parts of one running coordinator; made by ``coordinator.app``."""

    config: CoordinatorConfig
    catalog: Catalog
    lineages: "Lineages[Lineage]"
    access: Access
    budget: ByteBudget
    uploads: UploadSpool
    metrics: Metrics
    log: FilteringBoundLogger
    clock: Clock
    started_at: datetime


@dataclass(frozen=True)
class Call:
    """One call that has been let in: by whom, and on which named subspace."""

    coordinator: Coordinator
    lineage: Lineage
    principal: Principal
    peer: str

    @property
    def clock(self) -> Clock:
        """The time."""
        return self.coordinator.clock

    def require(self, needed: Role) -> None:
        """
        Raise unless the caller has a role in this subspace.

        Raises:
            NotPermitted: It has not.
        """
        self.coordinator.access.require(self.principal, self.lineage.name, needed)
