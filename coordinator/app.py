"""
The composition root: makes the parts of a coordinator, starts and stops them in order.

Example::

    async with build(load_config({"store": "runs/demo/store", "listen": "127.0.0.1:0"})) as app:
        print(app.address)
"""

import asyncio
import contextlib
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health
from structlog.typing import FilteringBoundLogger
from typing_extensions import Self

from coordinator import handshakes, service, tls
from coordinator.access import Access
from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.compaction import Compactor, Holds, newest_base_versions
from coordinator.config import CoordinatorConfig, SubspaceConfig, split_address
from coordinator.leases import Leases, Registrations
from coordinator.lineages import Lineages
from coordinator.metrics import Metrics
from coordinator.observation import observe
from coordinator.refusals import Refusals
from coordinator.state import Coordinator, Lineage
from coordinator.store.base import COORDINATOR, Catalog, Store
from coordinator.store.blobs import storage_errors
from coordinator.transfers import ByteBudget
from coordinator.uploads import UploadSpool
from coordinator.versions import VersionCache
from coordinator.web.server import WebServer
from coordinator.writer import MergeWriter
from share_dist.core.allocation import require_first_factors
from share_dist.errors import ConfigError, StoreError, StoreFenced
from share_dist.metrics_server import MetricsServer
from share_dist.telemetry import Event, get_logger
from share_dist.wire.options import SERVER_OPTIONS
from share_dist.wire.records import UpdateState, VersionEvent

HISTORY_BATCH = 64
"""Events that a watcher who catches up reads at once."""

PULLS_AT_ONCE = 4
LOOKS_AT_ONCE = 2
RESUMES_AT_ONCE = 2
LAYERS_AT_ONCE = 2
"""Payloads that are made, versions or updates that are looked into, unfinished uploads that are
read, and layers of large updates that are measured, at the same time."""


def build(
    config: CoordinatorConfig, catalog: Catalog | None = None, clock: Clock | None = None
) -> "CoordinatorApp":
    """
    Make a coordinator that serves while it is used as ``async with``.

    Args:
        config: What it was told.
        catalog: Instead of a durable one at ``config.store``.
        clock: Instead of this machine's.
    """
    return CoordinatorApp(config, catalog, clock or Clock())


