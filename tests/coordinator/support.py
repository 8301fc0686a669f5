"""Small updates, a coordinator in a thread, a coordinator as a process."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from coordinator.app import CoordinatorApp, build
from coordinator.candidate import Stopwatch, candidate_of_merge
from coordinator.clock import Clock
from coordinator.config import CoordinatorConfig, SubspaceConfig, load_config
from coordinator.screening import merge_of
from coordinator.state import Lineage
from coordinator.store import EncodedVersion, Store
from coordinator.store.base import DescribedUpdate
from coordinator.store.format import describe_update
from coordinator.versions import Snapshot
from share_dist.client import ShareClient
from share_dist.core.values import (
    Fingerprint,
    Head,
    LayerShape,
    LayerUpdate,
    SideUpdate,
    Subspace,
    TaskUpdate,
)

SHAPES = {"encoder.query": LayerShape(12, 10), "encoder.value": LayerShape(12, 8)}
FINGERPRINT = Fingerprint("0" * 64, SHAPES)
EMPTY = Subspace.empty(SHAPES)
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def make_update(
    task_id: str = "cats",
    update_id: str | None = None,
    *,
    base: Subspace = EMPTY,
    num_temporary: int = 2,
    pseudo_rank: int = 2,
    lease_epoch: int = 1,
    scale: float = 1.0,
    seed: int | None = None,
    **fields: Any,
) -> TaskUpdate:
    """Make an update with random numbers that depend on its id only."""
    update_id = update_id or f"update-of-{task_id}"
    seed = sum(update_id.encode()) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)

    def side(columns: int, features: int) -> SideUpdate:
        return SideUpdate(
            scale * torch.randn(columns, pseudo_rank, generator=generator),
            torch.randn(features, num_temporary, generator=generator),
            scale * torch.randn(num_temporary, pseudo_rank, generator=generator),
        )

    layers = {
        name: LayerUpdate(
            side(layer.a.num_factors, layer.a.features), side(layer.b.num_factors, layer.b.features)
        )
        for name, layer in base.layers.items()
    }
    head = Head({"weight": torch.randn(3, 4, generator=generator)}, "text-classification", 3)
    return TaskUpdate(
        update_id=update_id,
        task_id=task_id,
        base_version=base.version,
        layers=layers,
        head=fields.pop("head", head),
        lease_epoch=lease_epoch,
        num_samples=fields.pop("num_samples", 640),
        scores=fields.pop("scores", {"accuracy": 0.75}),
        **fields,
    )


def with_first_layer(update: TaskUpdate, **sides: SideUpdate) -> TaskUpdate:
    """Replace sides of an update's first layer."""
    name = next(iter(update.layers))
    layer = update.layers[name]
    changed = LayerUpdate(sides.get("a", layer.a), sides.get("b", layer.b))
    return replace(update, layers={**update.layers, name: changed})


def make_config(store: Path, **values: Any) -> CoordinatorConfig:
    """Make a configuration for a coordinator on a free port of loopback."""
    values = {"listen": "127.0.0.1:0", "num_factors": 6, "oversample": 4} | values
    return load_config({"store": store, **values}, environment={})


def client_of(address: str, worker_id: str = "w", **options: Any) -> ShareClient:
    """Make a client of one of the tests' coordinators."""
    return ShareClient(address, worker_id=worker_id, **{"fingerprint": FINGERPRINT, **options})


@contextlib.contextmanager
def running(config: CoordinatorConfig, **options: Any) -> Iterator[CoordinatorApp]:
    """Run a coordinator in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="coordinator")
    thread.start()

    def wait_for(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    app = build(config, **options)
    try:
        wait_for(app.__aenter__())
        try:
            yield app
        finally:
            wait_for(app.__aexit__(None, None, None))
    finally:
        wait_for(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def lineage_of(app: CoordinatorApp, name: str = "") -> Lineage:
    """The parts that serve one of a coordinator's subspaces; the default one unless named."""
    return app.coordinator.lineages.get(name)


def wait_until(is_so: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for what will surely come; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["coordinator.app", "coordinator.cli"])


class CoordinatorProcess:
    """
    A coordinator in a process of its own, with the command's own start and end.

    It is forked from a process that has imported everything, so that it starts at once.
    What it says when it is ready is in ``ready``, empty if it ended before.

    Args:
        store: Its store.
        flags: More flags of the command.
        fault: The point of ``faults.POINTS`` at which it dies.
        prepare: Called in the new process before the coordinator starts; it must be picklable.
    """

    def __init__(
        self,
        store: Path | str,
        *flags: str,
        fault: str = "",
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="share-dist-process-"))
        arguments = [
            *("serve", "--json", "--log-format", "json"),
            *("--store", str(store), "--listen", "127.0.0.1:0"),
            *("--num-factors", "6", "--oversample", "4", *flags),
        ]
        self._process = _FORKS.Process(
            target=_serve, args=(arguments, self._folder, fault, prepare)
        )
        self._process.start()
        wait_until(lambda: "\n" in self.stdout or not self._process.is_alive())
        self.ready: dict[str, Any] = json.loads(self.stdout or "{}")

    @property
    def stdout(self) -> str:
        path = self._folder / "stdout"
        return path.read_text() if path.exists() else ""

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text()

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self._process.kill()

    def wait(self) -> int | None:
        """Wait for the end; return the exit code, negative for a signal."""
        self._process.join(60)
        return self._process.exitcode

    def stop(self) -> int | None:
        """Ask it to stop, and wait."""
        self._process.terminate()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self._process.close()
        shutil.rmtree(self._folder)


def _serve(
    arguments: list[str], folder: Path, fault: str, prepare: Callable[[], None] | None
) -> None:
    """In the forked process: what ``python -m coordinator`` does."""
    if prepare is not None:
        prepare()
    if fault:
        os.environ["SHARE_DIST_FAULT"] = f"{fault}:kill"
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["coordinator", *arguments]
    runpy.run_module("coordinator", run_name="__main__")


def describe(update: TaskUpdate, *, worker_id: str = "w", **options: Any) -> DescribedUpdate:
    """Describe an update as a handler does once it is admitted."""
    return describe_update(update, worker_id=worker_id, pushed_at=NOW, **options)


def commit_of(
    store: Store, update_ids: list[str], *, num_factors: int = 6, oversample: int = 0
) -> EncodedVersion:
    """Merge updates of a store for real; what the coordinator's writer would commit."""
    updates = [store.load_update(update_id) for update_id in update_ids]
    stopwatch = Stopwatch(Clock(unix_seconds=NOW.timestamp))
    current = Snapshot.load(store)
    bases = {update.base_version: store.subspace(update.base_version) for update in updates}
    config = SubspaceConfig(num_factors=num_factors, oversample=oversample)
    outcome = merge_of(updates, current, bases, config)
    candidate = candidate_of_merge(outcome, current, stopwatch)
    return candidate.version
