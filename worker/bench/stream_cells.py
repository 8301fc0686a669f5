"""Cells of a whole stream by one adapter: on one task after another, or on all at once."""

import copy
import math
import random
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from worker.backbone import grouped_batches
from worker.bench.adapting import Adapted, adapted_by
from worker.bench.cell import Cell, Work
from worker.bench.methods import METHODS
from worker.bench.task_cells import FLOAT_BYTES, TaskCells
from worker.evaluate import evaluate
from worker.optimizer import Optimizer
from worker.prepared import PreparedTask
from worker.trainer import Hooks, Lesson, train

Tell = Callable[[int, int], None]


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
        model = self.cells.suite.stream.model
        method, first = METHODS[cell.method], order[0]
        with adapted_by(method, lessons[first], heads[first], model, cell.rate) as adapted:
            learn = self._jointly if cell.method == "joint" else self._in_sequence
            matrix, validation = learn(order, lessons, heads, adapted, tell)
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

    def _in_sequence(
        self,
        order: list[str],
        lessons: Mapping[str, Lesson],
        heads: Mapping[str, nn.Module],
        adapted: Adapted,
        tell: Tell,
    ) -> tuple[list[list[float | None]], float]:
        """Learn one task after another; after each, score those that were learnt."""
        matrix: list[list[float | None]] = []
        done, steps = 0, sum(each.num_steps for each in lessons.values())
        for number, task_id in enumerate(order, start=1):
            lesson = _inside(lessons[task_id], adapted)
            hooks = Hooks(on_step=lambda report, done=done: tell(done + report.step, steps))  # type: ignore[misc]
            train(lesson, adapted.trainee, heads[task_id], hooks=hooks)
            done += lesson.num_steps
            scores = [self._score(each, lessons, heads, adapted) for each in order[:number]]
            matrix.append([*scores, *[None] * (len(order) - number)])
        return matrix, self._validation(order, lessons, heads, adapted)

    def _jointly(
        self,
        order: list[str],
        lessons: Mapping[str, Lesson],
        heads: Mapping[str, nn.Module],
        adapted: Adapted,
        tell: Tell,
    ) -> tuple[list[list[float | None]], float]:
        """Learn all tasks at once, batches of one task each in turn as drawn."""
        settings, backbone = next(iter(lessons.values())).settings, adapted.lesson.backbone
        batches = {each: lessons[each].steps_per_epoch for each in order}
        num_steps = settings.epochs * sum(batches.values())
        optimizer = Optimizer(
            adapted.trainee, nn.ModuleDict(heads), settings, num_steps, backbone.device
        )
        step = 0
        backbone.model.train()
        with torch.random.fork_rng():
            for epoch in range(settings.epochs):
                for task_id, rows in _mixed(order, lessons, epoch):
                    loss = _loss(_inside(lessons[task_id], adapted), heads[task_id], rows)
                    optimizer.zero_grad()
                    optimizer.backward(loss)
                    if not optimizer.step(step, loss.detach()):
                        return [[math.nan for _ in order]], -math.inf
                    step += 1
                    tell(step, num_steps)
        final: list[float | None] = [self._score(each, lessons, heads, adapted) for each in order]
        return [final], self._validation(order, lessons, heads, adapted)

    def _score(
        self,
        task_id: str,
        lessons: Mapping[str, Lesson],
        heads: Mapping[str, nn.Module],
        adapted: Adapted,
    ) -> float:
        lesson, prepared = _inside(lessons[task_id], adapted), self._prepared(lessons[task_id])
        return evaluate(lesson.backbone, lesson.objective, heads[task_id], prepared.test).main

    def _prepared(self, lesson: Lesson) -> PreparedTask:
        return self.cells.prepare(Cell("", 0, lesson.task_id))[0]

    def _validation(
        self,
        order: list[str],
        lessons: Mapping[str, Lesson],
        heads: Mapping[str, nn.Module],
        adapted: Adapted,
    ) -> float:
        """Mean score on the validation rows of all tasks, in the end."""
        scores = []
        for task_id in order:
            lesson = _inside(lessons[task_id], adapted)
            features = lesson.backbone.features(lesson.validation.encoded)
            scores.append(
                lesson.objective.score(heads[task_id], features, lesson.validation.labels)
            )
        return sum(scores) / len(scores)


def _inside(lesson: Lesson, adapted: Adapted) -> Lesson:
    """The lesson on the model that has the adapter."""
    backbone = replace(lesson.backbone, model=adapted.lesson.backbone.model)
    return replace(lesson, backbone=backbone)


def _mixed(
    order: list[str], lessons: Mapping[str, Lesson], epoch: int
) -> list[tuple[str, list[int]]]:
    """Batches of one pass over all tasks."""
    seed = lessons[order[0]].seed
    draw = random.Random(f"joint:{seed}:{epoch}")  # noqa: S311  # an order, not a secret
    batches = [
        (task_id, rows)
        for task_id in order
        for rows in grouped_batches(
            lessons[task_id].fit.lengths, lessons[task_id].settings.batch_size, draw
        )
    ]
    draw.shuffle(batches)
    return batches


def _loss(lesson: Lesson, head: nn.Module, rows: list[int]) -> torch.Tensor:
    batch = lesson.fit.take(rows)
    features = lesson.backbone.pooled(batch.encoded)
    labels = batch.labels.to(features.device)
    return lesson.objective.loss(head, features, labels) / lesson.objective.mass(batch.labels)