class CoordinatorApp:
    """A coordinator in this process; see ``build``."""

    def __init__(self, config: CoordinatorConfig, catalog: Catalog | None, clock: Clock) -> None:
        self._config = config
        self._given_catalog = catalog
        self._clock = clock
        self._log = get_logger("coordinator")
        self._metrics_server: MetricsServer | None = None
        self._web_server: WebServer | None = None
        self._server: grpc.aio.Server
        self._health: health.aio.HealthServicer
        self._ended: asyncio.Future[None]
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

    @property
    def web_address(self) -> str | None:
        """Where the operator's page is, if it is served."""
        return self._web_server.address if self._web_server else None

    async def __aenter__(self) -> Self:
        _forget_port(self._config.port_file)
        self._ended = asyncio.get_running_loop().create_future()
        catalog = self._given_catalog
        if catalog is None:
            catalog = await asyncio.to_thread(self._open_catalog)
        async with contextlib.AsyncExitStack() as closing:
            closing.callback(catalog.close)
            closing.callback(self._say_stopped)
            refusals = Refusals(catalog.note, self._log, self._clock)
            closing.push_async_callback(asyncio.to_thread, refusals.close)
            closing.enter_context(handshakes.told(refusals.add_handshake))
            uploads = await asyncio.to_thread(self._open_uploads, closing)
            self.coordinator = self._compose(catalog, refusals, uploads, closing)
            # before anyone is served: whoever can reach a port can ask for any subspace of before
            closing.push_async_callback(self.coordinator.lineages.stop)
            for name in sorted({*self._config.names, *catalog.names()}):
                await self.coordinator.lineages.open(name, by=COORDINATOR)
            await self._serve(closing)
            renewing = asyncio.create_task(self._keep_owning(catalog))
            closing.callback(renewing.cancel)
            closing.push_async_callback(self.coordinator.lineages.stop)
            closing.push_async_callback(self._stop_serving)
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
        ends: set[asyncio.Future[Any]] = {waiting, self._ended}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
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
        for lineage in self.coordinator.lineages.all():
            lineage.broadcast.close()

    def _note_end_of_writing(self, writing: "asyncio.Task[None]") -> None:
        error = None if writing.cancelled() else writing.exception()
        if error is not None:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """End serving, as nothing more can be written: a bug of ours, or another owner of the store."""
        with contextlib.suppress(Exception):
            self._log.critical(Event.WRITER_FAILED.value, exc_info=error)
        # kept: the loop holds its tasks only weakly
        self._ending = asyncio.ensure_future(self._health.enter_graceful_shutdown())
        if not self._ended.done():
            self._ended.set_result(None)

    async def _keep_owning(self, catalog: Catalog) -> None:
        while True:
            await asyncio.sleep(self._config.owner_lease_seconds / 3)
            try:
                seen_seconds = self.coordinator.access.seen_seconds
                await asyncio.to_thread(catalog.renew, seen_seconds)
            except StoreFenced as error:
                self._give_up(error)
                return
            except StoreError as error:
                # the lease has time left: the next try may succeed
                self._log.error(Event.RENEWAL_FAILED.value, reason=error.message)

    def facts(self) -> dict[str, int]:
        """What the default subspace holds: version and number of pending updates."""
        store = self.coordinator.lineages.get("").store
        return {
            "version": store.current_version,
            "num_pending": store.num_updates(UpdateState.PENDING),
        }

    def _open_catalog(self) -> Catalog:
        from coordinator.store.durable import open_catalog

        return open_catalog(
            self._config.store,
            blobs=self._config.blobs,
            owner_lease_seconds=self._config.owner_lease_seconds,
            inline_bytes=self._config.inline_bytes,
        )

    def _open_uploads(self, closing: contextlib.AsyncExitStack) -> UploadSpool:
        folder = self._config.uploads
        is_beside = self._given_catalog is None and "://" not in self._config.store
        if folder is None and is_beside:
            folder = Path(self._config.store) / "uploads"
        if folder is None:
            folder = Path(closing.enter_context(TemporaryDirectory(prefix="share-dist-uploads-")))
        with storage_errors(str(folder)):
            return UploadSpool(folder, self._config.max_bytes_of_uploads, hands_over=is_beside)

    def _compose(
        self,
        catalog: Catalog,
        refusals: Refusals,
        uploads: UploadSpool,
        closing: contextlib.AsyncExitStack,
    ) -> Coordinator:
        metrics = Metrics()
        lineages = Lineages(
            catalog,
            partial(_lineage, self._config, metrics, self._log, self._clock),
            self._note_end_of_writing,
        )
        return Coordinator(
            config=self._config,
            catalog=catalog,
            lineages=lineages,
            access=Access(self._config, catalog, self._clock, refusals),
            budget=ByteBudget(
                self._config.max_bytes_in_flight, self._config.max_bytes_in_flight_per_peer
            ),
            uploads=uploads,
            pulls=_threads(closing, PULLS_AT_ONCE, "pull"),
            looks=_threads(closing, LOOKS_AT_ONCE, "look"),
            resumes=_threads(closing, RESUMES_AT_ONCE, "resume"),
            measures=_threads(closing, LAYERS_AT_ONCE, "measure"),
            metrics=metrics,
            log=self._log,
            clock=self._clock,
            started_at=self._clock.now(),
        )

    async def _serve(self, closing: contextlib.AsyncExitStack) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = await service.attach(self._server, self.coordinator)
        self.port = tls.add_port(self._server, self._config, self._log, self._clock)
        self.coordinator.metrics.observe_with(partial(observe, self.coordinator))
        if self._config.metrics_listen:
            self._metrics_server = MetricsServer(
                self.coordinator.metrics.registry,
                *split_address(self._config.metrics_listen, "metrics_listen"),
                "metrics_listen",
            )
            closing.push_async_callback(asyncio.to_thread, self._metrics_server.close)
        if self._config.web_listen:
            self._web_server = WebServer(self.coordinator, self._config.web_listen)
            closing.push_async_callback(self._web_server.close)
            await self._web_server.start()
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


def _threads(closing: contextlib.AsyncExitStack, number: int, name: str) -> Executor:
    """Make threads; at the end what waits for them is let go, and what they are at is finished."""
    made = ThreadPoolExecutor(number, name)
    closing.push_async_callback(asyncio.to_thread, partial(made.shutdown, cancel_futures=True))
    return made


def _lineage(
    config: CoordinatorConfig,
    metrics: Metrics,
    log: FilteringBoundLogger,
    clock: Clock,
    store: Store,
) -> Lineage:
    """Put the parts of one named subspace together."""
    own = config.subspace(store.name)
    _check_fit(own, store)
    counted = metrics.of(store.name)
    log = log.bind(subspace=store.name)
    versions = VersionCache(store)
    broadcast = Broadcast(
        store.current_version,
        partial(_history, store),
        max_watchers=own.max_watchers,
        max_watchers_per_peer=own.max_watchers_per_peer,
    )
    leases = Leases(
        own.lease_seconds,
        store.epochs(),
        clock.monotonic_seconds(),
        newest_base_versions(store),
    )
    holds = Holds()
    compactor = Compactor(store, broadcast, leases, holds, clock)
    writer = MergeWriter(own, store, versions, broadcast, compactor, counted, log, clock)
    return Lineage(
        name=store.name,
        config=own,
        store=store,
        versions=versions,
        leases=leases,
        registrations=Registrations(own.max_registrations_per_hour),
        broadcast=broadcast,
        holds=holds,
        compactor=compactor,
        writer=writer,
        metrics=counted,
        log=log,
    )


def _check_fit(config: SubspaceConfig, store: Store) -> None:
    """Refuse a configuration with which what is in the store could not go on."""
    fingerprint = store.fingerprint()
    if fingerprint is None:
        return
    if fingerprint.metric != config.metric:
        raise ConfigError(
            f"subspace {store.name!r} works with metric {fingerprint.metric!r}, asked was "
            f"{config.metric!r}: pass --metric {fingerprint.metric}, or begin another subspace",
            key="metric",
        )
    if config.max_bytes is not None:
        require_first_factors(fingerprint.layers, config.max_bytes)


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
