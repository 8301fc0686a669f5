"""Cells of this project's own method: a real coordinator, a real wire, the worker's own loop."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import Any

from share_dist.client import ShareClient
from share_dist.commands.console import jsonable
from share_dist.commands.processes import Child, share_dist_command, wait_for_file
from share_dist.core.metrics import basis_bytes, coefficient_bytes
from share_dist.errors import WorkerError
from worker.backbone import Backbone
from worker.bench.cell import Cell, Work
from worker.bench.late import late
from worker.bench.memory import forget_peak, peak_mib
from worker.bench.methods import METHODS, Method
from worker.bench.suite import Suite
from worker.bench.task_free import served_tasks, task_free_scores
from worker.loop import LoopOptions, TaskLoop
from worker.progress import WorkerEvent
from worker.results import TaskResult, WorkerResults
from worker.stream import TaskStream, write_stream

ASYNC_WORKERS = 4
LAG = 8
START_SECONDS = 120.0


@dataclass(frozen=True)
class SharedCells:
    """
    Computes cells of tasks that are learnt into one subspace.

    Args:
        suite: Whose.
        backbone: The frozen model.
    """

    suite: Suite
    backbone: Backbone

    def compute(self, work: Work, tell: Callable[[int, int], None]) -> dict[str, Any]:
        """
        Compute one.

        Args:
            work: Which.
            tell: Told of every step, and of how many.
        """
        cell = work.cell
        ways = {"share-async": self._by_many, "share-late": self._by_late_ones}
        learn = ways.get(cell.method, self._by_one)
        with (
            tempfile.TemporaryDirectory(prefix="share-dist-bench-") as folder,
            _coordinator(Path(folder), self.suite, METHODS[cell.method]) as address,
        ):
            forget_peak()
            results = learn(cell, address, Path(folder), tell)
            peak = {} if cell.method == "share-async" else {"peak_mib": peak_mib()}
            found = _facts(address, self.suite) | self._task_free(address)
        tasks = {task.task_id: task for each in results for task in each.tasks}
        order = self.suite.order(cell.seed)
        return {
            "order": order,
            "matrix": results[0].accuracy_matrix() if len(results) == 1 else None,
            "final": {each: tasks[each].final for each in order},
            "scores": {each: tasks[each].history[-1].scores for each in order},
            "learnt": {each: tasks[each].learnt for each in order},
            "validation": fmean(_validation(tasks[each]) for each in order),
            "lags": {each: tasks[each].lag for each in order},
            "drifts": {each: tasks[each].drift for each in order},
            "sent_bytes": {each: tasks[each].adapter_bytes for each in order},
            **found,
            "seconds": round(fsum(tasks[each].seconds["train"] for each in order), 1),
            **peak,
        }

    def _task_free(self, address: str) -> dict[str, Any]:
        """How well the tasks are served where their ids are not given."""
        with ShareClient(address) as client:
            tasks, subspace = served_tasks(client, self.suite, self.backbone), client.pull()
            assert subspace is not None, "nothing was held, so something came"
            return {"task_free": task_free_scores(tasks, subspace, self.backbone)}

    def _by_one(
        self, cell: Cell, address: str, folder: Path, tell: Callable[[int, int], None]
    ) -> list[WorkerResults]:
        """One worker, in this process: each task begins in the version that has all before it."""
        stream = self._stream(cell, "all", self.suite.order(cell.seed))
        done: set[str] = set()

        def emit(event: WorkerEvent, **fields: Any) -> None:
            if event is WorkerEvent.TASK_PROGRESSED:
                ahead = len(done) * fields["num_steps"]
                tell(ahead + fields["step"], len(stream.tasks) * fields["num_steps"])
            if event is WorkerEvent.TASK_LEARNT:
                done.add(fields["task_id"])

        options = LoopOptions(in_sequence=True)
        with ShareClient(address) as client:
            loop = TaskLoop(stream, self.backbone, client, folder / "all", options, emit)
            loop.run()
            return [loop.rescore()]

    def _by_many(
        self, cell: Cell, address: str, folder: Path, tell: Callable[[int, int], None]
    ) -> list[WorkerResults]:
        """Four actors at once, each with every fourth task."""
        order, files = self.suite.order(cell.seed), []
        for number in range(ASYNC_WORKERS):
            stream = self._stream(cell, f"worker-{number}", order[number::ASYNC_WORKERS])
            files.append(folder / f"{stream.worker_id}.toml")
            write_stream(stream, files[-1])
        command = share_dist_command(
            "worker", "run", *files, "--coordinator", address, "--workdir", folder, "--json"
        )
        log = folder / "workers.log"
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        child = Child("the workers", command, log=log, environment=environment)
        try:
            while not child.wait(1.0):
                learnt = log.read_text(errors="replace").count('"task_learnt"')
                tell(learnt, len(order))
        finally:
            child.stop()
        if child.exit_code:
            raise WorkerError(
                f"{cell.name}: the workers ended with {child.exit_code}:\n{child.last_words()}"
            )
        loaded = [WorkerResults.load(folder / path.stem) for path in files]
        return [each for each in loaded if each is not None]

    def _by_late_ones(
        self, cell: Cell, address: str, folder: Path, tell: Callable[[int, int], None]
    ) -> list[WorkerResults]:
        """Four workers in turn, each of whose tasks is learnt in the version of ``LAG`` merges before."""
        order, own = self.suite.order(cell.seed), LoopOptions(resume=True)
        streams = [
            self._stream(cell, f"worker-{number % ASYNC_WORKERS}", [task_id])
            for number, task_id in enumerate(order)
        ]
        for number, (task_id, stream) in enumerate(zip(order, streams, strict=True)):
            with ShareClient(address) as client:
                known = late(client, max(0, number - LAG))
                TaskLoop(stream, self.backbone, known, folder / task_id).run()
                client.pull(min_version=number + 1)
            tell(number + 1, len(order))
        results = []
        for task_id, stream in zip(order, streams, strict=True):
            with ShareClient(address) as client:
                results.append(
                    TaskLoop(stream, self.backbone, client, folder / task_id, own).rescore()
                )
        return results

    def _stream(self, cell: Cell, worker_id: str, task_ids: list[str]) -> TaskStream:
        stream = self.suite.stream
        training = self.suite.training(METHODS[cell.method])
        rate = training.learning_rate if cell.rate is None else cell.rate
        rates = {
            "learning_rate": rate,
            "temporary_learning_rate": rate
            * (training.temporary_learning_rate / training.learning_rate),
        }
        training = training.model_copy(update={"seed": cell.seed, **rates})
        tasks = tuple(self.suite.task(each) for each in task_ids)
        return TaskStream(stream.path, worker_id, stream.model, training, tasks)


@contextmanager
def _coordinator(folder: Path, suite: Suite, method: Method) -> Iterator[str]:
    """A coordinator's process, and its address."""
    port_file = folder / "port"
    command = share_dist_command(
        "coordinator",
        "serve",
        "--store",
        folder / "store",
        "--listen",
        "127.0.0.1:0",
        "--port-file",
        port_file,
        "--num-factors",
        suite.num_factors(method),
        "--oversample",
        suite.settings.oversample,
    )
    child = Child("the coordinator", command, log=folder / "coordinator.log")
    try:
        yield f"127.0.0.1:{wait_for_file(port_file, child, START_SECONDS)}"
    finally:
        child.stop()


def _facts(address: str, suite: Suite) -> dict[str, Any]:
    """What the coordinator says of its versions, and what they cost."""
    with ShareClient(address) as client:
        subspace = client.pull()
        assert subspace is not None, "nothing was held, so something came"
        watch = client.watch(after_version=0)
        versions = []
        for event in watch:
            versions.append(json.loads(json.dumps(jsonable(event))))
            if event.version >= subspace.version:
                break
        watch.close()
        wire_bytes = {task.task_id: task.update_bytes for task in client.tasks()}
    return {
        "versions": versions,
        "wire_bytes": wire_bytes,
        "basis_bytes": basis_bytes(subspace),
        "coefficient_bytes": coefficient_bytes(subspace, suite.stream.training.pseudo_rank),
    }


def _validation(task: TaskResult) -> float:
    assert task.validation is not None, "a task that was learnt was validated"
    return task.validation
