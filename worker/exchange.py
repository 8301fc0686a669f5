"""The exchange: what a worker gets from its coordinator and gives to it, while it trains."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from typing_extensions import Self

from share_dist.core.values import Fingerprint, Subspace
from share_dist.errors import (
    CoordinatorUnreachable,
    ShareError,
    VersionCompacted,
    VersionInFuture,
)
from share_dist.wire.records import PulledTask, TaskSummary, UpdateState
from worker.contact import PASSING, Contact, with_growing_time
from worker.crew import Crew
from worker.disk import Disk
from worker.follower import Follower
from worker.heartbeat import Heartbeat
from worker.journal import Journal
from worker.outbox import Outbox
from worker.ports import Coordinator
from worker.prefetch import Edition, Prefetch
from worker.progress import WorkerEvent
from worker.shelf import Shelf

FIRST_CONTACT_SECONDS: Final = 60.0
"""How long a worker that has done nothing yet waits for a coordinator that may be starting."""

_JOIN_SECONDS = 2.0
_SETTLE_SECONDS = 5.0


class Exchange:
    """
    A worker's dealings with its coordinator, for as long as it is entered.

    ```
    heartbeat  keeps the lease                                 ┐
    follower   hears of versions                               │ threads, each of which
    prefetch   has the newest version at hand, and own tasks   │ outlasts the coordinator
    outbox     pushes what is learnt                           ┘
    ```

    Nothing that the loop asks of it while it trains waits for the network.

    Args:
        coordinator: The port.
        fingerprint: Of the frozen model.
        journal: Of whose stream, and what is noted of it.
        disk: Writes into ``workdir``.
        workdir: The worker's own folder.
        check: Called now and then while it waits; raises to wait no longer.
        is_resumed: Whether there is earlier work: then a coordinator that is away is waited for.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        fingerprint: Fingerprint,
        journal: Journal,
        disk: Disk,
        workdir: Path,
        check: Callable[[], None],
        *,
        is_resumed: bool,
    ) -> None:
        self._coordinator = coordinator
        self._journal = journal
        self._interrupt = check
        self._is_resumed = is_resumed
        self._shelf = Shelf(workdir, disk, fingerprint)
        self._contact = contact = Contact(journal.emit)
        self._prefetch = Prefetch(contact, self._pull_edition)
        self._follower = Follower(contact, coordinator, self._prefetch.tell, self._prefetch.ask)
        who = journal.results.worker_id, fingerprint
        self._heartbeat = Heartbeat(contact, coordinator, *who, journal.emit, self._prefetch.tell)
        pull = partial(self._pull, None)
        self.outbox = Outbox(contact, coordinator, self._heartbeat, journal, disk, pull)
        self.start: Subspace

    def __enter__(self) -> Self:
        self.start = self._first_version()
        self._crew = Crew(
            heartbeat=self._heartbeat.run,
            follower=partial(self._follower.run, self.start),
            prefetch=self._prefetch.run,
            outbox=self.outbox.run,
        )
        self._prefetch.begin(Edition(self.start))
        self._crew.start()
        if self._is_resumed:
            self._prefetch.ask()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for part in (self._contact, self._follower, self._prefetch, self.outbox):
            part.close()
        self._crew.join(_JOIN_SECONDS)

    def check(self) -> None:
        """
        Raise what must end the worker.

        Raises:
            LeaseExpired: Another worker of this name took over.
            ShareError: The coordinator will not have this worker, or an update of it.
        """
        self._crew.check()
        self._interrupt()

    @property
    def newest_version(self) -> int:
        """The newest version that the coordinator has told of."""
        return self._prefetch.told_version

    def newest(self) -> Edition:
        """The newest version that is at hand, with the worker's own tasks; never waits."""
        return self._prefetch.take()

    def older(self, version: int, digest: str) -> Subspace | None:
        """
        An older version as the worker knew it, or None where nobody has it.

        Args:
            version: Its number.
            digest: Of its content; empty: any content will do.
        """
        kept = self._shelf.find(version, digest)
        if kept is not None:
            return kept
        try:
            subspace = self._contact.ask(lambda: self._pull(version))
        except (VersionCompacted, VersionInFuture, *PASSING):
            return None
        return subspace if digest in {"", subspace.digest} else None

    def settle(self) -> Edition:
        """Wait until every update is pushed, and none waits to be merged; the version of then."""
        has_told = False
        while True:
            self.outbox.wait_empty(self.check)
            edition = self._prefetch.fetch(self.check)
            # one may have been lost, found missing and pushed again since the edition was listed
            is_listed = self.outbox.pushed_ids() <= edition.update_ids
            if self.outbox.is_empty and is_listed and not edition.num_pending:
                return edition
            if edition.num_pending and not has_told:
                self._journal.emit(WorkerEvent.MERGE_AWAITED, num_pending=edition.num_pending)
                has_told = True
            self._prefetch.wait_told(_SETTLE_SECONDS)

    def _first_version(self) -> Subspace:
        """
        The version to begin with: the newest; where nobody answers, the last on disk.

        Raises:
            CoordinatorUnreachable: Nobody has ever answered.
        """
        kept, began, attempt = self._shelf.newest(), time.monotonic(), 0
        while True:
            try:
                self._contact.ask(self._heartbeat.register)
                newest = self._contact.ask(lambda: self._pull(None))
            except PASSING as error:
                if kept is not None:
                    return kept
                seconds = time.monotonic() - began
                if not self._is_resumed and seconds > FIRST_CONTACT_SECONDS:
                    raise _never_met(error, seconds) from error
                self._contact.pause(attempt, error)
            else:
                self._shelf.keep(newest)
                return newest
            attempt += 1
            self._interrupt()

    def _pull_edition(self) -> Edition:
        """Ask for all that a worker wants to know, all of it in one version."""
        pushed = self.outbox.pushed_ids()
        listed = self._coordinator.tasks()
        self.outbox.note_decided(listed)
        update_ids = frozenset(each.update_id for each in listed) | {
            each.newer.update_id for each in listed if each.newer is not None
        }
        self.outbox.push_again(pushed - update_ids)
        own = [each for each in listed if each.task_id in self._journal.learnt_ids]
        merged = sorted(each.task_id for each in own if each.state is UpdateState.MERGED)
        tasks = self._pull_tasks(merged)
        subspace = next((each.subspace for each in tasks.values()), None) or self._pull(None)
        self._shelf.keep(subspace)
        return Edition(subspace, tasks, _num_pending(own), update_ids)

    def _pull_tasks(self, task_ids: Sequence[str]) -> dict[str, PulledTask]:
        """Pull tasks, all said in one version: once more where a merge came in between."""
        held: Subspace | None = None
        while True:
            pulled: dict[str, PulledTask] = {}
            for task_id in task_ids:
                pull = partial(self._coordinator.pull_task, task_id, held=held)
                pulled[task_id] = with_growing_time(self._coordinator, pull)
                held = pulled[task_id].subspace
            if len({each.subspace.version for each in pulled.values()}) <= 1:
                return pulled

    def _pull(self, version: int | None) -> Subspace:
        pull = partial(self._coordinator.pull, version)
        subspace = with_growing_time(self._coordinator, pull)
        assert subspace is not None
        return subspace


def _num_pending(own: Sequence[TaskSummary]) -> int:
    newest = (each.state if each.newer is None else each.newer.state for each in own)
    return sum(state is UpdateState.PENDING for state in newest)


def _never_met(error: ShareError, seconds: float) -> CoordinatorUnreachable:
    return CoordinatorUnreachable(
        f"no coordinator has ever answered this worker, in {seconds:.0f} s: start one, or correct "
        f"--coordinator. A worker that has met its coordinator once waits for it as long as it takes. "
        f"It was: {error.message}",
        seconds=seconds,
    )
