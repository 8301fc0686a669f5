"""The actor: a thin shell over the loop, so that Ray can place it, restart it and listen to it."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from share_dist.client.credentials import Credentials
from share_dist.wire.records import DEFAULT_SUBSPACE
from worker.loop import LoopOptions, Stopped, TaskLoop
from worker.progress import WorkerEvent
from worker.stream import read_stream


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
        timeout_seconds: How long the coordinator may be gone.
        subspace: Which named one is learnt into.
        credentials: What the coordinator is shown; files as the actor's machine sees them. A
            token may stand in the actor's environment as well, and is never sent to it.
    """

    stream_path: str
    address: str
    workdir: str
    options: LoopOptions
    num_threads: int
    timeout_seconds: float = 120.0
    subspace: str = DEFAULT_SUBSPACE
    credentials: Credentials = field(default_factory=Credentials)


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
        self._config = config
        self._is_restarted = is_restarted
        self._events: deque[dict[str, Any]] = deque()
        self._begun = time.monotonic()
        self._stop = threading.Event()

    @cached_property
    def _loop(self) -> TaskLoop:
        # not in __init__: an error in there reaches the driver as the actor's death only
        from share_dist.client import ShareClient
        from worker.backbone import load_backbone

        stream, options = read_stream(self._config.stream_path), self._config.options
        return TaskLoop(
            stream,
            load_backbone(stream),
            ShareClient(
                self._config.address,
                subspace=self._config.subspace,
                timeout_seconds=self._config.timeout_seconds,
                credentials=self._config.credentials.with_token_of(os.environ),
            ),
            Path(self._config.workdir) / stream.worker_id,
            replace(options, resume=options.resume or self._is_restarted),
            self._emit,
            self._stop.is_set,
        )

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

    def drain(self) -> list[dict[str, Any]]:
        """Events since the last call, oldest first."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def _emit(self, event: WorkerEvent, **fields: Any) -> None:
        seconds = round(time.monotonic() - self._begun, 3)
        common = {
            "event": event.value,
            "worker_id": self._loop.stream.worker_id,
            "seconds": seconds,
        }
        self._events.append({**common, **fields})
