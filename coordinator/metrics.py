"""The catalogue of Prometheus metrics: ours begin with ``share_dist_``, the process's with ``process_``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.store.base import StoreCounts
from share_dist.wire.records import CoordinatorStatus, VersionEvent

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_LAGS = (0, 1, 2, 4, 8, 16, 32, 64)


class Observed(NamedTuple):
    """One named subspace as it is now: what ``GetStatus`` says, and its newest version if it has one."""

    status: CoordinatorStatus
    newest: VersionEvent | None


class Observation(NamedTuple):
    """
    What is now.

    Args:
        subspaces: Every named subspace.
        num_refused: How many callers were refused since the start, by action.
        store: What the store has done since the start.
    """

    subspaces: tuple[Observed, ...] = ()
    num_refused: Mapping[str, int] = MappingProxyType({})
    store: StoreCounts = StoreCounts()


class _Gauge(NamedTuple):
    """
    A gauge that is read from what is now.

    Args:
        description: What it means.
        values: Its values by label; one under the empty text where there is no further label.
        label: Name of the further label; empty for none.
    """

    description: str
    values: Callable[[CoordinatorStatus], Mapping[str, float]]
    label: str = ""


def _one(
    value: Callable[[CoordinatorStatus], float],
) -> Callable[[CoordinatorStatus], dict[str, float]]:
    return lambda status: {"": value(status)}


_OF_STATUS: Final = {
    "version": _Gauge("Current version.", _one(lambda status: status.current_version)),
    "first_version": _Gauge(
        "Oldest version from which every later one is kept.", _one(lambda s: s.first_version)
    ),
    "tasks": _Gauge("Tasks that the current version contains.", _one(lambda s: s.num_tasks)),
    "waiting_updates": _Gauge(
        "Updates that wait, by state: pending for a merge, quarantined or parked for a person.",
        lambda s: {
            "pending": s.num_pending,
            "quarantined": s.num_quarantined,
            "parked": s.num_parked,
        },
        "state",
    ),
    "watchers": _Gauge(
        "Watchers, by state: synced, catching up, slow.",
        lambda s: {
            "synced": s.num_synced_watchers,
            "catching up": s.num_catching_up_watchers,
            "slow": s.num_slow_watchers,
        },
        "state",
    ),
    "live_workers": _Gauge(
        "Workers whose lease holds.", _one(lambda s: sum(each.is_live for each in s.workers))
    ),
    "largest_worker_lag": _Gauge(
        "Versions that the live worker furthest behind is behind, by what it pulled or pushed on last.",
        _one(
            lambda s: max(
                (
                    s.current_version - w.base_version
                    for w in s.workers
                    if w.is_live and w.num_merged
                ),
                default=0,
            )
        ),
    ),
}

_OF_NEWEST: Final[dict[str, tuple[str, Callable[[VersionEvent], float]]]] = {
    "num_factors": ("Largest k of any side of any layer.", lambda event: event.num_factors),
    "energy_kept": (
        "Lowest share of energy that a side of a layer keeps.",
        lambda event: event.lowest_energy_kept,
    ),
    "angle": (
        "Largest principal angle of the newest version to the one before, radians.",
        lambda event: event.angle,
    ),
    "largest_drift": (
        "How far the newest version moved the task that it moved most.",
        lambda event: event.largest_drift,
    ),
    "subspace_bytes": (
        "Bytes of the newest version as it is pulled whole.",
        lambda event: event.subspace_bytes,
    ),
    "rotation_bytes": (
        "Bytes of the steps that lead to the newest version; 0 when there are none.",
        lambda event: event.rotation_bytes,
    ),
    "version_time_seconds": (
        "When the newest version came to be, seconds since 1970.",
        lambda event: event.merged_at.timestamp(),
    ),
}


_OF_STORE: Final[dict[str, tuple[str, Callable[[StoreCounts], int]]]] = {
    "store_commits": (
        "Transactions that the store committed, each with a flush of the disk.",
        lambda counts: counts.commits,
    ),
    "store_writes": (
        "What was written in these transactions: many writes at once share one.",
        lambda counts: counts.writes,
    ),
    "store_blobs": (
        "Payloads that the store wrote into files of their own, each flushed to the disk.",
        lambda counts: counts.blobs,
    ),
}


class _Now(Collector):
    """Gauges that are read when they are asked for, so that they are right after a restart too."""

    def __init__(self) -> None:
        self.observe: Callable[[], Observation] = Observation

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge, with one sample for each named subspace, and what was refused."""
        observed, num_refused, store = self.observe()
        for name, gauge in _OF_STATUS.items():
            labels = ["subspace", *([gauge.label] if gauge.label else [])]
            family = GaugeMetricFamily(f"share_dist_{name}", gauge.description, labels=labels)
            for status, _ in observed:
                for label, value in gauge.values(status).items():
                    family.add_metric([status.subspace, *([label] if label else [])], value)
            yield family
        for name, (description, value_of) in _OF_NEWEST.items():
            family = GaugeMetricFamily(f"share_dist_{name}", description, labels=["subspace"])
            for status, newest in observed:
                if newest is not None:
                    family.add_metric([status.subspace], value_of(newest))
            yield family
        in_flight = GaugeMetricFamily(
            "share_dist_bytes_in_flight",
            "Bytes of payloads on their way in and out, of all subspaces.",
        )
        for status, _ in observed[:1]:
            in_flight.add_metric([], status.bytes_in_flight)
        yield in_flight
        refused = CounterMetricFamily(
            "share_dist_refused_access",
            "Calls and handshakes that were not let in, by action as the audit log has it.",
            labels=["action"],
        )
        for action, number in num_refused.items():
            refused.add_metric([action], number)
        yield refused
        for name, (description, count_of) in _OF_STORE.items():
            done = CounterMetricFamily(f"share_dist_{name}", description)
            done.add_metric([], count_of(store))
            yield done


