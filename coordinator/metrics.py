"""The catalogue of Prometheus metrics; every name begins with ``share_dist_``."""

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
        self.pushes = Counter(
            "share_dist_pushes",
            "Pushes, by what became of them: admitted, repeated or refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.update_bytes = Counter(
            "share_dist_update_bytes", "Payload bytes of admitted updates.", registry=self.registry
        )
        self.merged_updates = Counter(
            "share_dist_merged_updates", "Updates that a version contains.", registry=self.registry
        )
        self.quarantined_updates = Counter(
            "share_dist_quarantined_updates",
            "Updates kept aside for an operator since this process started.",
            registry=self.registry,
        )
        self.postponed_merges = Counter(
            "share_dist_postponed_merges",
            "Merges that failed as a whole and will be tried again.",
            registry=self.registry,
        )
        self.merge_seconds = Histogram(
            "share_dist_merge_seconds",
            "Duration of a merge, until it is ready to be committed.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.lag = Histogram(
            "share_dist_lag",
            "Current version minus base version, at the merge.",
            buckets=_LAGS,
            registry=self.registry,
        )
        self.version = self._gauge("version", "Current version.")
        self.num_tasks = self._gauge("tasks", "Tasks that the current version contains.")
        self.num_pending = self._gauge("pending_updates", "Updates that wait for a merge.")
        self.num_factors = self._gauge("num_factors", "Largest k of any side of any layer.")
        self.energy_kept = self._gauge(
            "energy_kept", "Lowest share of energy that a side of a layer keeps."
        )
        self.num_watchers = self._gauge("watchers", "Watchers now.")
        self.num_live_workers = self._gauge("live_workers", "Workers whose lease holds.")

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"share_dist_{name}", description, registry=self.registry)


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
