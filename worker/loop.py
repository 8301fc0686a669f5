"""
The loop of one worker: pull, train, push, follow the new version, score its own old tasks again.

```
movies    pull 0   train   push -> pending      (tweets of another worker is merged: 1)
          merged in version 2, lag 1            movies is now said in version 2
author    pull 2   train   push -> merged in 4  movies is scored as the coordinator serves it
```

It never waits for another worker. It takes its ports as arguments and knows
neither gRPC nor Ray; after every step it can be killed, and goes on from its
checkpoints.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from share_dist.adapters import InjectedModel, inject
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import VersionError
from share_dist.wire.records import PulledTask
from worker.backbone import Backbone
from worker.checkpoint import TaskCheckpoint, lesson_digest
from worker.disk import Disk
from worker.exchange import Exchange
from worker.journal import Journal
from worker.learner import Learner
from worker.objective import unpack_head
from worker.ports import Coordinator
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
        merge_patience_seconds: How long to wait for a version that has the
            update that was just pushed, before going on without it.
    """

    compare: bool = False
    resume: bool = False
    merge_patience_seconds: float = 20.0


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
        Learn every task of the stream that is not learnt yet.

        Raises:
            Stopped: It was told to.
            LeaseExpired: Another worker of this name took over.
            TrainingDiverged, StreamError: A task cannot be learnt.
            TransportError: The coordinator was gone for too long.
        """
        with self._registered() as self._exchange, self._pulled() as self._injected:
            self._tell(WorkerEvent.STARTED)
            for index, task in enumerate(self.stream.tasks):
                self._take(index, task)
            self._tell(WorkerEvent.FINISHED)
        return self.results

    def rescore(self) -> WorkerResults:
        """Score every own task under the newest version, where that is not its last score's."""
        with self._registered() as self._exchange, self._pulled() as self._injected:
            self._follow(len(self.stream.tasks), unscored=())
        return self.results

    def _registered(self) -> Exchange:
        fingerprint = self.backbone.fingerprint()
        return Exchange(self.coordinator, self.stream.worker_id, fingerprint, self.emit)

    def _pulled(self) -> InjectedModel:
        return inject(self.backbone.model, self._exchange.pull())

    def _take(self, index: int, task: Task) -> None:
        """Bring one task to where it is pushed and followed, whatever of that is done already."""
        checkpoint = TaskCheckpoint(self.workdir, task.id, lesson_digest(self.stream, task))
        update_id = checkpoint.pushed_update_id()
        if update_id is None:
            update = checkpoint.load_update() or self._learn(task, checkpoint)
            update_id = self._push(update, checkpoint)
        self._exchange.wait_merged(update_id, self.options.merge_patience_seconds, self.should_stop)
        self._follow(index + 1, unscored=(task.id,))

    def _learn(self, task: Task, checkpoint: TaskCheckpoint) -> TaskUpdate:
        def begin() -> TrainingState | None:
            return self._begin(checkpoint)

        return self._learner.learn(task, self._injected, checkpoint, begin)

    def _begin(self, checkpoint: TaskCheckpoint) -> TrainingState | None:
        """Go on in the version of the checkpoint, or begin in the newest."""
        saved = checkpoint.load_state()
        if saved is not None:
            subspace = self._exchange.pull_older(saved.base_version, saved.base_digest)
            if subspace is not None:
                self._injected.use_subspace(subspace)
                return saved.state
        self._injected.use_subspace(self._exchange.pull())
        return None

    def _push(self, update: TaskUpdate, checkpoint: TaskCheckpoint) -> str:
        """Push until the coordinator has it, and note so."""
        if not update.base_digest:
            self.emit(
                WorkerEvent.BASE_UNCHECKED,
                task_id=update.task_id,
                base_version=update.base_version,
            )
        try:
            receipt = self._exchange.push(update)
        except VersionError as error:
            self.emit(
                WorkerEvent.BASE_REFUSED,
                task_id=update.task_id,
                base_version=update.base_version,
                reason=error.message,
            )
            update = self._in_newest_version(update, checkpoint)
            receipt = self._exchange.push(update)
        self._disk.insist(lambda: checkpoint.save_pushed(update.update_id))
        self._journal.amend(
            update.task_id,
            update_id=update.update_id,
            base_version=update.base_version,
            state=receipt.state.value,
        )
        self.emit(
            WorkerEvent.UPDATE_PUSHED,
            task_id=update.task_id,
            update_id=update.update_id,
            base_version=update.base_version,
            state=receipt.state.value,
        )
        return update.update_id

    def _in_newest_version(self, update: TaskUpdate, checkpoint: TaskCheckpoint) -> TaskUpdate:
        """
        Say a task in the newest version, under a new id, as its own base version is not there.

        A worker that was started anew does not hold the task, and learns it again.
        """
        task = next(each for each in self.stream.tasks if each.id == update.task_id)
        if update.task_id not in self._injected.task_ids:
            checkpoint.discard()
            return self._learn(task, checkpoint)
        self._injected.use_subspace(self._exchange.pull())
        rebased = replace(
            update,
            update_id=uuid.uuid4().hex,
            base_version=self._injected.subspace.version,
            base_digest=self._injected.subspace.digest,
            layers=self._injected.layer_updates(update.task_id),
        )
        self._disk.insist(lambda: checkpoint.save_update(rebased))
        return rebased

    def _follow(self, num_learnt: int, unscored: Sequence[str]) -> None:
        """Take the newest version, with own tasks as the coordinator serves them, and score these."""
        merged = self._exchange.merged_tasks(self._own_ids())
        pulled = self._exchange.pull_tasks(sorted(merged), self._injected.subspace)
        subspace = next((each.subspace for each in pulled.values()), None)
        self._injected.use_subspace(
            subspace or self._exchange.pull(),
            {task_id: each.coefficients for task_id, each in pulled.items()},
        )
        self.emit(
            WorkerEvent.VERSION_FOLLOWED,
            version=self._injected.subspace.version,
            task_ids=sorted(pulled),
        )
        for task_id, each in pulled.items():
            self._journal.note_merged(each.summary)
            if task_id not in unscored:
                self._score_again(each, num_learnt)
        self._injected.activate(None)

    def _own_ids(self) -> set[str]:
        return {task.id for task in self.stream.tasks} & self._journal.learnt_ids

    def _score_again(self, pulled: PulledTask, num_learnt: int) -> None:
        task_id, version = pulled.summary.task_id, pulled.subspace.version
        if self._journal.of(task_id).final_version == version:
            return
        task = next(each for each in self.stream.tasks if each.id == task_id)
        prepared = self._learner.prepare(task)
        self._injected.activate(task_id)
        head = unpack_head(pulled.head, self.backbone)
        scores = self._learner.evaluate(prepared, head)
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

    def _newer(self, version: int) -> Subspace | None:
        return self._exchange.newer(version)

    def _before_step(self) -> None:
        if self.should_stop():
            self._tell(WorkerEvent.STOPPED)
            raise Stopped
        self._exchange.check()

    def _tell(self, event: WorkerEvent) -> None:
        self.emit(
            event,
            num_tasks=len(self.stream.tasks),
            version=self._injected.subspace.version,
            device=str(self.backbone.device),
            num_threads=torch.get_num_threads(),
        )
