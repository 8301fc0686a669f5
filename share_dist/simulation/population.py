"""
Who takes part: sites and workers, and how long each task takes whom, drawn from one seed.

Every number depends on the seed and on whose it is, not on when it is asked for: the same work
takes the same time in whatever order it is done.
"""

import math
import random
from dataclasses import dataclass

from share_dist.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Site:
    """A place with one line to the coordinator, which each of its workers has for itself."""

    name: str
    latency_seconds: float
    bytes_per_second: float

    def transfer_seconds(self, num_bytes: int) -> float:
        """From the first byte sent until the last has arrived."""
        return self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Worker:
    """Somebody who learns task after task; ``slowness`` multiplies the time of each."""

    index: int
    worker_id: str
    site: Site
    slowness: float
    joins_at: float


@dataclass(frozen=True, slots=True)
class Lesson:
    """How long one task takes one worker, absences included, and how often it was away."""

    seconds: float
    num_absences: int


def draw_sites(scenario: Scenario) -> list[Site]:
    """Draw the sites: log-normal latency and bandwidth."""
    found = []
    for index in range(scenario.sites):
        draw = random.Random(f"{scenario.seed}/site/{index}")  # noqa: S311 - a simulation
        latency = scenario.latency_seconds * _around(draw, scenario.site_spread)
        bandwidth = scenario.megabits_per_second * 1e6 / 8 * _around(draw, scenario.site_spread)
        found.append(Site(f"site-{index:03d}", latency, bandwidth))
    return found


def draw_workers(scenario: Scenario) -> list[Worker]:
    """Draw the workers: each at a site, some of them slow, all joined within ``join_seconds``."""
    sites = draw_sites(scenario)
    joined = scenario.train_seconds if scenario.join_seconds is None else scenario.join_seconds
    found = []
    for index in range(scenario.workers):
        draw = random.Random(f"{scenario.seed}/worker/{index}")  # noqa: S311 - a simulation
        is_slow = draw.random() < scenario.stragglers
        slowness = scenario.straggler_factor if is_slow else 1.0
        name = f"worker-{index:06d}"
        found.append(Worker(index, name, draw.choice(sites), slowness, draw.uniform(0, joined)))
    return found


def draw_lesson(scenario: Scenario, worker: Worker, number: int) -> Lesson:
    """
    Draw how long a worker's task takes, until what it learnt can be sent.

    Absences come at random, ``present_seconds`` apart on average; each makes the task longer by its own length, for
    a worker goes on from its checkpoint.
    """
    draw = random.Random(f"{scenario.seed}/lesson/{worker.index}/{number}")  # noqa: S311 - a simulation
    left = scenario.train_seconds * worker.slowness * _around(draw, scenario.train_spread)
    seconds, num_absences = left, 0
    if scenario.present_seconds is None:
        return Lesson(seconds, 0)
    while (left := left - draw.expovariate(1 / scenario.present_seconds)) > 0:
        num_absences += 1
        if scenario.absent_seconds:
            seconds += draw.expovariate(1 / scenario.absent_seconds)
    return Lesson(seconds, num_absences)


def offered_per_second(scenario: Scenario) -> float:
    """Tell how many updates come per virtual second while everybody learns: the sum of the workers' own rates."""
    mean = scenario.train_seconds * math.exp(scenario.train_spread**2 / 2)
    away = scenario.absent_seconds / scenario.present_seconds if scenario.present_seconds else 0.0
    return math.fsum(1 / (mean * worker.slowness * (1 + away)) for worker in draw_workers(scenario))


def _around(draw: random.Random, spread: float) -> float:
    """Draw a log-normal factor whose median is one."""
    return math.exp(draw.gauss(0.0, spread))
