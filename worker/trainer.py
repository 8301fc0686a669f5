"""
The trainer: learn one task while the model stays frozen.

It knows parameters, rows and an objective, not what the parameters mean: the same
loop trains coefficients with temporary factors and a plain LoRA to compare
with. After each epoch its whole state is handed out, so that a worker that was
killed goes on from there and computes the same as if it had not been.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from share_dist.adapters import InjectedModel
from share_dist.errors import TrainingDiverged
from worker.backbone import Backbone, grouped_batches
from worker.objective import EncodedRows, Objective
from worker.stream import TrainingSettings


@dataclass(frozen=True)
class Trainee:
    """
    What an optimiser works on.

    Args:
        parameters: Name -> parameter.
        learning_rates: Name -> learning rate at its peak.
    """

    parameters: Mapping[str, nn.Parameter]
    learning_rates: Mapping[str, float]


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


@dataclass(frozen=True)
class EpochState:
    """
    All that training needs to go on after an epoch.

    Args:
        epochs_done: Passes finished.
        tensors: Parameters and head, now.
        optimizer: Moments of the optimiser.
        best_epoch: The epoch to keep: the last one that is not clearly worse on
            the validation rows than any before it.
        best_score: The best score of any epoch there.
        best_tensors: Parameters and head as they were after ``best_epoch``.
    """

    epochs_done: int
    tensors: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best_epoch: int
    best_score: float
    best_tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where training is."""

    task_id: str
    step: int
    num_steps: int
    loss: float


@dataclass(frozen=True)
class Hooks:
    """Whom training tells what; by default nobody."""

    on_step: Callable[[StepReport], None] = field(default=lambda _: None)
    on_epoch: Callable[[EpochState], None] = field(default=lambda _: None)


def train(
    lesson: Lesson,
    trainee: Trainee,
    head: nn.Module,
    *,
    resume: EpochState | None = None,
    hooks: Hooks | None = None,
) -> EpochState:
    """
    Learn, and leave parameters and head as they were after the epoch that is kept.

    Args:
        lesson: What is to be learnt.
        trainee: Parameters to change in place.
        head: The task's output layer; changed in place.
        resume: Go on from here instead of from the present values.
        hooks: Told of every step and every epoch.

    Returns:
        The state after the last epoch.

    Raises:
        TrainingDiverged: The loss or a gradient stopped being finite.
    """
    hooks = hooks or Hooks()
    optimizer = _Optimizer(lesson, trainee, head)
    state = resume
    if resume is not None:
        optimizer.restore(resume)
    backbone, was_training = lesson.backbone, lesson.backbone.model.training
    try:
        # dropout draws from torch's global generator: borrow it, and give it back as it was
        with torch.random.fork_rng():
            for epoch in range(resume.epochs_done if resume else 0, lesson.settings.epochs):
                backbone.model.train()
                _train_epoch(lesson, head, optimizer, epoch, hooks)
                state = _after_epoch(lesson, head, optimizer, epoch, state)
                hooks.on_epoch(state)
    finally:
        backbone.model.train(was_training)
    assert state is not None
    optimizer.load(state.best_tensors)
    return state


def _train_epoch(
    lesson: Lesson, head: nn.Module, optimizer: "_Optimizer", epoch: int, hooks: Hooks
) -> None:
    for step, rows in _batches(lesson, epoch):
        batch = lesson.fit.take(rows)
        features = lesson.backbone.pooled(batch.encoded)
        loss = lesson.objective.loss(head, features, batch.labels.to(features.device))
        if not optimizer.step(loss, step):
            raise TrainingDiverged(
                f"task {lesson.task_id!r}: loss {float(loss.detach())} or its gradient is not finite "
                f"at step {step} of {lesson.num_steps}: lower learning_rate in the stream file",
                task_id=lesson.task_id,
                step=step,
            )
        hooks.on_step(StepReport(lesson.task_id, step + 1, lesson.num_steps, float(loss.detach())))


