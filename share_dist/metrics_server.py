"""The metrics server: what one program counts, over HTTP, for Prometheus to read."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server

from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer


class MetricsServer:
    """
    Serves a registry until it is closed.

    Args:
        registry: What to serve.
        host: To listen on.
        port: Likewise; 0 takes a free one.
        key: What the operator sets these by, for the message.

    Raises:
        ConfigError: The address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int, key: str) -> None:
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"{key} is {host}:{port}: {error.strerror}: choose another address", key=key
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
