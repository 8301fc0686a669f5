"""Cells of a whole stream by one adapter: on one task after another, or on all at once."""

import copy
import random
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from share_dist.errors import TrainingDiverged
from worker.backbone import grouped_batches
from worker.bench.adapting import Adapted, adapted_by
from worker.bench.cell import Cell, Work
from worker.bench.methods import METHODS
from worker.bench.task_cells import FLOAT_BYTES, TaskCells
from worker.evaluate import evaluate
from worker.optimizer import Optimizer
from worker.trainer import Hooks, Lesson, train

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

    def compute(self, work: Work, tell: Tell) -> dict[str, Any]:
        """
        Compute one.

        Args:
            work: Which.
            tell: Told of every step, and of how many.
        """
        cell, began = work.cell, time.monotonic()
        assert cell.rate is not None, "every method of one adapter has rates"
        order = self.cells.suite.order(cell.seed)
        heads = {each: self._first_head(cell, each) for each in order}
        lessons = {each: self._lesson(cell, each) for each in order}
        method, first, model = METHODS[cell.method], order[0], self.cells.suite.stream.model
        with adapted_by(method, lessons[first], heads[first], model, cell.rate) as adapted:
            inside = {each: _inside(lesson, adapted) for each, lesson in lessons.items()}
            course = _Course(order, inside, heads, adapted)
            learn = self._jointly if cell.method == "joint" else self._in_sequence
            matrix = learn(course, tell)
            validation = self._validation(course)
        return {
            "order": order,
            "matrix": matrix,
            "final": dict(zip(order, matrix[-1], strict=True)),
            "validation": validation,
            "num_parameters": adapted.num_parameters,
            "adapter_bytes": FLOAT_BYTES * adapted.num_parameters,
            "seconds": round(time.monotonic() - began, 1),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }

    def _first_head(self, cell: Cell, task_id: str) -> nn.Module:
        _, frozen = self.cells.prepare(replace(cell, task_id=task_id))
        return copy.deepcopy(frozen.start.head)

    def _lesson(self, cell: Cell, task_id: str) -> Lesson:
        one = replace(cell, task_id=task_id)
        return self.cells.lesson(one, self.cells.prepare(one)[0])

    def _in_sequence(self, course: "_Course", tell: Tell) -> Matrix:
        """Learn one task after another; after each, score those that were learnt."""
        matrix: Matrix = []
        done, steps = 0, sum(each.num_steps for each in course.lessons.values())
        for number, task_id in enumerate(course.order, start=1):
            lesson = course.lessons[task_id]
            hooks = Hooks(on_step=lambda report, done=done: tell(done + report.step, steps))  # type: ignore[misc]
            train(lesson, course.adapted.trainee, course.heads[task_id], hooks=hooks)
            done += lesson.num_steps
            scores = [self._score(each, course) for each in course.order[:number]]
            matrix.append([*scores, *[None] * (len(course.order) - number)])
        return matrix

    def _jointly(self, course: "_Course", tell: Tell) -> Matrix:
        """Learn all tasks at once, batches of one task each in turn as drawn."""
        first = course.lessons[course.order[0]]
        settings, backbone = first.settings, first.backbone
        num_steps = sum(each.num_steps for each in course.lessons.values())
        heads, trainee = nn.ModuleDict(course.heads), course.adapted.trainee
        optimizer = Optimizer(trainee, heads, settings, num_steps, backbone.device)
        batches = [each for epoch in range(settings.epochs) for each in _mixed(course, epoch)]
        backbone.model.train()
        with torch.random.fork_rng():
            torch.manual_seed(first.seed)
            for step, (task_id, rows) in enumerate(batches):
                loss = _loss(course.lessons[task_id], course.heads[task_id], rows)
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
        return [[self._score(each, course) for each in course.order]]

    def _score(self, task_id: str, course: "_Course") -> float:
        lesson = course.lessons[task_id]
        test = self.cells.prepare(Cell("", 0, task_id))[0].test
        return evaluate(lesson.backbone, lesson.objective, course.heads[task_id], test).main

    @staticmethod
    def _validation(course: "_Course") -> float:
        """Mean score on the validation rows of all tasks, in the end."""
        scores = []
        for task_id, lesson in course.lessons.items():
            features = lesson.backbone.features(lesson.validation.encoded)
            head, labels = course.heads[task_id], lesson.validation.labels
            scores.append(lesson.objective.score(head, features, labels))
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class _Course:
    """All tasks on the model that has the adapter: in which order, and each one's head."""

    order: list[str]
    lessons: Mapping[str, Lesson]
    heads: Mapping[str, nn.Module]
    adapted: Adapted


def _inside(lesson: Lesson, adapted: Adapted) -> Lesson:
    """The lesson on the model that has the adapter."""
    backbone = replace(lesson.backbone, model=adapted.lesson.backbone.model)
    return replace(lesson, backbone=backbone)


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


def _loss(lesson: Lesson, head: nn.Module, rows: list[int]) -> torch.Tensor:
    batch = lesson.fit.take(rows)
    features = lesson.backbone.pooled(batch.encoded)
    labels = batch.labels.to(features.device)
    return lesson.objective.loss(head, features, labels) / lesson.objective.mass(batch.labels)
