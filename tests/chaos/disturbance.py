"""The faults of one run, as they are made, and how long it took to come back from each."""

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from share_dist.client import ShareClient
from tests.chaos.faults import Fault
from tests.chaos.site import Site

_LOOK_SECONDS = 0.2
_PROGRESS_SECONDS = 10.0


@dataclass
class Disturbance:
    """
    Makes faults until there are none left, or the workers have ended.

    Args:
        site: What they hit.
        faults: In order of time.
    """

    site: Site
    faults: Sequence[Fault]
    made: list[tuple[float, Fault, tuple[str, ...]]] = field(default_factory=list)
    coordinator_seconds: list[float] = field(default_factory=list)
    _back_at: dict[str, float] = field(default_factory=dict)
    _killed_at: float = 0.0

    def run(self) -> float:
        """Make them; how long it took until the last was made, or the workers ended."""
        self._begun = time.monotonic()
        waiting, told = list(self.faults), 0.0
        while (waiting or self._back_at) and not self.site.wait(_LOOK_SECONDS):
            since = time.monotonic() - self._begun
            self._bring_back(since)
            if waiting and since >= waiting[0].at_seconds and self._make(waiting[0]):
                waiting.pop(0)
            if since - told >= _PROGRESS_SECONDS:
                told = since
                print(self.line(since), flush=True)
        self._bring_back(float("inf"))
        return time.monotonic() - self._begun

    def line(self, since: float) -> str:
        """One line of progress."""
        kinds = Counter(fault.kind for _, fault, _ in self.made)
        merged = self.site.num_merged() if "coordinator" not in self._back_at else None
        return (
            f"{since:5.0f} s  killed: {kinds['actor']} actors, {kinds['coordinator']} coordinators, "
            f"{kinds['node']} nodes; tasks merged: {'nobody to ask' if merged is None else merged}"
        )

    def recovery_seconds(self, events: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        """By kind: from the kill until an answer, or until every lost actor works again."""
        found: dict[str, list[float]] = {"coordinator": self.coordinator_seconds}
        for at, fault, workers in self.made:
            seconds = [_first_start(events, each, at) - at for each in workers]
            if seconds and max(seconds) < float("inf"):
                found.setdefault(fault.kind, []).append(round(max(seconds), 1))
        return found

    def _make(self, fault: Fault) -> bool:
        """Make a fault; False where what it is to hit is away itself."""
        if ("coordinator" if fault.kind == "coordinator" else fault.which) in self._back_at:
            return False
        at, workers = time.time(), set[str]()
        if fault.kind == "actor":
            if not self.site.kill_actor(fault.which):
                return False
            workers = {fault.which}
        elif fault.kind == "coordinator":
            self.site.coordinator.kill()
            self._killed_at = time.monotonic()
        else:
            workers = self.site.workers_on(int(fault.which))
            self.site.nodes.kill(int(fault.which))
        self.made.append((at, fault, tuple(sorted(workers))))
        if fault.kind != "actor":
            away_until = time.monotonic() - self._begun + fault.away_seconds
            self._back_at["coordinator" if fault.kind == "coordinator" else fault.which] = (
                away_until
            )
        return True

    def _bring_back(self, since: float) -> None:
        for name in [name for name, at in self._back_at.items() if since >= at]:
            del self._back_at[name]
            if name != "coordinator":
                self.site.nodes.replace(int(name))
                continue
            self.site.coordinator.start()
            with ShareClient(self.site.coordinator.address) as client:
                client.status()
            self.coordinator_seconds.append(round(time.monotonic() - self._killed_at, 1))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and largest."""
    if not values:
        return {}
    return {"median": statistics.median(values), "longest": max(values), "number": len(values)}


def _first_start(events: Sequence[Mapping[str, Any]], worker_id: str, after: float) -> float:
    """When a worker's loop first began after a time; infinite where it never did."""
    begun = (
        each["time"]
        for each in events
        if each["event"] == "worker_started" and each["worker_id"] == worker_id
    )
    return min((at for at in begun if at > after), default=float("inf"))
