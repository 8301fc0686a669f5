"""The catalogue of Prometheus metrics; every name begins with ``share_dist_``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from coordinator.config import split_address
from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_LAGS = (0, 1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """All metrics of one coordinator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._pushes = self._counter(
            "pushes",
            "Pushes, by what became of them: admitted, quarantined, repeated or refused.",
            "outcome",
        )
        self._update_bytes = self._counter("update_bytes", "Payload bytes of admitted updates.")
        self._merged_updates = self._counter("merged_updates", "Updates that a version contains.")
        self._quarantined_updates = self._counter(
            "quarantined_updates", "Updates kept aside for an operator since this process started."
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
        self._version = self._gauge("version", "Current version.")
        self._num_tasks = self._gauge("tasks", "Tasks that the current version contains.")
        self._num_pending = self._gauge("pending_updates", "Updates that wait for a merge.")
        self._num_factors = self._gauge("num_factors", "Largest k of any side of any layer.")
        self._energy_kept = self._gauge(
            "energy_kept", "Lowest share of energy that a side of a layer keeps."
        )
        self._num_watchers = self._gauge("watchers", "Watchers now.")
        self._num_live_workers = self._gauge("live_workers", "Workers whose lease holds.")

    def of(self, subspace: str) -> "SubspaceMetrics":
        """Return the metrics of one named subspace."""
        return SubspaceMetrics(
            pushes=lambda outcome: self._pushes.labels(subspace, outcome),
            update_bytes=self._update_bytes.labels(subspace),
            merged_updates=self._merged_updates.labels(subspace),
            quarantined_updates=self._quarantined_updates.labels(subspace),
            postponed_merges=self._postponed_merges.labels(subspace),
            merge_seconds=self._merge_seconds.labels(subspace),
            lag=self._lag.labels(subspace),
            version=self._version.labels(subspace),
            num_tasks=self._num_tasks.labels(subspace),
            num_pending=self._num_pending.labels(subspace),
            num_factors=self._num_factors.labels(subspace),
            energy_kept=self._energy_kept.labels(subspace),
            num_watchers=self._num_watchers.labels(subspace),
            num_live_workers=self._num_live_workers.labels(subspace),
        )

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(
            f"share_dist_{name}", description, ["subspace", *labels], registry=self.registry
        )

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"share_dist_{name}", description, ["subspace"], registry=self.registry)

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
    """The metrics of one named subspace; ``pushes`` is asked for by outcome."""

    pushes: Callable[[str], Counter]
    update_bytes: Counter
    merged_updates: Counter
    quarantined_updates: Counter
    postponed_merges: Counter
    merge_seconds: Histogram
    lag: Histogram
    version: Gauge
    num_tasks: Gauge
    num_pending: Gauge
    num_factors: Gauge
    energy_kept: Gauge
    num_watchers: Gauge
    num_live_workers: Gauge


class MetricsServer:
    """
    Serves metrics over HTTP until it is closed.

    Args:
        metrics: What to serve.
        listen: ``host:port``; port 0 takes a free one.

    Raises:
        ConfigError: The address cannot be listened on.
    """

    def __init__(self, metrics: Metrics, listen: str) -> None:
        host, port = split_address(listen, "metrics_listen")
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics_listen is {listen!r}: {error.strerror}: choose another address",
                key="metrics_listen",
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
