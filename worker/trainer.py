"""
The trainer: learn one task while the model stays frozen.

It knows parameters, rows and an objective, not what the parameters mean: the same
loop trains coefficients with temporary factors and a plain LoRA to compare
with. Its whole state is handed out after each epoch and whenever somebody wants
it, so that a worker that was killed goes on from there and computes the same as
if it had not been.

```
step 0 .. 27   state 27 is kept
step 41        the memory does not suffice: half as many rows at once, the same gradient
step 52        the loss is nan: back to state 27, a quarter of the learning rates
step 27 ..     ... and on
```
"""

import gc
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from share_dist.adapters import InjectedModel
from share_dist.errors import TrainingDiverged, WorkerError
from worker.backbone import Backbone, grouped_batches
from worker.moving import Move
from worker.objective import EncodedRows, Objective
from worker.optimizer import Optimizer, Trainee
from worker.stream import TrainingSettings
from worker.training_state import TrainingState, generator_states, set_generator_states

RATE_LEFT = 0.25
"""Share of the learning rates that a roll-back leaves."""


def trainee_of(injected: InjectedModel, task_id: str, settings: TrainingSettings) -> Trainee:
    """Coefficients and temporary factors of a task, each with its own learning rate."""
    parameters = injected.named_trainable_parameters(task_id)
    return Trainee(
        parameters,
        {
            name: settings.temporary_learning_rate
            if name.endswith(".temporary")
            else settings.learning_rate
            for name in parameters
        },
    )


@dataclass(frozen=True)
class Lesson:
    """
    What is to be learnt.

    Args:
        task_id: For messages.
        backbone: The frozen model; what is trained is already active in it.
        objective: What the head computes and what is minimised.
        fit: Rows to learn from.
        validation: Training rows set aside to choose the epoch by.
        settings: How to learn.
        seed: Of batches and dropout.
    """

    task_id: str
    backbone: Backbone
    objective: Objective
    fit: EncodedRows
    validation: EncodedRows
    settings: TrainingSettings
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over ``fit``."""
        return math.ceil(len(self.fit) / self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        """Batches in all."""
        return self.settings.epochs * self.steps_per_epoch

    def score(self, head: nn.Module) -> float:
        """How well a head, on what is active in the backbone, does on the validation rows."""
        features = self.backbone.features(self.validation.encoded)
        return self.objective.score(head, features, self.validation.labels)


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where training is, after a step of ``num_rows``."""

    task_id: str
    step: int
    num_steps: int
    loss: float
    num_rows: int


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The device's memory did not suffice at ``step``: ``rows_at_once`` go through the model from now on."""

    task_id: str
    step: int
    rows_at_once: int


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """
    A number was not finite, and training went back.

    Args:
        task_id: Which task.
        step: Where that was.
        back_to_step: From which it goes on.
        rate_share: What is left of the learning rates.
        rollbacks: How many there were, this one included.
    """

    task_id: str
    step: int
    back_to_step: int
    rate_share: float
    rollbacks: int


@dataclass(frozen=True)
class Hooks:
    """
    Whom training asks and tells what; by default nobody.

    Args:
        before_step: Called before every step; raises to end training there, with its state kept.
        penalty: Asked at every step for what is added to its loss; None: nothing.
        on_step: Told of every step.
        wants_state: Asked after every step whether the state shall be kept.
        on_state: Told the state, when it was wanted, after every epoch and after a move.
        move: Asked after every epoch but the last where to go on; None: where it is.
        on_memory: Told that fewer rows go through the model at once.
        on_rollback: Told that training went back.
    """

    before_step: Callable[[], None] = field(default=lambda: None)
    penalty: Callable[[], Tensor | None] = field(default=lambda: None)
    on_step: Callable[[StepReport], None] = field(default=lambda _: None)
    wants_state: Callable[[], bool] = field(default=lambda: False)
    on_state: Callable[[TrainingState], None] = field(default=lambda _: None)
    move: Callable[[TrainingState], Move | None] = field(default=lambda _: None)
    on_memory: Callable[[MemoryReport], None] = field(default=lambda _: None)
    on_rollback: Callable[[RollbackReport], None] = field(default=lambda _: None)


