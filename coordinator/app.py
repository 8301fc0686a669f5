"""
The composition root: makes the parts of a coordinator, starts and stops them in order.

Example::

    async with build(load_config({"store": "runs/demo/store", "listen": "127.0.0.1:0"})) as app:
        print(app.address)
"""

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health
from structlog.typing import FilteringBoundLogger
from typing_extensions import Self

from coordinator import service
from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.config import CoordinatorConfig
from coordinator.leases import Leases
from coordinator.metrics import Metrics, MetricsServer
from coordinator.state import Coordinator
from coordinator.store.base import Store
from coordinator.store.durable import DurableStore
from coordinator.versions import VersionCache
from coordinator.writer import MergeWriter
from share_dist.errors import ConfigError
from share_dist.telemetry import Event, get_logger
from share_dist.wire.options import SERVER_OPTIONS
from share_dist.wire.records import UpdateState, VersionEvent

HISTORY_BATCH = 64
"""Events that a watcher who catches up reads at once."""


def build(
    config: CoordinatorConfig, store: Store | None = None, clock: Clock | None = None
) -> "CoordinatorApp":
    """
    Make a coordinator that serves while it is used as ``async with``.

    Args:
        config: What it was told.
        store: Instead of a durable one at ``config.store``.
        clock: Instead of this machine's.
    """
    return CoordinatorApp(config, store, clock or Clock())


class CoordinatorApp:
    """A coordinator in this process; see ``build``."""

    def __init__(self, config: CoordinatorConfig, store: Store | None, clock: Clock) -> None:
        self._config = config
        self._given_store = store
        self._clock = clock
        self._log = get_logger("coordinator")
        self._metrics_server: MetricsServer | None = None
        self._server: grpc.aio.Server
        self._health: health.aio.HealthServicer
        self._writing: asyncio.Task[None]
        self._ending: asyncio.Future[None]
        self._closing = contextlib.AsyncExitStack()
        self.coordinator: Coordinator
        self.port = 0

    @property
    def address(self) -> str:
        """Where this coordinator serves; known once it does."""
        return f"{self._config.listen.rpartition(':')[0]}:{self.port}"

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are served, if they are."""
        return self._metrics_server.address if self._metrics_server else None

    async def __aenter__(self) -> Self:
        _forget_port(self._config.port_file)
        store = self._given_store
        if store is None:
            store = await asyncio.to_thread(DurableStore, self._config.store)
        async with contextlib.AsyncExitStack() as closing:
            closing.callback(store.close)
            closing.callback(self._say_stopped)
            self.coordinator = _compose(self._config, store, self._log, self._clock)
            await self._serve(closing)
            self._writing = asyncio.create_task(self.coordinator.writer.run())
            closing.push_async_callback(self._stop_writing)
            closing.push_async_callback(self._stop_serving)
            self._writing.add_done_callback(self._note_end_of_writing)
            closing.callback(_forget_port, self._config.port_file)
            self._tell_port()
            self._closing = closing.pop_all()
        self._log.info(Event.COORDINATOR_READY.value, address=self.address, **self.facts())
        return self

    async def serve_until(self, told: asyncio.Event) -> bool:
        """
        Serve until told to stop, or until a bug of ours ends the merging.

        Returns:
            Whether it was told to stop.
        """
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait({waiting, self._writing}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return told.is_set()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.info(Event.COORDINATOR_STOPPING.value)
        await self._closing.aclose()

    async def _stop_serving(self) -> None:
        """Say so, and end every watch; calls in hand go on until the writer has let go of them."""
        await self._health.enter_graceful_shutdown()
        self.coordinator.broadcast.close()

    async def _stop_writing(self) -> None:
        """Finish the merge in hand; a writer that failed has been told of already."""
        self.coordinator.writer.stop()
        await asyncio.wait({self._writing})

    def _note_end_of_writing(self, writing: "asyncio.Task[None]") -> None:
        error = None if writing.cancelled() else writing.exception()
        if error is None:
            return
        with contextlib.suppress(Exception):
            self._log.critical(Event.WRITER_FAILED.value, exc_info=error)
        # kept: the loop holds its tasks only weakly
        self._ending = asyncio.ensure_future(self._health.enter_graceful_shutdown())

    def facts(self) -> dict[str, int]:
        """What the coordinator holds: version and number of pending updates."""
        store = self.coordinator.store
        return {
            "version": store.current_version,
            "num_pending": store.num_updates(UpdateState.PENDING),
        }

    async def _serve(self, closing: contextlib.AsyncExitStack) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = await service.attach(self._server, self.coordinator)
        try:
            self.port = self._server.add_insecure_port(self._config.listen)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {self._config.listen}: another program may have the port; "
                "choose another, or port 0",
                key="listen",
            ) from error
        if self._config.metrics_listen:
            self._metrics_server = MetricsServer(
                self.coordinator.metrics, self._config.metrics_listen
            )
            closing.push_async_callback(asyncio.to_thread, self._metrics_server.close)
        closing.push_async_callback(self._server.stop, self._config.grace_seconds)
        await self._server.start()

    def _say_stopped(self) -> None:
        if self.port:
            self._log.info(Event.COORDINATOR_STOPPED.value, **self.facts())

    def _tell_port(self) -> None:
        path = self._config.port_file
        if path is None:
            return
        # renamed into place: whoever waits for the file never reads half of it
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(f"{self.port}\n", encoding="utf-8")
        unfinished.replace(path)


def _compose(
    config: CoordinatorConfig, store: Store, log: FilteringBoundLogger, clock: Clock
) -> Coordinator:
    _check_metric(config, store)
    versions = VersionCache(store)
    broadcast = Broadcast(
        store.current_version, partial(_history, store), max_watchers=config.max_watchers
    )
    leases = Leases(config.lease_seconds, store.epochs(), clock.monotonic_seconds())
    metrics = Metrics()
    metrics.num_watchers.set_function(lambda: broadcast.num_watchers)
    metrics.num_live_workers.set_function(lambda: leases.num_live(clock.monotonic_seconds()))
    writer = MergeWriter(config, store, versions, broadcast, metrics, log, clock)
    return Coordinator(
        config, store, versions, leases, broadcast, writer, metrics, log, clock, clock.now()
    )


def _check_metric(config: CoordinatorConfig, store: Store) -> None:
    fingerprint = store.fingerprint()
    if fingerprint and fingerprint.metric != config.metric:
        raise ConfigError(
            f"the store works with metric {fingerprint.metric!r}, asked was {config.metric!r}: pass "
            f"--metric {fingerprint.metric}, or begin a new store",
            key="metric",
        )


async def _history(store: Store, after_version: int) -> tuple[VersionEvent, ...]:
    return await asyncio.to_thread(store.events, after_version, HISTORY_BATCH)


def _forget_port(path: Path | None) -> None:
    """Remove the port file of this process, or of one that was killed."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(
            f"port_file is {path}: there is no folder {path.parent}; make it first", key="port_file"
        )
    path.unlink(missing_ok=True)
