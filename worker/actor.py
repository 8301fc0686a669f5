"""The actor: a thin shell over the loop, so that Ray can place it, restart it and listen to it."""

import multiprocessing
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from share_dist.client.credentials import Credentials
from share_dist.wire.buffers import keep_a_spare
from share_dist.wire.records import DEFAULT_SUBSPACE
from worker.backbone import Backbone, load_backbone
from worker.journal import Laps
from worker.lives import begin_life
from worker.loop import LoopOptions, Stopped, TaskLoop
from worker.progress import WorkerEvent
from worker.stream import TaskStream, read_stream


@dataclass(frozen=True)
class WorkerConfig:
    """
    What one actor works on.

    Args:
        stream_path: The stream file, as the actor's machine sees it.
        address: ``host:port`` of the coordinator.
        workdir: Folder of all workers; the actor's own lies inside, under its worker id.
        options: How its loop behaves.
        num_threads: Cores that the actor owns.
        timeout_seconds: How long one call may take at first; where bytes need longer, it grows by itself.
        subspace: Which named one is learnt into.
        credentials: What the coordinator is shown; files as the actor's machine sees them. A
            token may stand in the actor's environment as well, and is never sent to it.
        changes: ``section.key=value`` that stand instead of what the stream file says.
        report_to: Who is told of training; None: whom the stream names.
        metrics: Host and port to serve Prometheus metrics on; None: not served.
    """

    stream_path: str
    address: str
    workdir: str
    options: LoopOptions
    num_threads: int
    timeout_seconds: float = 20.0
    subspace: str = DEFAULT_SUBSPACE
    credentials: Credentials = field(default_factory=Credentials)
    changes: tuple[str, ...] = ()
    report_to: tuple[str, ...] | None = None
    metrics: tuple[str, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a call ended, and what ``results.json`` holds then."""

    state: Literal["finished", "stopped"]
    results: dict[str, Any]


class WorkerActor:
    """
    One frozen model, one stream, one loop.

    ``run`` blocks for as long as the stream lasts; ``drain`` and ``stop`` are
    called from other threads meanwhile.

    Args:
        config: What it works on.
        is_restarted: Whether an earlier actor with this config was lost: then
            its checkpoints are gone on from.
    """

    def __init__(self, config: WorkerConfig, *, is_restarted: bool = False) -> None:
        torch.set_num_threads(config.num_threads)
        # one version after another is received
        keep_a_spare()
        self._config = config
        self._is_restarted = is_restarted
        self._events: deque[Mapping[str, Any]] = deque()
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = [self._events.append]
        self._begun = time.monotonic()
        self._stop = threading.Event()
        # threads beside the loop tell events as well, and what hears one may tell of another
        self._telling = threading.RLock()

    @cached_property
    def _stream(self) -> TaskStream:
        return read_stream(self._config.stream_path, self._config.changes)

    @cached_property
    def _loop(self) -> TaskLoop:
        # not in __init__: an error in there reaches the driver as the actor's death only
        from share_dist.client import ShareClient

        options, workdir = self._config.options, Path(self._config.workdir) / self._stream.worker_id
        if self._is_restarted:
            begin_life(workdir)
        self._listen(workdir)
        return TaskLoop(
            self._stream,
            self._load(),
            ShareClient(
                self._config.address,
                subspace=self._config.subspace,
                timeout_seconds=self._config.timeout_seconds,
                credentials=self._config.credentials.with_token_of(os.environ),
            ),
            workdir,
            replace(options, resume=options.resume or self._is_restarted),
            self._emit,
            self._stop.is_set,
        )

    def _load(self) -> Backbone:
        laps = Laps()
        # what every model needs, so that its own seconds are told apart
        import transformers  # noqa: F401

        laps.end("import")
        backbone = load_backbone(self._stream)
        laps.end("model")
        self._emit(
            WorkerEvent.LOADED,
            pid=os.getpid(),
            node=platform.node(),
            **{f"{name}_seconds": seconds for name, seconds in laps.seconds.items()},
        )
        return backbone

    def _listen(self, workdir: Path) -> None:
        """Let those hear the events who were asked for."""
        wanted, served = self._config.report_to, self._config.metrics
        names = self._stream.training.report_to if wanted is None else wanted
        if served is not None:
            from share_dist.metrics_server import MetricsServer
            from worker.metrics import ActorMetrics

            metrics = ActorMetrics(self._stream.worker_id)
            server = MetricsServer(metrics.registry, *served, "--metrics-port")
            self._listeners.append(metrics.take)
            self._emit(WorkerEvent.METRICS_SERVED, address=server.address)
        if names:
            from worker.reporting import Reporters

            self._listeners.append(Reporters(names, self._stream, workdir, self._emit).take)

    def own_process(self) -> None:
        """
        Arrange a process that is this actor's alone.

        SIGTERM, by which a machine is taken back, ends ``run`` at its next step, with
        a checkpoint. Processes that a source of rows starts are spawned: a forked one
        would inherit the channel to the coordinator, and hang in it.
        """
        multiprocessing.set_start_method("spawn", force=True)
        signal.signal(signal.SIGTERM, lambda _signal, _frame: self.stop())

    def run(self) -> Outcome:
        """Learn the stream."""
        loop = self._loop
        try:
            return Outcome("finished", loop.run().to_dict())
        except Stopped:
            return Outcome("stopped", loop.results.to_dict())

    def rescore(self) -> Outcome:
        """Score all own tasks under the newest version."""
        return Outcome("finished", self._loop.rescore().to_dict())

    def stop(self) -> None:
        """Let ``run`` end at its next step; checkpoints stay."""
        self._stop.set()

    def drain(self) -> list[Mapping[str, Any]]:
        """Events since the last call, oldest first."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def _emit(self, event: WorkerEvent, **fields: Any) -> None:
        said = {
            "event": event.value,
            "worker_id": self._stream.worker_id,
            "seconds": round(time.monotonic() - self._begun, 3),
            "time": round(time.time(), 3),
            **fields,
        }
        with self._telling:
            for listener in self._listeners:
                listener(said)
