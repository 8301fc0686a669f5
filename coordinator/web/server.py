"""Serves the page inside the coordinator's loop, until it is closed."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from typing_extensions import override

from coordinator.config import is_loopback, split_address
from coordinator.state import Coordinator
from coordinator.web.routes import make_site
from share_dist.errors import ConfigError

_GRACE_SECONDS = 1


class _Server(uvicorn.Server):
    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program: uvicorn would take them away from it."""
        yield


class WebServer:
    """
    Serves the operator's page.

    Args:
        coordinator: What it shows.
        listen: ``host:port``; port 0 takes a free one.
    """

    def __init__(self, coordinator: Coordinator, listen: str) -> None:
        host, port = split_address(listen, "web_listen")
        self._socket = _bound(host, port, listen)
        self._host = host
        self._server = _Server(
            uvicorn.Config(
                make_site(coordinator, is_local=is_loopback(host)),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=100,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._serving: asyncio.Task[None]

    @property
    def address(self) -> str:
        """Where the page is, as a browser takes it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._socket.getsockname()[1]}/"

    async def start(self) -> None:
        """Begin to serve."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def close(self) -> None:
        """Stop serving; pages that are on their way are finished."""
        self._server.should_exit = True
        await asyncio.wait({self._serving})
        self._socket.close()


def _bound(host: str, port: int, listen: str) -> socket.socket:
    """
    Bind before anything is served, so that a taken port is a letter and not an exit.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64
        )
    except OSError as error:
        raise ConfigError(
            f"web_listen is {listen!r}: {error.strerror or error}: choose another address",
            key="web_listen",
        ) from error
