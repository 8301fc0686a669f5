"""
One thread that writes rows, many writes in one transaction.

Threads that write to SQLite at once starve each other, and each commit waits for the disk.
So every write is a function that waits in a queue, first come first served; the writer takes all
that wait, runs each in a savepoint of one transaction, commits once, and then tells everyone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import sqlalchemy as sa

from coordinator import faults
from coordinator.store.database import Database
from share_dist.errors import StoreUnavailable

ResultT = TypeVar("ResultT")

Occasion: TypeAlias = Literal["owner", "change", "update", "merge", "compaction"]
"""Why a transaction is made: names the fault points around its commit."""

MAX_GROUP = 64
"""Writes in one transaction, at most."""

SHORTEST_PAUSE_SECONDS = 0.0005
LONGEST_PAUSE_SECONDS = 0.01
LONGEST_GATHERING_SECONDS = 0.03

_OF_ONE_WRITE = (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError)
"""Errors of the database for which one write is to blame; any other may have ended them all."""


class Pace:
    """
    How long the writer waits for company before it commits.

    One who writes alone is hardly kept waiting. Where many write at once, each commit waits for
    those who are on their way, until they have paused: the pause grows while there is
    company, and shrinks while there is none.

    Examples:
        >>> pace = Pace()
        >>> for _ in range(9):
        ...     pace.learn(3)
        >>> pace.pause_seconds == LONGEST_PAUSE_SECONDS
        True
        >>> for _ in range(99):
        ...     pace.learn(1)
        >>> pace.pause_seconds == SHORTEST_PAUSE_SECONDS
        True
    """

    def __init__(self) -> None:
        self.pause_seconds = SHORTEST_PAUSE_SECONDS

    def learn(self, num_writes: int) -> None:
        """Take in how many writes came together."""
        # quick to grow and slow to shrink: company is seldom met while the pause is short
        pause = self.pause_seconds * (2.0 if num_writes > 1 else 0.8)
        self.pause_seconds = min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)


@dataclass(eq=False)
class _Job(Generic[ResultT]):
    occasion: Occasion
    write: Callable[[sa.Connection], ResultT]
    done: "Future[ResultT]" = field(default_factory=Future)


class GroupWriter:
    """
    Runs writes on a thread of its own until it is closed.

    Args:
        database: Where they write.
        guard: Raises unless this process may write; run first in every transaction.
    """

    def __init__(self, database: Database, guard: Callable[[sa.Connection], None]) -> None:
        self._database = database
        self._guard = guard
        self._jobs: deque[_Job[Any]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._pace = Pace()
        self.num_commits = 0
        self.num_writes = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, occasion: Occasion, write: Callable[[sa.Connection], ResultT]) -> ResultT:
        """
        Run a write; what it did is on disk when this returns, and undone when this raises.

        Args:
            occasion: Why.
            write: Changes rows; may be run a second time after its rows were rolled back.

        Raises:
            StoreFenced: Another process owns the catalog.
            StoreFull: There is no room.
            StoreUnavailable: The database cannot be asked now, or this is closed.
        """
        job = _Job(occasion, write)
        with self._changed:
            if self._is_closed:
                raise StoreUnavailable(
                    f"{self._database.name} was closed: open it again", path=self._database.name
                )
            self._jobs.append(job)
            self._changed.notify()
        with self._database.errors():
            return job.done.result()

    def close(self) -> None:
        """Finish what waits, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._gather():
            self._transact(group)

    def _gather(self) -> list[_Job[Any]]:
        """Wait for writes and for their company; empty once this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            deadline = time.monotonic() + LONGEST_GATHERING_SECONDS
            while self._has_room() and self._comes_another(deadline):
                pass
            group = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_GROUP))]
        self._pace.learn(len(group))
        return group

    def _has_room(self) -> bool:
        return len(self._jobs) < MAX_GROUP and not self._is_closed

    def _comes_another(self, deadline: float) -> bool:
        waiting = len(self._jobs)
        pause = min(self._pace.pause_seconds, deadline - time.monotonic())
        return self._changed.wait_for(lambda: len(self._jobs) > waiting or self._is_closed, pause)

    def _transact(self, group: Sequence[_Job[Any]]) -> None:
        """Write a group; where the database itself fails in it, each of it alone."""
        told: list[Callable[[], None]] = []
        try:
            with self._database.transaction() as rows:
                try:
                    self._guard(rows)
                    told = [_attempt(rows, job) for job in group]
                except sa.exc.DBAPIError:
                    if len(group) == 1:
                        raise
                    told = []
                if told:
                    _commit(rows, {job.occasion for job in group})
                    self.num_commits += 1
                    self.num_writes += len(group)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            told = [_teller(job, error) for job in group]
        for tell in told:
            tell()
        if not told:
            for job in group:
                self._transact([job])


def _attempt(rows: sa.Connection, job: _Job[Any]) -> Callable[[], None]:
    """Run one write in a savepoint; return how to tell what came of it, once all is committed."""
    savepoint = rows.begin_nested()
    try:
        result = job.write(rows)
        savepoint.commit()
    except sa.exc.DBAPIError as error:
        if not isinstance(error, _OF_ONE_WRITE):
            # not rolled back to: SQLite may have ended the whole transaction, savepoints and all
            raise
        savepoint.rollback()
        return _teller(job, error)
    except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
        savepoint.rollback()
        return _teller(job, error)
    return lambda: job.done.set_result(result)


def _teller(job: _Job[Any], error: BaseException) -> Callable[[], None]:
    return lambda: job.done.set_exception(error)


def _commit(rows: sa.Connection, occasions: set[Occasion]) -> None:
    for occasion in sorted(occasions):
        faults.reach(f"before-{occasion}-commit")
    rows.commit()
    for occasion in sorted(occasions):
        faults.reach(f"after-{occasion}-commit")
