"""The learner: from the description of one task to the update that says what was learnt."""

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import nn

from share_dist.adapters import InjectedModel
from share_dist.core.metrics import lora_bytes
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import TrainingDiverged
from share_dist.wire.records import PulledTask
from worker.backbone import Backbone
from worker.baselines import LORA_RANK, lora_baseline
from worker.beginning import starting_gradients
from worker.checkpoint import TaskCheckpoint
from worker.disk import Disk
from worker.evaluate import evaluate
from worker.journal import Due, Journal, Laps
from worker.moving import Move, moved
from worker.objective import Scores, pack_head, unpack_head
from worker.prepared import PreparedTask, frozen_baseline, prepare
from worker.progress import Emit, WorkerEvent
from worker.restating import factors_of
from worker.results import TaskResult
from worker.rows import DrawnRows
from worker.stream import Task, TaskStream
from worker.trainer import Hooks, Lesson, StepReport, train, trainee_of
from worker.training_state import TrainingState

PROGRESS_EVERY = 5
"""Steps between two progress events, at most."""

PROGRESS_SECONDS = 5.0
"""Where steps are slow, a progress event comes with the first step after so long."""


@dataclass
class Learner:
    """
    Learns tasks of one stream on one frozen model.

    Args:
        stream: Whose tasks.
        backbone: The frozen model.
        journal: Where results are noted.
        disk: Writes checkpoints.
        load: Brings the rows of a task.
        before_step: Called before every step; raises to stop training there.
        newer: Asked between two epochs for another version than the one held; never waits.
        compare: Also train each task's own LoRA.
        newest: Tells the newest version that is known of.
    """

    stream: TaskStream
    backbone: Backbone
    journal: Journal
    disk: Disk
    load: Callable[[Task, Path], DrawnRows]
    before_step: Callable[[], None]
    newer: Callable[[], Subspace | None] = lambda: None
    compare: bool = False
    newest: Callable[[], int] = lambda: 0
    _prepared: dict[str, PreparedTask] = field(default_factory=dict)

    def prepare(self, task: Task) -> PreparedTask:
        """A task's rows, encoded once."""
        if task.id not in self._prepared:
            rows = self.load(task, self.stream.folder)
            reading = self.backbone.reading(task.type)
            self._prepared[task.id] = prepare(task, rows, reading, self.stream.training)
        return self._prepared[task.id]

    def learn(
        self,
        task: Task,
        injected: InjectedModel,
        checkpoint: TaskCheckpoint,
        begin: Callable[[], TrainingState | None],
    ) -> None:
        """
        Learn a task, and keep its update in the checkpoint.

        Args:
            task: Which.
            injected: The backbone with the subspace in it.
            checkpoint: Where each epoch is kept.
            begin: Puts the version that the task is learnt in into ``injected``, and
                tells where training goes on. Called as late as can be, so that
                the version is the newest.
        """
        laps = Laps()
        prepared = self.prepare(task)
        laps.end("load")
        head = self._baselines(prepared, injected)
        laps.end("baselines")
        resume = begin()
        self._hold(prepared, injected, head, resume)
        self._tell_started(prepared, injected, resume)
        state = self._train(prepared, injected, head, checkpoint, resume)
        laps.end("train")
        scores = self.evaluate(prepared, head)
        laps.end("score")
        update = self._make_update(prepared, injected, head, scores)
        self.journal.note_learnt(update, scores, state, laps.seconds)
        self._keep(update, injected, checkpoint)
        self.journal.emit(
            WorkerEvent.TASK_LEARNT,
            task_id=task.id,
            metric=scores.metric,
            score=scores.main,
            best_epoch=state.best_epoch,
        )

    def refine(
        self, task: Task, injected: InjectedModel, pulled: PulledTask, checkpoint: TaskCheckpoint
    ) -> bool:
        """
        Train a merged task's coefficients and head once more, and keep the update unless validation rows lose.

        Args:
            task: Which.
            injected: The backbone with the version of ``pulled`` in it.
            pulled: The task as it was merged.
            checkpoint: Where the update is kept.

        Returns:
            Whether there is one.

        Source:
            The fine-tuning after a merge of Share, arXiv 2602.06043.
        """
        prepared, head = self.prepare(task), unpack_head(pulled.head, self.backbone)
        injected.set_coefficients(task.id, pulled.coefficients)
        injected.activate(task.id)
        settings = self.stream.training.model_copy(
            update={"epochs": self.stream.training.refine_epochs}
        )
        lesson = replace(self._lesson(prepared), settings=settings)
        before = lesson.score(head)
        hooks = Hooks(before_step=self.before_step, on_step=self._pace(injected))
        try:
            after = train(
                lesson, trainee_of(injected, task.id, settings), head, hooks=hooks
            ).best_score
        except TrainingDiverged:  # the task is merged as it was, and stays so
            after = -math.inf
        is_pushed = after >= before
        if is_pushed:
            scores = self.evaluate(prepared, head)
            update = self._make_update(prepared, injected, head, scores)
            self.journal.note_refined(update)
            self._keep(update, injected, checkpoint)
        self.journal.emit(
            WorkerEvent.TASK_REFINED,
            task_id=task.id,
            version=injected.subspace.version,
            metric=prepared.simplest.metric,
            before=before,
            after=after if math.isfinite(after) else None,
            is_pushed=is_pushed,
        )
        return is_pushed

    def _keep(
        self, update: TaskUpdate, injected: InjectedModel, checkpoint: TaskCheckpoint
    ) -> None:
        """Let an update outlast this process, and its base version."""
        self.disk.insist(lambda: checkpoint.save_factors(factors_of(update, injected.subspace)))
        self.disk.insist(lambda: checkpoint.save_update(update))

    def _pace(self, injected: InjectedModel) -> "_Pace":
        return _Pace(self.journal.emit, injected, self.newest)

    def evaluate(self, prepared: PreparedTask, head: nn.Module) -> Scores:
        """Score a head on a task's test rows, with whatever is active in the backbone."""
        reading = self.backbone.reading(prepared.task.type)
        return evaluate(reading, prepared.objective, head, prepared.test)

    def _baselines(self, prepared: PreparedTask, injected: InjectedModel) -> nn.Module:
        """Score what the task is measured against; the head that learning starts from."""
        injected.activate(None)
        frozen = frozen_baseline(prepared, self.backbone.reading(prepared.task.type))
        self.journal.emit(
            WorkerEvent.BASELINE_SCORED,
            task_id=prepared.task.id,
            metric=frozen.scores.metric,
            majority=prepared.simplest.main,
            frozen=frozen.scores.main,
        )
        self.journal.put(self._first_result(prepared, frozen.scores))
        if self.compare:
            self._compare(prepared, frozen.start.head)
        return frozen.start.head

    def _compare(self, prepared: PreparedTask, start: nn.Module) -> None:
        hooks = Hooks(before_step=self.before_step)
        lora = lora_baseline(self._lesson(prepared), start, prepared.test, self.stream.model, hooks)
        self.journal.amend(prepared.task.id, lora=lora.score, lora_learning_rate=lora.learning_rate)
        self.journal.emit(
            WorkerEvent.LORA_SCORED,
            task_id=prepared.task.id,
            metric=prepared.simplest.metric,
            score=lora.score,
            learning_rate=lora.learning_rate,
        )

    def _hold(
        self,
        prepared: PreparedTask,
        injected: InjectedModel,
        head: nn.Module,
        resume: TrainingState | None,
    ) -> None:
        training, task_id = self.stream.training, prepared.task.id
        if resume is None:
            injected.add_task(
                task_id,
                pseudo_rank=training.pseudo_rank,
                num_temporary=training.num_temporary,
                seed=training.seed,
                gradients=starting_gradients(
                    injected, self._lesson(prepared), head, self.before_step
                ),
                reach=training.reach,
            )
        else:
            injected.restore_task(task_id, resume.adapter)
        injected.activate(task_id)

    def _train(
        self,
        prepared: PreparedTask,
        injected: InjectedModel,
        head: nn.Module,
        checkpoint: TaskCheckpoint,
        resume: TrainingState | None,
    ) -> TrainingState:
        due = Due(60 * self.stream.training.checkpoint_minutes)

        def save(state: TrainingState) -> None:
            base = injected.subspace
            self.disk.keep(lambda: checkpoint.save_state(state, base.version, base.digest))
            due.begin()

        hooks = Hooks(
            before_step=self.before_step,
            on_step=self._pace(injected),
            wants_state=due.is_over,
            on_state=save,
            move=lambda state: self._move(prepared.task, injected, state),
            on_memory=lambda report: self.journal.emit(WorkerEvent.MEMORY_SHORT, **asdict(report)),
            on_rollback=lambda report: self.journal.emit(WorkerEvent.ROLLED_BACK, **asdict(report)),
        )
        trainee = trainee_of(injected, prepared.task.id, self.stream.training)
        return train(self._lesson(prepared), trainee, head, resume=resume, hooks=hooks)

    def _move(self, task: Task, injected: InjectedModel, state: TrainingState) -> Move | None:
        """Go on in the newest version that is at hand."""
        old = injected.subspace
        new = self.newer()
        if new is None:
            return None
        injected.use_subspace(new)
        self.journal.emit(
            WorkerEvent.MOVED,
            task_id=task.id,
            base_version=old.version,
            version=new.version,
            epochs_done=state.epochs_done,
        )
        trainee = trainee_of(injected, task.id, self.stream.training)
        return Move(trainee, moved(state, old, injected.subspace))

    def _lesson(self, prepared: PreparedTask) -> Lesson:
        return Lesson(
            prepared.task.id,
            self.backbone.reading(prepared.task.type),
            prepared.objective,
            prepared.fit,
            prepared.validation,
            self.stream.training,
            self.stream.training.seed,
        )

    def _make_update(
        self,
        prepared: PreparedTask,
        injected: InjectedModel,
        head: nn.Module,
        scores: Scores,
    ) -> TaskUpdate:
        task = prepared.task
        shared_names = prepared.label_names if self.stream.training.share_label_names else ()
        return TaskUpdate(
            update_id=uuid.uuid4().hex,
            task_id=task.id,
            base_version=injected.subspace.version,
            base_digest=injected.subspace.digest,
            layers=injected.layer_updates(task.id),
            head=pack_head(head, task.type, shared_names),
            num_samples=prepared.num_train,
            scores=scores.to_dict(),
        )

    def _tell_started(
        self, prepared: PreparedTask, injected: InjectedModel, resume: TrainingState | None
    ) -> None:
        self.journal.emit(
            WorkerEvent.TASK_STARTED,
            task_id=prepared.task.id,
            task_index=self.stream.tasks.index(prepared.task) + 1,
            num_tasks=len(self.stream.tasks),
            base_version=injected.subspace.version,
            num_train=prepared.num_train,
            num_test=len(prepared.test),
            resumed_epochs=resume.epochs_done if resume else 0,
            resumed_batches=resume.batches_done if resume else 0,
        )

    def _first_result(self, prepared: PreparedTask, frozen: Scores) -> TaskResult:
        return TaskResult(
            task_id=prepared.task.id,
            task_type=prepared.task.type,
            num_labels=prepared.num_labels,
            num_train=prepared.num_train,
            num_test=len(prepared.test),
            num_duplicates=prepared.num_duplicates,
            row_seed=prepared.task.seed,
            training_seed=self.stream.training.seed,
            metric=frozen.metric,
            majority=prepared.simplest.main,
            majority_scores=prepared.simplest.to_dict(),
            frozen=frozen.main,
            frozen_scores=frozen.to_dict(),
            lora_bytes=lora_bytes(self.backbone.shapes, LORA_RANK),
        )


