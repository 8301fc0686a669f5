"""The driver: actors for all streams, their events on the screen, a clean end on Ctrl-C."""

import contextlib
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from share_dist.client.credentials import Credentials
from share_dist.errors import ConfigError, ExitCode, ShareError, WorkerError
from share_dist.wire.records import DEFAULT_SUBSPACE
from worker.actor import Outcome, WorkerConfig
from worker.cluster import place_actor, plan_places, ray_cluster
from worker.display import ProgressDisplay
from worker.loop import LoopOptions
from worker.stream import read_stream

POLL_SECONDS = 0.5
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class RunRequest:
    """
    What ``worker run`` was asked for.

    Args:
        streams: Stream files.
        address: Of the coordinator.
        workdir: Folder of all workers.
        num_at_once: Streams that are learnt at the same time.
        ray_address: Of a cluster that runs, or None.
        options: How loops behave.
        subspace: Which named one is learnt into.
        credentials: What the coordinator is shown.
        changes: ``section.key=value``, of all streams.
        report_to: Who is told of training; None: whom each stream names.
        metrics: Host and port on which the first actor serves Prometheus metrics, each
            further one on the port after; port 0: a free one each. None: not served.
    """

    streams: tuple[Path, ...]
    address: str
    workdir: Path
    num_at_once: int
    ray_address: str | None
    options: LoopOptions
    subspace: str = DEFAULT_SUBSPACE
    credentials: Credentials = field(default_factory=Credentials)
    changes: tuple[str, ...] = ()
    report_to: tuple[str, ...] | None = None
    metrics: tuple[str, int] | None = None

    def config_of(self, index: int, num_threads: int) -> WorkerConfig:
        """What the actor of one of the streams works on."""
        return WorkerConfig(
            str(self.streams[index].resolve()),
            self.address,
            str(self.workdir.resolve()),
            self.options,
            num_threads,
            subspace=self.subspace,
            credentials=self.credentials.portable(),
            changes=self.changes,
            report_to=self.report_to,
            metrics=self._metrics_of(index),
        )

    def _metrics_of(self, index: int) -> tuple[str, int] | None:
        if self.metrics is None:
            return None
        host, port = self.metrics
        return host, port + index if port else 0


@contextlib.contextmanager
def _sigterm_interrupts(signals: list[int]) -> Iterator[None]:
    """
    Let SIGTERM end what is inside like Ctrl-C, and note it.

    To be entered after Ray has set its own handler. An error of another type would
    not do: what is raised within a call of Ray arrives as ``KeyboardInterrupt``.
    """

    def end(number: int, _frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Driver:
    """
    Runs actors to the end of their streams, then lets each score its tasks under the last version.

    Args:
        request: What to run.
        as_json: Print events as JSON lines instead of a live table.
    """

    request: RunRequest
    as_json: bool = False
    _actors: dict[str, Any] = field(default_factory=dict)
    _running: dict[Any, str] = field(default_factory=dict)
    _draining: dict[Any, str] = field(default_factory=dict)

    def run(self) -> ExitCode:
        """
        Run everything.

        Returns:
            The exit code: 0, 130 after Ctrl-C, or 143 after SIGTERM, here or at an actor.

        Raises:
            ShareError: What ended a worker; the others are stopped first.
        """
        worker_ids, signals = self._worker_ids(), list[int]()
        with (
            ray_cluster(self.request.ray_address) as machines,
            ProgressDisplay(worker_ids, as_json=self.as_json) as display,
        ):
            place = plan_places(machines, len(worker_ids), self.request.num_at_once)
            for index, worker_id in enumerate(worker_ids):
                config = self.request.config_of(index, place.num_threads)
                self._actors[worker_id] = place_actor(config, place)
            try:
                with _sigterm_interrupts(signals):
                    stopped = self._call_all("run", display)
                    if stopped:
                        display.say(f"{', '.join(stopped)} stopped by SIGTERM; --resume goes on")
                        return ExitCode.TERMINATED
                    self._call_all("rescore", display)
            except KeyboardInterrupt:
                self._stop()
                self._show(display, self._actors)
                display.say("stopped; --resume goes on")
                return ExitCode.TERMINATED if signals else ExitCode.INTERRUPTED
            except ShareError:
                self._stop()
                raise
        return ExitCode.OK

    def _worker_ids(self) -> list[str]:
        ids = [read_stream(path, self.request.changes).worker_id for path in self.request.streams]
        repeated = sorted({each for each in ids if ids.count(each) > 1})
        if repeated:
            raise ConfigError(
                f"{ids.count(repeated[0])} streams are of worker {repeated[0]!r}: "
                "give each file its own worker_id",
                key="worker_id",
            )
        return ids

    def _call_all(self, method: str, display: ProgressDisplay) -> list[str]:
        """Call a method of every actor, so many at once, and show events until all are done; who was stopped."""
        import ray

        waiting, stopped = deque(self._actors), []
        while waiting or self._running:
            while waiting and len(self._running) < self.request.num_at_once:
                worker_id = waiting.popleft()
                self._running[getattr(self._actors[worker_id], method).remote()] = worker_id
            done, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
            self._show(display, self._running.values())
            for reference in done:
                worker_id = self._running.pop(reference)
                if _result(reference).state == "stopped":
                    stopped.append(worker_id)
        return stopped

    def _show(self, display: ProgressDisplay, worker_ids: Iterable[str]) -> None:
        import ray

        for worker_id in set(worker_ids) - set(self._draining.values()):
            # tried again it would bring the same events to nobody
            drain = self._actors[worker_id].drain.options(max_task_retries=0)
            self._draining[drain.remote()] = worker_id
        calls = list(self._draining)
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=POLL_SECONDS)
        for call in ready:
            del self._draining[call]
            # an actor that is being started anew or has failed: its run will say so
            with contextlib.suppress(ray.exceptions.RayError):
                display.show(ray.get(call))

    def _stop(self) -> None:
        """Let the actors end at their next step."""
        import ray

        for actor in self._actors.values():
            actor.stop.remote()
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=STOP_SECONDS)


def _result(reference: Any) -> Outcome:
    """What an actor's call returned; its own error, not Ray's wrapping of it."""
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ShareError):
            raise error.cause from error
        raise
    except ray.exceptions.RayActorError as error:
        cause = getattr(error, "cause", None)
        raise (
            cause
            if isinstance(cause, ShareError)
            else WorkerError(f"a worker was lost, also after it was started anew: {error}")
        ) from error
    return outcome