class Metrics:
    """All metrics of one coordinator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._now = _Now()
        self.registry.register(self._now)
        ProcessCollector(registry=self.registry)
        self._pushes = self._counter(
            "pushes",
            "Pushes, by what became of them: admitted, quarantined, repeated or refused.",
            "outcome",
        )
        self._update_bytes = self._counter("update_bytes", "Payload bytes of admitted updates.")
        self._merged_updates = self._counter("merged_updates", "Updates that a version contains.")
        self._set_aside_updates = self._counter(
            "set_aside_updates",
            "Updates set aside since this process started, by state: quarantined or parked.",
            "state",
        )
        self._postponed_merges = self._counter(
            "postponed_merges", "Merges that failed as a whole and will be tried again."
        )
        self._merge_seconds = self._histogram(
            "merge_seconds", "Duration of a merge, until it is ready to be committed.", _SECONDS
        )
        self._lag = self._histogram(
            "lag", "Current version minus base version, at the merge.", _LAGS
        )

    def observe_with(self, observe: Callable[[], Observation]) -> None:
        """Let gauges be read from what this returns, from any thread, whenever they are asked for."""
        self._now.observe = observe

    def of(self, subspace: str) -> "SubspaceMetrics":
        """Return what is counted in one named subspace."""
        return SubspaceMetrics(
            pushes=lambda outcome: self._pushes.labels(subspace, outcome),
            update_bytes=self._update_bytes.labels(subspace),
            merged_updates=self._merged_updates.labels(subspace),
            set_aside_updates=lambda state: self._set_aside_updates.labels(subspace, state),
            postponed_merges=self._postponed_merges.labels(subspace),
            merge_seconds=self._merge_seconds.labels(subspace),
            lag=self._lag.labels(subspace),
        )

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(
            f"share_dist_{name}", description, ["subspace", *labels], registry=self.registry
        )

    def _histogram(self, name: str, description: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"share_dist_{name}",
            description,
            ["subspace"],
            buckets=buckets,
            registry=self.registry,
        )


@dataclass(frozen=True, slots=True)
class SubspaceMetrics:
    """What is counted in one named subspace; some by a label, such as the outcome of a push."""

    pushes: Callable[[str], Counter]
    update_bytes: Counter
    merged_updates: Counter
    set_aside_updates: Callable[[str], Counter]
    postponed_merges: Counter
    merge_seconds: Histogram
    lag: Histogram
