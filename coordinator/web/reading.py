"""What the page shows, read out of the running coordinator for a principal who may see it."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from coordinator import administration, handlers
from coordinator.access import Principal
from coordinator.state import Call, Coordinator, Lineage
from coordinator.web.history import History, VersionPoint, thinned
from coordinator.web.view import Cursor, Page
from share_dist.wire.records import (
    CoordinatorStatus,
    SubspaceSummary,
    TaskSummary,
    UpdateState,
    UpdateSummary,
    VersionSummary,
)

VERSIONS_PER_PAGE = 20
TASKS_PER_PAGE = 50
UPDATES_PER_PAGE = 50

SET_ASIDE = (UpdateState.QUARANTINED, UpdateState.PARKED)

_EVENTS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What a reader asks for.

    Args:
        subspace: Its name; empty for the default one.
        before_version: Versions older than this one; 0 for the newest.
        after_task: Tasks whose name comes after this one; empty for the first.
    """

    subspace: str = ""
    before_version: int = 0
    after_task: str = ""


class Reading:
    """
    Reads for the page; every method asks first whether the principal is a reader.

    Args:
        coordinator: The running one.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._histories: defaultdict[str, History] = defaultdict(History)
        self._extending = asyncio.Lock()

    async def page(self, principal: Principal, asked: Asked, *, can_sign_out: bool) -> Page:
        """
        Read everything that the page of one subspace shows.

        Raises:
            UnknownSubspace: There is none of this name.
            NotPermitted: The principal is no reader of it.
        """
        status = await self.status(principal, asked.subspace)
        versions = await self.versions(principal, asked)
        tasks = await self.tasks(principal, asked)
        return Page(
            now=self._coordinator.clock.now(),
            status=status,
            subspaces=await self.subspaces(principal),
            versions=versions,
            points=thinned(await self.points(principal, asked.subspace)),
            tasks=tasks,
            waiting=await self.updates(principal, asked.subspace, (UpdateState.PENDING,)),
            set_aside=await self.updates(principal, asked.subspace, SET_ASIDE),
            older_versions=_older_versions(asked, status.subspace, versions),
            more_tasks=_more_tasks(asked, status.subspace, tasks),
            can_sign_out=can_sign_out,
        )

    async def subspaces(self, principal: Principal) -> tuple[SubspaceSummary, ...]:
        """Describe every subspace that the principal may read."""
        found = await administration.list_subspaces(self._coordinator, principal)
        return tuple(each for each in found if each.role)

    async def status(self, principal: Principal, subspace: str) -> CoordinatorStatus:
        """Say how one subspace is, as ``GetStatus`` does."""
        return await handlers.get_status(self._call(principal, subspace))

    async def versions(self, principal: Principal, asked: Asked) -> tuple[VersionSummary, ...]:
        """Describe a page of versions, newest first."""
        call = self._call(principal, asked.subspace)
        end = _end(asked, call.lineage.writer.snapshot.version)
        after = max(end - 1 - VERSIONS_PER_PAGE, 0)
        found, _ = await administration.list_versions(call, after, VERSIONS_PER_PAGE)
        return tuple(version for version in reversed(found) if version.event.version < end)

    async def tasks(self, principal: Principal, asked: Asked) -> tuple[TaskSummary, ...]:
        """Describe a page of tasks, by name."""
        store = self._call(principal, asked.subspace).lineage.store
        return await asyncio.to_thread(store.task_summaries, asked.after_task, TASKS_PER_PAGE)

    async def updates(
        self, principal: Principal, subspace: str, states: Collection[UpdateState]
    ) -> tuple[UpdateSummary, ...]:
        """Describe the newest updates in one of these states."""
        call = self._call(principal, subspace)
        return await administration.list_updates(call, states, 0, UPDATES_PER_PAGE)

    async def points(self, principal: Principal, subspace: str) -> Sequence[VersionPoint]:
        """Return one point per version, oldest first; the history is read only once."""
        lineage = self._call(principal, subspace).lineage
        async with self._extending:
            history = self._histories[lineage.name]
            await asyncio.to_thread(_extend, history, lineage)
        return history.points()

    def _call(self, principal: Principal, subspace: str) -> Call:
        lineage = self._coordinator.lineages.get(subspace)
        call = Call(self._coordinator, lineage, principal, peer="web")
        call.require("reader")
        return call


def _extend(history: History, lineage: Lineage) -> None:
    while True:
        events = lineage.store.events(history.newest_version, _EVENTS_AT_ONCE)
        history.extend(events)
        if len(events) < _EVENTS_AT_ONCE:
            return


def _end(asked: Asked, current_version: int) -> int:
    """The version before which the shown ones lie."""
    return min(asked.before_version or current_version + 1, current_version + 1)


def _older_versions(asked: Asked, subspace: str, shown: Sequence[VersionSummary]) -> Cursor:
    oldest = shown[-1].event.version if shown else 0
    return Cursor(
        first=urlencode({"subspace": subspace}) if asked.before_version else "",
        following=urlencode({"subspace": subspace, "before": oldest}) if oldest > 1 else "",
    )


def _more_tasks(asked: Asked, subspace: str, shown: Sequence[TaskSummary]) -> Cursor:
    is_full = len(shown) == TASKS_PER_PAGE
    return Cursor(
        first=urlencode({"subspace": subspace}) if asked.after_task else "",
        following=urlencode({"subspace": subspace, "after": shown[-1].task_id}) if is_full else "",
    )
