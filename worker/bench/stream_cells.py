"""Cells of a whole stream by one adapter: on one task after another, or on all at once."""

import copy
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from share_dist.errors import TrainingDiverged
from worker.backbone import grouped_batches
from worker.bench.adapting import FLOAT_BYTES, adapted_by
from worker.bench.cell import Cell, Work
from worker.bench.keepers import Keeper, keeper_of, mean_loss
from worker.bench.memory import forget_peak, peak_mib
from worker.bench.methods import METHODS
from worker.bench.task_cells import TaskCells
from worker.evaluate import EncodedTestRows, evaluate
from worker.optimizer import Optimizer
from worker.trainer import Hooks, Lesson, StepReport, train

Tell = Callable[[int, int], None]
Matrix = list[list[float | None]]


@dataclass
class StreamCells:
    """
    Computes cells of one adapter for all tasks, each with its own head.

    Args:
        cells: Of single tasks: prepares them.
    """

    cells: TaskCells
    _before: dict[tuple[str, int], float] = field(default_factory=dict)

    def compute(self, work: Work, tell: Tell) -> dict[str, Any]:
        """
        Compute one.

        Args:
            work: Which.
            tell: Told of every step, and of how many.
        """
        cell = work.cell
        assert cell.rate is not None, "every method of one adapter has rates"
        order = self.cells.suite.order(cell.seed)
        heads = {each: self._first_head(cell, each) for each in order}
        lessons = {each: self._lesson(cell, each) for each in order}
        forget_peak()
        method, first, model = METHODS[cell.method], order[0], self.cells.suite.stream.model
        with adapted_by(method, lessons[first], heads[first], model, cell.rate) as adapted:
            keeper = keeper_of(method, adapted, model, cell.rate)
            course = _Course(order, lessons, heads, self._tests(cell, order), keeper)
            if cell.method == "joint":
                facts: dict[str, Any] = {"matrix": self._jointly(course, tell)}
            else:
                facts = {"before": {each: self._score_before(cell, each) for each in order}}
                facts |= {"matrix": self._in_sequence(course, tell)}
            validation = self._validation(course)
        return {
            "order": order,
            **facts,
            "final": dict(zip(order, facts["matrix"][-1], strict=True)),
            "scores": {each: course.scores[each] for each in order},
            "validation": validation,
            "num_parameters": keeper.num_trained,
            "adapter_bytes": FLOAT_BYTES * keeper.num_kept,
            "seconds": round(course.seconds, 1),
            "peak_mib": peak_mib(),
        }

    def _first_head(self, cell: Cell, task_id: str) -> nn.Module:
        _, frozen = self.cells.prepare(replace(cell, task_id=task_id))
        return copy.deepcopy(frozen.start.head)

    def _tests(self, cell: Cell, order: Sequence[str]) -> dict[str, EncodedTestRows]:
        return {each: self.cells.prepare(replace(cell, task_id=each))[0].test for each in order}

    def _lesson(self, cell: Cell, task_id: str) -> Lesson:
        one = replace(cell, task_id=task_id)
        return self.cells.lesson(one, self.cells.prepare(one)[0])

    def _in_sequence(self, course: "_Course", tell: Tell) -> Matrix:
        """
        Learn one task after another; after each, score those that were learnt.

        The one that comes next is scored as well, by its first head: what it has of those before it.
        """
        matrix: Matrix = []
        done, steps = 0, sum(each.num_steps for each in course.lessons.values())
        for number, task_id in enumerate(course.order, start=1):
            self._learn(course, task_id, lambda step, done=done: tell(done + step, steps))  # type: ignore[misc]
            done += course.lessons[task_id].num_steps
            scores = [self._score(each, course) for each in course.order[: number + 1]]
            matrix.append([*scores, *[None] * (len(course.order) - len(scores))])
        return matrix

    @staticmethod
    def _learn(course: "_Course", task_id: str, tell: Callable[[int], None]) -> None:
        """Learn one task, holding the former ones as the method does."""
        keeper, head = course.keeper, course.heads[task_id]

        def on_step(report: StepReport) -> None:
            keeper.stepped()
            tell(report.step)

        lesson = keeper.begin(course.lessons[task_id], head)
        hooks = Hooks(penalty=keeper.penalty, on_step=on_step)
        began = time.monotonic()
        train(lesson, keeper.adapted.trainee, head, hooks=hooks)
        keeper.end()
        course.seconds += time.monotonic() - began

    def _jointly(self, course: "_Course", tell: Tell) -> Matrix:
        """Learn all tasks at once, batches of one task each in turn as drawn."""
        first = course.inside(course.order[0])
        settings, backbone = first.settings, first.backbone
        num_steps = sum(each.num_steps for each in course.lessons.values())
        heads, trainee = nn.ModuleList(course.heads.values()), course.keeper.adapted.trainee
        optimizer = Optimizer(trainee, heads, settings, num_steps, backbone.device)
        batches = [each for epoch in range(settings.epochs) for each in _mixed(course, epoch)]
        backbone.model.train()
        began = time.monotonic()
        with torch.random.fork_rng():
            torch.manual_seed(first.seed)
            for step, (task_id, rows) in enumerate(batches):
                loss = mean_loss(course.inside(task_id), course.heads[task_id], rows)
                optimizer.zero_grad()
                optimizer.backward(loss)
                if not optimizer.step(step, loss.detach()):
                    raise TrainingDiverged(
                        f"all tasks at once: loss {float(loss)} is not finite at step {step}: take "
                        "the largest learning rate out of the search",
                        task_id=task_id,
                        step=step,
                    )
                tell(step + 1, num_steps)
        course.seconds += time.monotonic() - began
        return [[self._score(each, course) for each in course.order]]

    def _score_before(self, cell: Cell, task_id: str) -> float:
        """How the frozen model does with the task's first head; told once for all cells of a seed."""
        key = task_id, cell.seed
        if key not in self._before:
            prepared, frozen = self.cells.prepare(replace(cell, task_id=task_id))
            backbone = self.cells.backbone.reading(prepared.task.type)
            found = evaluate(backbone, prepared.objective, frozen.start.head, prepared.test)
            self._before[key] = found.main
        return self._before[key]

    def _score(self, task_id: str, course: "_Course") -> float:
        lesson = course.inside(task_id)
        found = evaluate(
            lesson.backbone, lesson.objective, course.heads[task_id], course.tests[task_id]
        )
        course.scores[task_id] = found.to_dict()
        return found.main

    @staticmethod
    def _validation(course: "_Course") -> float:
        """Mean score on the validation rows of all tasks, in the end."""
        return fmean(course.inside(each).score(course.heads[each]) for each in course.order)


@dataclass
class _Course:
    """
    All tasks: in which order, on the frozen model, each one's head and test rows, what is trained for them, last scores,
    and how long they were trained.
    """

    order: list[str]
    lessons: Mapping[str, Lesson]
    heads: Mapping[str, nn.Module]
    tests: Mapping[str, EncodedTestRows]
    keeper: Keeper
    scores: dict[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def inside(self, task_id: str) -> Lesson:
        """A task's lesson on the model as it is now."""
        return self.keeper.inside(self.lessons[task_id])


def _mixed(course: _Course, epoch: int) -> list[tuple[str, list[int]]]:
    """Batches of one pass over all tasks."""
    seed = course.lessons[course.order[0]].seed
    draw = random.Random(f"joint:{seed}:{epoch}")  # noqa: S311  # an order, not a secret
    batches = [
        (task_id, rows)
        for task_id, lesson in course.lessons.items()
        for rows in grouped_batches(lesson.fit.lengths, lesson.settings.batch_size, draw)
    ]
    draw.shuffle(batches)
    return batches