def _batches(lesson: Lesson, epoch: int) -> Iterator[tuple[int, list[int]]]:
    """Number the steps of one epoch; what is random depends on seed and epoch alone."""
    order = random.Random(f"{lesson.seed}:{epoch}")  # noqa: S311  # an order, not a secret
    torch.manual_seed(order.getrandbits(63))
    first = epoch * lesson.steps_per_epoch
    batches = grouped_batches(lesson.fit.lengths, lesson.settings.batch_size, order)
    yield from enumerate(batches, start=first)


def _after_epoch(
    lesson: Lesson,
    head: nn.Module,
    optimizer: "_Optimizer",
    epoch: int,
    before: EpochState | None,
) -> EpochState:
    features = lesson.backbone.features(lesson.validation.encoded)
    score = lesson.objective.score(head, features, lesson.validation.labels)
    tensors, best = optimizer.tensors(), score if before is None else max(score, before.best_score)
    if before is None or score >= best - _standard_error(best, len(lesson.validation)):
        return EpochState(epoch + 1, tensors, optimizer.moments(), epoch, best, tensors)
    return replace(before, epochs_done=epoch + 1, tensors=tensors, optimizer=optimizer.moments())


def _standard_error(score: float, num_rows: int) -> float:
    """
    How far a share of so many rows is from the truth, typically.

    A later epoch is given up for an earlier one only when it is worse by more
    than this: on few rows the epoch that looks best is mostly the luckiest.
    """
    return math.sqrt(score * (1 - score) / max(1, num_rows))


class _Optimizer:
    """AdamW with warm-up, linear decay and clipping, over named parameters."""

    def __init__(self, lesson: Lesson, trainee: Trainee, head: nn.Module) -> None:
        settings = lesson.settings
        self._named = {f"adapter.{name}": each for name, each in trainee.parameters.items()}
        self._named |= {f"head.{name}": each for name, each in head.named_parameters()}
        self._peaks = {f"adapter.{name}": rate for name, rate in trainee.learning_rates.items()}
        groups = [
            {
                "params": [parameter],
                "lr": 0.0,
                "peak": self._peaks.get(name, settings.head_learning_rate),
                "weight_decay": 0.0 if name in self._peaks else settings.weight_decay,
            }
            for name, parameter in self._named.items()
        ]
        self._adamw = torch.optim.AdamW(groups)
        self._settings = settings
        self._num_steps = lesson.num_steps

    def step(self, loss: Tensor, step: int) -> bool:
        """Take one step; False, and nothing is changed, when a number is not finite."""
        self._adamw.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
        norm = torch.nn.utils.clip_grad_norm_(
            list(self._named.values()), self._settings.max_gradient_norm
        )
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            return False
        for group in self._adamw.param_groups:
            group["lr"] = group["peak"] * self._share_of_peak(step)
        self._adamw.step()
        return True

    def _share_of_peak(self, step: int) -> float:
        rising = max(1, round(self._settings.warmup * self._num_steps))
        if step < rising:
            return (step + 1) / rising
        return (self._num_steps - step) / max(1, self._num_steps - rising)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all parameters, on the CPU."""
        return {name: each.detach().cpu().clone() for name, each in self._named.items()}

    def moments(self) -> dict[str, Tensor]:
        """Copies of what AdamW remembers, on the CPU."""
        return {
            f"{name}/{key}": value.detach().cpu().clone()
            for name, parameter in self._named.items()
            for key, value in self._adamw.state[parameter].items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put values into the parameters."""
        for name, parameter in self._named.items():
            parameter.copy_(tensors[name])

    def restore(self, state: EpochState) -> None:
        """Go on as after that epoch."""
        self.load(state.tensors)
        for key, value in state.optimizer.items():
            name, _, moment = key.rpartition("/")
            device = "cpu" if moment == "step" else self._named[name].device
            self._adamw.state[self._named[name]][moment] = value.clone().to(device)
