"""One run against one coordinator: what is asked of it, what that took, and what is written down."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

from share_dist.simulation.link import Base, Link
from share_dist.simulation.population import Worker, draw_lesson, draw_workers
from share_dist.simulation.scenario import Scenario
from share_dist.simulation.trace import Push, Sample, Trace
from share_dist.simulation.updates import DrawnUpdate, Updates
from share_dist.wire.records import Receipt, Wait

ServiceClock = Callable[[float], float]
"""Of the seconds that a push was measured to take, how many count in virtual time."""

Progress = Callable[[int], None]
"""Told how many updates are merged."""

NUM_SAMPLES = 40
"""Versions that are looked at in a run, about."""


def measured(seconds: float) -> float:
    """Count what was measured: the machine's load is in the run."""
    return seconds


def constant(seconds: float) -> ServiceClock:
    """Count the same for every push: equal seeds make equal runs."""
    return lambda _: seconds


def replayed(seconds: Sequence[float]) -> ServiceClock:
    """Count what was counted in an earlier run, push by push; no more than those can be pushed."""
    remaining: Iterator[float] = iter(seconds)
    return lambda _: next(remaining)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a worker has learnt as its ``number``-th task in the bases that it pulled, and when that comes."""

    worker: Worker
    number: int
    base: Base
    num_bytes: int
    num_absences: int
    trained_at: float
    arrived_at: float


@final
class Session:
    """
    What both kinds of runs share.

    Args:
        link: To a fresh coordinator.
        scenario: What is simulated.
        updates: What is pushed: numbered by task, and for each task by who has learnt the first one first, so
            that recorded updates are those that come first.
        clock: What of the measured time counts.
        progress: Told after every merge.
        should_stop: Asked before every push.
        num_pushes: It ends after so many; None for all that its workers have to learn, or the scenario's.
        is_member: Who takes part; the others work elsewhere.
    """

    def __init__(
        self,
        link: Link,
        scenario: Scenario,
        updates: Updates,
        clock: ServiceClock = measured,
        progress: Progress = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        num_pushes: int | None = None,
        is_member: Callable[[Worker], bool] = lambda _: True,
    ) -> None:
        self.scenario = scenario
        everybody = draw_workers(scenario)
        self.workers = [worker for worker in everybody if is_member(worker)]
        everybody.sort(key=lambda each: each.joins_at + draw_lesson(scenario, each, 0).seconds)
        self._places = {worker.index: place for place, worker in enumerate(everybody)}
        every = len(self.workers) * scenario.tasks
        self.num_pushes = min(every, scenario.num_pushes) if num_pushes is None else num_pushes
        self.trace = Trace()
        self.should_stop = should_stop
        self._link = link
        self._updates = updates
        self._clock = clock
        self._progress = progress
        self._idle_cpu_seconds = link.cpu_seconds()

    def lesson(self, worker: Worker, number: int, asked_at: float, version: int) -> Arrival:
        """Let a worker pull a version, learn its ``number``-th task in it, and send that."""
        base = self._link.pull(version)
        drawn = draw_lesson(self.scenario, worker, number)
        began_at = (
            asked_at + worker.site.latency_seconds + worker.site.transfer_seconds(base.num_bytes)
        )
        trained_at = began_at + drawn.seconds
        num_bytes = self._link.update_bytes(
            self._updates.recorded(self._index(worker, number)), base
        )
        arrived_at = trained_at + worker.site.transfer_seconds(num_bytes)
        return Arrival(worker, number, base, num_bytes, drawn.num_absences, trained_at, arrived_at)

    def be_heard(self, arrival: Arrival) -> None:
        """Let who was away say that it is back."""
        if arrival.num_absences:
            self._link.be_heard(arrival.base)

    def draw(self, arrival: Arrival) -> DrawnUpdate:
        """Make what a worker has learnt."""
        return self._updates.draw(self._index(arrival.worker, arrival.number))

    def _index(self, worker: Worker, number: int) -> int:
        return number * self.scenario.workers + self._places[worker.index]

    def push(self, arrival: Arrival, drawn: DrawnUpdate, wait: Wait) -> tuple[Receipt, float]:
        """Push what has arrived; return the receipt and the seconds that count."""
        pushed = self._link.push(_task_id(arrival), drawn, arrival.base, wait)
        assert pushed.num_bytes == arrival.num_bytes, "equal shapes are equally long"
        self.trace.measured_seconds.append(pushed.seconds)
        return pushed.receipt, self._clock(pushed.seconds)

    def note(
        self,
        arrival: Arrival,
        drawn: DrawnUpdate,
        receipt: Receipt,
        service_seconds: float,
        merged_at: float,
    ) -> None:
        """Write down an update that is merged."""
        self.trace.pushes.append(
            Push(
                worker_id=arrival.worker.worker_id,
                site=arrival.worker.site.name,
                task_id=_task_id(arrival),
                origin=drawn.origin,
                is_synthetic=drawn.is_synthetic,
                base_version=arrival.base.version,
                version=receipt.version,
                lag=receipt.lag,
                angle=receipt.angle,
                trained_at=arrival.trained_at,
                arrived_at=arrival.arrived_at,
                merged_at=merged_at,
                service_seconds=service_seconds,
                pulled_bytes=arrival.base.num_bytes,
                pushed_bytes=arrival.num_bytes,
            )
        )
        self.trace.moments.add(drawn.factors)
        self._progress(len(self.trace.pushes))

    def sample(self, seconds: float) -> None:
        """Look at the newest version."""
        self.trace.samples.append(Sample(seconds, len(self.trace.pushes), self._link.newest()))

    def end(self) -> Trace:
        """Sum up what the coordinator took."""
        done = self.trace
        done.is_whole = len(done.pushes) == self.num_pushes
        done.cpu_seconds = self._link.cpu_seconds() - self._idle_cpu_seconds
        done.stored_bytes = self._link.stored_bytes()
        done.newest = self._link.with_tail()
        return done


def _task_id(arrival: Arrival) -> str:
    return f"{arrival.worker.worker_id}/task-{arrival.number:04d}"
