"""
The loop of one worker: learn task after task, and score the old ones under the newest version.

```
movies    learn in 0        put into the outbox
tweets    learn in 0        movies is pushed and merged: 1 (of another worker: 2)
          ... in 2          an epoch has ended, and 2 was at hand
author    movies is scored as 2 has it; learn in 2 ...
```

It waits neither for another worker nor for the coordinator. It takes its ports as arguments and
knows neither gRPC nor Ray; after every step it can be killed, and goes on from its checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from share_dist.adapters import InjectedModel, inject
from share_dist.core.values import Subspace
from share_dist.wire.records import PulledTask
from worker.backbone import Backbone
from worker.checkpoint import TaskCheckpoint, lesson_digest
from worker.disk import Disk
from worker.exchange import Exchange
from worker.journal import Journal
from worker.learner import Learner
from worker.objective import unpack_head
from worker.ports import Coordinator
from worker.prefetch import Edition
from worker.progress import Emit, WorkerEvent, silent
from worker.results import WorkerResults
from worker.rows import DrawnRows
from worker.sources import load_rows
from worker.stream import Task, TaskStream
from worker.training_state import TrainingState


class Stopped(Exception):  # an order that was carried out, not an error
    """The worker was told to stop; what it has done is in its checkpoints."""


@dataclass(frozen=True)
class LoopOptions:
    """
    How a loop behaves beside what the stream says.

    Args:
        compare: Also train each task's own LoRA.
        resume: Go on from earlier work in the folder; without it, earlier work is an error.
        in_sequence: Begin each task in a version that holds all earlier ones, and wait for it: to
            measure what tasks learn from each other, whatever that costs in time.
    """

    compare: bool = False
    resume: bool = False
    in_sequence: bool = False


@dataclass
class TaskLoop:
    """
    One worker's way through its stream.

    Args:
        stream: What it learns.
        backbone: The frozen model, whose adapted layers are the stream's.
        coordinator: Whom it pulls from and pushes to.
        workdir: Its own folder.
        options: How it behaves.
        emit: Told what happens; see :class:`worker.progress.WorkerEvent`.
        should_stop: Asked at every step.
        load: Brings the rows of a task.
    """

    stream: TaskStream
    backbone: Backbone
    coordinator: Coordinator
    workdir: Path
    options: LoopOptions = field(default_factory=LoopOptions)
    emit: Emit = silent
    should_stop: Callable[[], bool] = lambda: False
    load: Callable[[Task, Path], DrawnRows] = load_rows

    def __post_init__(self) -> None:
        self._disk = Disk(self.workdir, self.emit, self.should_stop)
        self._journal = Journal(
            self.stream, self.workdir, self.emit, self._disk, resume=self.options.resume
        )
        self._learner = Learner(
            self.stream,
            self.backbone,
            self._journal,
            self._disk,
            self.load,
            self._before_step,
            self._newer,
            self.options.compare,
            lambda: self._exchange.newest_version,
        )

    @property
    def results(self) -> WorkerResults:
        """What became of the tasks so far."""
        return self._journal.results

    def run(self) -> WorkerResults:
        """
        Learn every task of the stream that is not learnt yet, and push what is learnt.

        Raises:
            Stopped: It was told to.
            LeaseExpired: Another worker of this name took over.
            TrainingDiverged, StreamError: A task cannot be learnt.
            CoordinatorUnreachable: No coordinator has ever answered.
            ShareError: The coordinator will not have an update, or this worker.
        """
        with self._joined() as self._exchange, self._injection() as self._injected:
            self._tell(WorkerEvent.STARTED)
            for index, task in enumerate(self.stream.tasks):
                self._follow(self._next_edition(), index)
                self._take(task)
            self._exchange.outbox.wait_empty(self._exchange.check)
            if self.stream.training.refine_epochs:
                self._refine(self._exchange.settle())
            self._tell(WorkerEvent.FINISHED)
        return self.results

    def rescore(self) -> WorkerResults:
        """
        Score every own task under the newest version, where that is not its last score's.

        Raises:
            Stopped: It was told to.
            ShareError: As ``run`` does.
        """
        with self._joined() as self._exchange, self._injection() as self._injected:
            for checkpoint in map(self._latest, self.stream.tasks):
                if checkpoint.has_update:
                    self._exchange.outbox.put(checkpoint)
            self._follow(self._exchange.settle(), len(self.stream.tasks))
        return self.results

    def _joined(self) -> Exchange:
        return Exchange(
            self.coordinator,
            self.backbone.fingerprint(),
            self._journal,
            self._disk,
            self.workdir,
            self._stop_if_told,
            is_resumed=self.options.resume,
        )

    def _injection(self) -> InjectedModel:
        return inject(self.backbone.model, self._exchange.start)

    def _checkpoint(self, task: Task) -> TaskCheckpoint:
        return TaskCheckpoint(self.workdir, task.id, lesson_digest(self.stream, task))

    def _refinement(self, task: Task) -> TaskCheckpoint:
        return TaskCheckpoint(self.workdir / "refined", task.id, lesson_digest(self.stream, task))

    def _latest(self, task: Task) -> TaskCheckpoint:
        """The checkpoint whose update stands for the task."""
        refinement = self._refinement(task)
        return refinement if refinement.has_update else self._checkpoint(task)

    def _next_edition(self) -> Edition:
        return self._exchange.settle() if self.options.in_sequence else self._exchange.newest()

    def _take(self, task: Task) -> None:
        """Bring one task into the outbox, whatever of that is done already."""
        checkpoint = self._checkpoint(task)
        if not checkpoint.has_update:
            self._learner.learn(task, self._injected, checkpoint, lambda: self._begin(checkpoint))
            self._injected.drop_task(task.id)
        self._exchange.outbox.put(self._latest(task))

    def _refine(self, edition: Edition) -> None:
        """Train every merged task once more in a version that holds all of them."""
        self._injected.use_subspace(edition.subspace)
        for task in self.stream.tasks:
            refinement, pulled = self._refinement(task), edition.tasks.get(task.id)
            if refinement.has_update or pulled is None:
                continue
            if self._learner.refine(task, self._injected, pulled, refinement):
                self._exchange.outbox.put(refinement)
            self._injected.drop_task(task.id)
        self._exchange.outbox.wait_empty(self._exchange.check)

    def _begin(self, checkpoint: TaskCheckpoint) -> TrainingState | None:
        """Go on in the version of the checkpoint, or begin in the newest."""
        saved = checkpoint.load_state()
        if saved is not None:
            subspace = self._exchange.older(saved.base_version, saved.base_digest)
            if subspace is not None:
                self._injected.use_subspace(subspace)
                return saved.state
        self._injected.use_subspace(self._exchange.newest().subspace)
        return None

    def _newer(self) -> Subspace | None:
        newest = self._exchange.newest().subspace
        return None if _is_same(newest, self._injected.subspace) else newest

    def _follow(self, edition: Edition, num_learnt: int) -> None:
        """Take up a version, and score own tasks as the coordinator serves them in it."""
        self._injected.use_subspace(edition.subspace)
        self.emit(
            WorkerEvent.VERSION_FOLLOWED,
            version=edition.subspace.version,
            task_ids=sorted(edition.tasks),
        )
        for pulled in edition.tasks.values():
            self._journal.note_merged(pulled.summary)
            self._score_again(pulled, num_learnt)

    def _score_again(self, pulled: PulledTask, num_learnt: int) -> None:
        task_id, version = pulled.summary.task_id, pulled.subspace.version
        if self._journal.of(task_id).final_version == version:
            return
        task = next(each for each in self.stream.tasks if each.id == task_id)
        prepared = self._learner.prepare(task)
        self._injected.set_coefficients(task_id, pulled.coefficients)
        self._injected.activate(task_id)
        scores = self._learner.evaluate(prepared, unpack_head(pulled.head, self.backbone))
        self._injected.drop_task(task_id)
        self._journal.note_scored(task_id, version, num_learnt, scores)
        self.emit(
            WorkerEvent.TASK_RESCORED,
            task_id=task_id,
            version=version,
            metric=scores.metric,
            score=scores.main,
            lag=pulled.summary.lag,
            drift=pulled.summary.cumulative_drift,
        )

    def _before_step(self) -> None:
        self._exchange.check()

    def _stop_if_told(self) -> None:
        if self.should_stop():
            self.emit(WorkerEvent.STOPPED)
            raise Stopped

    def _tell(self, event: WorkerEvent) -> None:
        self.emit(
            event,
            num_tasks=len(self.stream.tasks),
            version=self._injected.subspace.version,
            device=str(self.backbone.device),
            num_threads=torch.get_num_threads(),
        )


def _is_same(one: Subspace, other: Subspace) -> bool:
    """Whether two versions are the same; by number alone where a digest is not known."""
    is_other = "" not in {one.digest, other.digest} and one.digest != other.digest
    return one.version == other.version and not is_other
