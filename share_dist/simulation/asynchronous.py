"""
A run in which nobody waits for anybody: discrete events in virtual time.

::

    worker        pull ....... train ................... pull ....... train ...
    line               . the version that is newest then      push ....
    coordinator   --- serves one push after the other ----------------- merge --

A worker asks for the newest version, learns, sends, and asks again while it sends. The coordinator takes pushes in
the order in which they have arrived and is busy with each for as long as was counted; a pull gets the newest version that
is done by then. Each push is merged before the next event, so that equal counted times give equal runs.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import final

from share_dist.simulation.population import Worker
from share_dist.simulation.session import NUM_SAMPLES, Arrival, Session
from share_dist.simulation.trace import Trace
from share_dist.simulation.updates import DrawnUpdate
from share_dist.wire.records import Receipt

Event = Callable[[float], None]


@final
class Agenda:
    """
    What is still to come, the earliest first; of what comes at one time, that which was planned first.

    Examples:
        >>> agenda, seen = Agenda(), []
        >>> for at in (2.0, 1.0, 1.0):
        ...     agenda.plan(at, seen.append)
        >>> agenda.run()
        >>> seen
        [1.0, 1.0, 2.0]
    """

    def __init__(self) -> None:
        self._planned: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()
        self._is_stopped = False

    def plan(self, seconds: float, event: Event) -> None:
        """Let something happen at a time, which it is told."""
        heapq.heappush(self._planned, (seconds, next(self._numbers), event))

    def run(self) -> None:
        """Let everything happen, until nothing is left or one of the events stops it."""
        while self._planned and not self._is_stopped:
            seconds, _, event = heapq.heappop(self._planned)
            event(seconds)

    def stop(self) -> None:
        """Let nothing else happen."""
        self._is_stopped = True


def run_asynchronously(session: Session) -> Trace:
    """Simulate until every worker has learnt its tasks, enough is merged, or somebody stops it."""
    return _Run(session).run()


@final
class _Run:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._agenda = Agenda()
        self._waiting: deque[Arrival] = deque()
        self._is_busy = False
        self._version = 0
        self._sample_every = max(1, session.num_pushes // NUM_SAMPLES)

    def run(self) -> Trace:
        for worker in self._session.workers:
            self._agenda.plan(worker.joins_at, partial(self._ask, worker, 0))
        self._agenda.run()
        done = self._session.trace
        if done.pushes and (not done.samples or done.samples[-1].num_updates < len(done.pushes)):
            self._session.sample(done.seconds)
        return self._session.end()

    def _ask(self, worker: Worker, number: int, now: float) -> None:
        if number < self._session.scenario.tasks:
            answered_at = now + worker.site.latency_seconds
            self._agenda.plan(answered_at, partial(self._answer, worker, number, now))

    def _answer(self, worker: Worker, number: int, asked_at: float, _: float) -> None:
        """Give a worker the newest version; plan the rest of its lesson."""
        arrival = self._session.lesson(worker, number, asked_at, self._version)
        self._agenda.plan(arrival.trained_at, partial(self._ask, worker, number + 1))
        self._agenda.plan(arrival.arrived_at, partial(self._arrive, arrival))

    def _arrive(self, arrival: Arrival, now: float) -> None:
        self._waiting.append(arrival)
        if not self._is_busy:
            self._serve(now)

    def _serve(self, now: float) -> None:
        """Merge the update that has waited longest, and be busy for as long as that takes."""
        if self._session.should_stop():
            self._agenda.stop()
            return
        arrival = self._waiting.popleft()
        self._session.be_heard(arrival)
        drawn = self._session.draw(arrival)
        receipt, seconds = self._session.push(arrival, drawn, "merged")
        self._is_busy = True
        self._agenda.plan(now + seconds, partial(self._merged, arrival, drawn, receipt, seconds))

    def _merged(
        self, arrival: Arrival, drawn: DrawnUpdate, receipt: Receipt, seconds: float, now: float
    ) -> None:
        self._session.note(arrival, drawn, receipt, seconds, now)
        self._version = receipt.version
        num_merged = len(self._session.trace.pushes)
        if num_merged % self._sample_every == 0:
            self._session.sample(now)
        if num_merged == self._session.num_pushes:
            self._agenda.stop()
            return
        self._is_busy = False
        if self._waiting:
            self._serve(now)