def train(
    lesson: Lesson,
    trainee: Trainee,
    head: nn.Module,
    *,
    resume: TrainingState | None = None,
    hooks: Hooks | None = None,
) -> TrainingState:
    """
    Learn, and leave parameters and head as they were after the epoch that is kept.

    Args:
        lesson: What is to be learnt.
        trainee: Parameters to change in place.
        head: The task's output layer; changed in place.
        resume: Go on from here instead of from the present values.
        hooks: Asked and told.

    Returns:
        The state after the last epoch.

    Raises:
        TrainingDiverged: The loss or a gradient stopped being finite, also after
            as many roll-backs as the settings allow.
        WorkerError: The device's memory does not suffice for one row.
    """
    backbone, was_training = lesson.backbone, lesson.backbone.model.training
    run = _Run(lesson, trainee, head, hooks or Hooks())
    state = run.begin(resume)
    try:
        # dropout draws from torch's global generator: borrow it, and give it back as it was
        with torch.random.fork_rng():
            while not _is_finished(state, lesson.settings):
                backbone.model.train()
                state = run.epoch(state)
                if not _is_finished(state, lesson.settings):
                    state = run.move(state)
    finally:
        backbone.model.train(was_training)
    run.optimizer.load(state.best_tensors)
    return state


def _is_finished(state: TrainingState, settings: TrainingSettings) -> bool:
    is_stale = settings.patience is not None and state.epochs_since_best >= settings.patience
    return state.epochs_done == settings.epochs or (is_stale and state.batches_done == 0)


class _NotFinite(Exception):  # met and answered in this module
    def __init__(self, step: int, rows: list[int], loss: float) -> None:
        self.step = step
        self.rows = rows
        self.loss = loss