class _Pace:
    """
    Tells of the first step of a task, then of some, and of the last, with what they take.

    Args:
        emit: Told.
        injected: Where it is learnt, and in which version.
        newest: Tells the newest version that is known of.
    """

    def __init__(self, emit: Emit, injected: InjectedModel, newest: Callable[[], int]) -> None:
        self._emit = emit
        self._injected = injected
        self._newest = newest
        self._begun = time.monotonic()
        self._quiet = Due(PROGRESS_SECONDS)
        self._steps = 0
        self._samples = 0

    def __call__(self, report: StepReport) -> None:
        self._steps += 1
        self._samples += report.num_rows
        is_last = report.step == report.num_steps
        if (
            self._steps > 1
            and report.step % PROGRESS_EVERY
            and not (is_last or self._quiet.is_over())
        ):
            return
        self._quiet.begin()
        self._tell(report, (time.monotonic() - self._begun) / self._steps)

    def _tell(self, report: StepReport, seconds_per_step: float) -> None:
        version = self._injected.subspace.version
        self._emit(
            WorkerEvent.TASK_PROGRESSED,
            task_id=report.task_id,
            step=report.step,
            num_steps=report.num_steps,
            loss=report.loss,
            version=version,
            lag=max(0, self._newest() - version),
            steps=self._steps,
            samples=self._samples,
            seconds_per_step=seconds_per_step,
            eta_seconds=seconds_per_step * (report.num_steps - report.step),
        )
