"""What the handlers act on: the parts of one running coordinator, in one place."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from coordinator.access import Access, Principal
from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.compaction import Compactor, Holds
from coordinator.config import CoordinatorConfig, SubspaceConfig
from coordinator.leases import Leases, Registrations
from coordinator.lineages import Lineages
from coordinator.metrics import Metrics, SubspaceMetrics
from coordinator.store.base import Catalog, Store
from coordinator.transfers import ByteBudget
from coordinator.uploads import UploadSpool
from coordinator.versions import VersionCache
from coordinator.writer import MergeWriter
from share_dist.wire.records import Role

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lineage:
    """One named subspace through all its versions: the parts that serve it."""

    name: str
    config: SubspaceConfig
    store: Store
    versions: VersionCache
    leases: Leases
    registrations: Registrations
    broadcast: Broadcast
    holds: Holds
    compactor: Compactor
    writer: MergeWriter
    metrics: SubspaceMetrics
    log: FilteringBoundLogger


@dataclass(frozen=True)
class Coordinator:
    """
    The parts of one running coordinator; made by ``coordinator.app``.

    What takes whole versions into memory is done in threads of its own, few of them: however
    many ask at once, memory holds what these few need, and merges and pushes have other threads.
    ``pulls`` make payloads, ``looks`` compare and measure, ``resumes`` read unfinished uploads,
    ``measures`` take the layers of a large update.
    """

    config: CoordinatorConfig
    catalog: Catalog
    lineages: "Lineages[Lineage]"
    access: Access
    budget: ByteBudget
    uploads: UploadSpool
    pulls: Executor
    looks: Executor
    resumes: Executor
    measures: Executor
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

    @property
    def account(self) -> str:
        """On whose account a call goes: a principal's, or a connection's where nobody has a name."""
        return self.peer if self.principal.how == "local" else self.principal.name

    async def pull(self, work: Callable[[], ResultT]) -> ResultT:
        """Make a payload, once it is this call's turn."""
        return await asyncio.get_running_loop().run_in_executor(self.coordinator.pulls, work)

    async def look(self, work: Callable[[], ResultT]) -> ResultT:
        """Compare or measure, once it is this call's turn."""
        return await asyncio.get_running_loop().run_in_executor(self.coordinator.looks, work)

    async def resume(self, work: Callable[[], ResultT]) -> ResultT:
        """Read an unfinished upload, once it is this call's turn."""
        return await asyncio.get_running_loop().run_in_executor(self.coordinator.resumes, work)

    def require(self, needed: Role) -> None:
        """
        Raise unless the caller has a role in this subspace.

        Raises:
            NotPermitted: It has not.
        """
        self.coordinator.access.require(self.principal, self.lineage.name, needed)