class _Run:
    """One training, from its first state to its last."""

    def __init__(self, lesson: Lesson, trainee: Trainee, head: nn.Module, hooks: Hooks) -> None:
        self._lesson = lesson
        self._head = head
        self._hooks = hooks
        self._device = lesson.backbone.device
        settings = lesson.settings
        self._rows_at_once = math.ceil(settings.batch_size / settings.accumulate)
        self.optimizer = self._optimizer_of(trainee)

    def begin(self, resume: TrainingState | None) -> TrainingState:
        """Where training begins."""
        self._good = TrainingState(0, self.optimizer.tensors(), {}, -1, -math.inf, {})
        if resume is not None:
            self._rows_at_once = resume.rows_at_once or self._rows_at_once
            self._return_to(resume)
        return self._good

    def epoch(self, state: TrainingState) -> TrainingState:
        """Learn to the end of the pass under way, or go back to the last good state."""
        try:
            self._learn(state)
        except _NotFinite as found:
            self._roll_back(found)
            return self._good
        self._keep(self._after_epoch(self._good))
        return self._good

    def move(self, state: TrainingState) -> TrainingState:
        """Go on in another version where there is one, between two passes."""
        if state.batches_done or (move := self._hooks.move(state)) is None:
            return state
        self.optimizer = self._optimizer_of(move.trainee)
        self._return_to(move.state)
        self._keep(move.state)
        return self._good

    def _optimizer_of(self, trainee: Trainee) -> Optimizer:
        lesson = self._lesson
        return Optimizer(trainee, self._head, lesson.settings, lesson.num_steps, self._device)

    def _keep(self, state: TrainingState) -> None:
        self._good = state
        self._hooks.on_state(state)

    def _return_to(self, state: TrainingState) -> None:
        self._good = state
        self.optimizer.restore(state.tensors, state.optimizer)
        self.optimizer.rate_share = state.rate_share

    def _learn(self, state: TrainingState) -> None:
        lesson = self._lesson
        first = state.epochs_done * lesson.steps_per_epoch
        batches = _batches(lesson, state.epochs_done)
        if state.batches_done:
            set_generator_states(state.generators, self._device)
        for done, rows in enumerate(batches[state.batches_done :], start=state.batches_done + 1):
            self._before_step(state, done - 1)
            step = first + done - 1
            loss = self._step(rows, step)
            self._hooks.on_step(
                StepReport(lesson.task_id, step + 1, lesson.num_steps, loss, len(rows))
            )
            if self._hooks.wants_state() and done < len(batches):
                self._keep(self._state(state, done))

    def _before_step(self, state: TrainingState, batches_done: int) -> None:
        """Let training be ended here, with what it has learnt kept."""
        try:
            self._hooks.before_step()
        except Exception:
            if batches_done > self._good.batches_done:
                self._keep(self._state(state, batches_done))
            raise

    def _state(self, before: TrainingState, batches_done: int) -> TrainingState:
        """The state in the middle of a pass."""
        return replace(
            before,
            batches_done=batches_done,
            tensors=self.optimizer.tensors(),
            optimizer=self.optimizer.memory(),
            generators=generator_states(self._device),
            rows_at_once=self._rows_at_once,
        )

    def _step(self, rows: list[int], step: int) -> float:
        generators = generator_states(self._device)
        while True:
            try:
                return self._try_step(rows, step)
            except torch.OutOfMemoryError as error:
                self._halve(error, step, len(rows))
            # only out here does nothing refer to the tensors of the failed try
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            set_generator_states(generators, self._device)

    def _try_step(self, rows: list[int], step: int) -> float:
        lesson, at_once = self._lesson, self._rows_at_once
        mass = lesson.objective.mass(lesson.fit.take(rows).labels)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        for at in range(0, len(rows), at_once):
            loss = self._loss(rows[at : at + at_once]) / mass
            self.optimizer.backward(loss)
            total += loss.detach()
        if (penalty := self._hooks.penalty()) is not None:
            self.optimizer.backward(penalty)
            total += penalty.detach()
        if not self.optimizer.step(step, total):
            raise _NotFinite(step, rows, float(total))
        return float(total)

    def _loss(self, rows: list[int]) -> Tensor:
        batch = self._lesson.fit.take(rows)
        features = self._lesson.backbone.pooled(batch.encoded)
        labels = batch.labels.to(features.device)
        return self._lesson.objective.loss(self._head, features, labels)

    def _halve(self, error: torch.OutOfMemoryError, step: int, num_rows: int) -> None:
        task_id, at_once = self._lesson.task_id, min(self._rows_at_once, num_rows)
        if at_once == 1:
            raise WorkerError(
                f"task {task_id!r}: the memory of {self._device} does not suffice for a single row at "
                f"step {step} ({error}): set gradient_checkpointing = true or precision = 'bf16', lower "
                "max_tokens, or free memory that other processes hold"
            ) from error
        self._rows_at_once = at_once // 2
        self._hooks.on_memory(MemoryReport(task_id, step, self._rows_at_once))

    def _roll_back(self, found: _NotFinite) -> None:
        good, settings = self._good, self._lesson.settings
        self._return_to(
            replace(good, rate_share=good.rate_share * RATE_LEFT, rollbacks=good.rollbacks + 1)
        )
        back_to = good.epochs_done * self._lesson.steps_per_epoch + good.batches_done
        if good.rollbacks == settings.rollbacks:
            raise self._diverged(found, back_to)
        self._hooks.on_rollback(
            RollbackReport(
                self._lesson.task_id,
                found.step,
                back_to,
                self._good.rate_share,
                self._good.rollbacks,
            )
        )

    def _diverged(self, found: _NotFinite, back_to: int) -> TrainingDiverged:
        lesson, guilty = self._lesson, self._guilty_rows(found.rows)
        tried = f", also after {lesson.settings.rollbacks} roll-backs to step {back_to} with ever lower learning rates"
        advice = "lower learning_rate and head_learning_rate in the stream file"
        if lesson.settings.precision != "fp32":
            advice += ", or set precision = 'fp32'"
        if guilty:
            numbers = ", ".join(str(each) for each in guilty)
            advice = f"of the {len(lesson.fit)} rows that it learns from, these by themselves give no finite loss: {numbers} (counted from 0); correct or remove them"
        return TrainingDiverged(
            f"task {lesson.task_id!r}: loss {found.loss} or its gradient is not finite at step "
            f"{found.step} of {lesson.num_steps}{tried if lesson.settings.rollbacks else ''}: {advice}",
            task_id=lesson.task_id,
            step=found.step,
        )

    @torch.no_grad()
    def _guilty_rows(self, rows: list[int]) -> list[int]:
        """Rows of a batch that have no finite loss by themselves; none where all have none."""
        self._lesson.backbone.model.eval()
        guilty = [row for row in sorted(rows) if not torch.isfinite(self._loss([row]))]
        return guilty if len(guilty) < len(rows) else []

    def _after_epoch(self, before: TrainingState) -> TrainingState:
        lesson = self._lesson
        score = lesson.score(self._head)
        has_risen = score > before.best_score
        after = replace(
            before,
            epochs_done=before.epochs_done + 1,
            batches_done=0,
            generators={},
            tensors=self.optimizer.tensors(),
            optimizer=self.optimizer.memory(),
            best_score=max(score, before.best_score),
            epochs_since_best=0 if has_risen else before.epochs_since_best + 1,
            rows_at_once=self._rows_at_once,
        )
        spread = lesson.objective.standard_error(after.best_score, lesson.validation.labels)
        if score < after.best_score - spread:
            return after
        # on few rows the epoch that looks best is mostly the luckiest: a later one within its error is kept
        return replace(after, best_epoch=before.epochs_done, best_tensors=after.tensors)


def _batches(lesson: Lesson, epoch: int) -> list[list[int]]:
    """The rows of each step of one epoch; what is random depends on seed and epoch alone."""
    order = random.Random(f"{lesson.seed}:{epoch}")  # noqa: S311  # an order, not a secret
    torch.manual_seed(order.getrandbits(63))
    return list(grouped_batches(lesson.fit.lengths, lesson.settings.batch_size, order))
