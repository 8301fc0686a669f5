"""Cells of one task: learn it by one method, and score it once."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from share_dist.adapters import LoraAdapter, load_lora, subspace_from_adapters
from share_dist.adapters.cold import gather_moments, subspace_of_inputs, subspace_of_weights
from share_dist.core.subspace import random_subspace
from share_dist.core.values import Head, Subspace
from share_dist.wire.precision import task_from_precision, task_to_precision
from share_dist.wire.records import Precision
from share_dist.wire.tensors import tensors_from_bytes
from worker.backbone import Backbone
from worker.bench.adapting import FLOAT_BYTES, TASK, Adapted, adapted_by
from worker.bench.cell import Cell, CellFolder, Work
from worker.bench.memory import forget_peak, peak_mib
from worker.bench.methods import METHODS, Method
from worker.bench.suite import Suite
from worker.evaluate import evaluate
from worker.objective import Scores
from worker.prepared import FrozenBaseline, PreparedTask, frozen_baseline, prepare
from worker.sources import load_rows
from worker.trainer import Hooks, Lesson, StepReport, train

AGAIN = 1000
"""How far the seed of a second run of one method is from the first; no suite has as many seeds."""

SHORT_PRECISIONS: tuple[Precision, ...] = ("int8", "int4")
"""In which coefficients are sent where every byte counts."""


@dataclass
class TaskCells:
    """
    Computes cells of one task on one copy of the frozen model.

    Args:
        suite: Whose cells.
        folder: Where adapters are kept that other cells build on.
        backbone: The frozen model.
    """

    suite: Suite
    folder: CellFolder
    backbone: Backbone
    _prepared: dict[tuple[str, int | None, int], tuple[PreparedTask, FrozenBaseline]] = field(
        default_factory=dict
    )

    def compute(self, work: Work, tell: Callable[[int, int], None]) -> dict[str, Any]:
        """
        Compute one.

        Args:
            work: Which, and on what it builds.
            tell: Told of every step, and of how many.
        """
        cell = work.cell
        method = METHODS[cell.method]
        prepared, frozen = self.prepare(cell)
        facts = {
            "metric": frozen.scores.metric,
            "majority": prepared.simplest.main,
            "num_train": prepared.num_train,
            "num_test": len(prepared.test),
            "head_bytes": _head_bytes(frozen),
        }
        if method.name == "frozen":
            return facts | {"test": frozen.scores.main, "scores": frozen.scores.to_dict()}
        return facts | self._learn(work, method, prepared, frozen, tell)

    def _learn(
        self,
        work: Work,
        method: Method,
        prepared: PreparedTask,
        frozen: FrozenBaseline,
        tell: Callable[[int, int], None],
    ) -> dict[str, Any]:
        cell = work.cell
        assert cell.rate is not None, "every method of one task but the frozen model has rates"
        head = copy.deepcopy(frozen.start.head)
        test, after = prepared.test, dict[str, float]()

        def score() -> Scores:
            return evaluate(adapted.lesson.backbone, prepared.objective, head, test)

        def on_step(report: StepReport) -> None:
            tell(report.step, report.num_steps)
            if cell.is_curve and report.step in self.suite.settings.after_steps:
                after[str(report.step)] = score().main

        lesson, began = self.lesson(cell, prepared), time.monotonic()
        forget_peak()
        others = [load_lora(self.folder.adapter(each)) for each in work.sources]
        subspace = self._subspace(work, lesson, others)
        model = self.suite.stream.model
        with adapted_by(method, lesson, head, model, cell.rate, subspace, others) as adapted:
            state = train(adapted.lesson, adapted.trainee, head, hooks=Hooks(on_step=on_step))
            seconds = time.monotonic() - began
            scores = score()
            if cell.is_curve:
                # of more steps than there are, its last is told
                steps = map(str, self.suite.settings.after_steps)
                after = {each: after.get(each, scores.main) for each in steps}
                return {"after_steps": after, "seconds": round(seconds, 1)}
            short = (
                self._in_fewer_bits(adapted, prepared, head) if _is_settled(method, cell) else {}
            )
            if _is_source(method) and cell.rows is None:
                adapted.model.save_pretrained(self.folder.adapter(cell))
            return {
                "test": scores.main,
                "scores": scores.to_dict(),
                "validation": state.best_score,
                "best_epoch": state.best_epoch,
                "num_parameters": adapted.num_parameters,
                "adapter_bytes": adapted.num_bytes,
                **short,
                "seconds": round(seconds, 1),
                "peak_mib": peak_mib(),
            }

    @staticmethod
    def _in_fewer_bits(
        adapted: Adapted, prepared: PreparedTask, head: nn.Module
    ) -> dict[str, dict[str, dict[str, float]]]:
        """How a task does whose coefficients are sent in fewer bits, and in how many bytes."""
        assert adapted.injected is not None
        coefficients = adapted.injected.coefficients(TASK)
        version = coefficients.version
        found: dict[str, dict[str, float]] = {}
        for precision in SHORT_PRECISIONS:
            sent = task_to_precision(coefficients, Head(), precision).payload
            decoded, _ = task_from_precision(
                sent, precision=precision, version=version, head_info=Head()
            )
            adapted.injected.set_coefficients(TASK, decoded)
            scores = evaluate(adapted.lesson.backbone, prepared.objective, head, prepared.test)
            numbers = tensors_from_bytes(sent, may_have_int8=True).values()
            found[precision] = {
                "test": scores.main,
                "adapter_bytes": sum(each.nbytes for each in numbers),
            }
        return {"in_fewer_bits": found}

    def prepare(self, cell: Cell) -> tuple[PreparedTask, FrozenBaseline]:
        """
        The rows of a cell's task, and how the frozen model does on them; made once.

        A seed draws its own rows to choose by, and its own few; test rows are the same for all.
        """
        key = cell.task_id, cell.rows, cell.seed
        if key not in self._prepared:
            task = self.suite.task(cell.task_id)
            reading, settings = self.backbone.reading(task.type), self.suite.stream.training
            settings = settings.model_copy(update={"seed": cell.seed})
            rows = load_rows(task, self.suite.stream.folder)
            if cell.rows is not None:
                rows = replace(rows, train=rows.train.draw(cell.rows, cell.seed))
            prepared = prepare(task, rows, reading, settings)
            self._prepared[key] = prepared, frozen_baseline(prepared, reading)
        return self._prepared[key]

    def lesson(self, cell: Cell, prepared: PreparedTask) -> Lesson:
        """What is to be learnt in a cell."""
        method = METHODS[cell.method]
        return Lesson(
            cell.task_id,
            self.backbone.reading(prepared.task.type),
            prepared.objective,
            prepared.fit,
            prepared.validation,
            self.suite.training(method, cell.rows),
            cell.seed + (AGAIN if method.is_again else 0),
        )

    def _subspace(
        self, work: Work, lesson: Lesson, others: Sequence[LoraAdapter]
    ) -> Subspace | None:
        """In which the method begins, where it begins in one."""
        model, shapes = self.backbone.model, self.backbone.shapes
        method = METHODS[work.cell.method]
        num_factors = self.suite.num_factors(method)
        match method.within:
            case "others":
                return subspace_from_adapters(others, num_factors)
            case "random":
                return random_subspace(shapes, num_factors, work.cell.seed)
            case "weights":
                return subspace_of_weights(model, shapes, num_factors)
            case "inputs":
                with gather_moments(model, shapes) as moments:
                    lesson.backbone.features(lesson.fit.encoded)
                return subspace_of_inputs(model, shapes, moments, num_factors)
        return None


def _is_settled(method: Method, cell: Cell) -> bool:
    """Whether it is what a task costs once the shared subspace suffices: columns of coefficients, and nothing else."""
    is_columns = method.form == "columns" and method.peft is None
    return is_columns and method.within == "others" and cell.rows is None


def _is_source(method: Method) -> bool:
    """Whether other cells build on its adapters."""
    return any(each.needs == method.name for each in METHODS.values())


def _head_bytes(frozen: FrozenBaseline) -> int:
    return FLOAT_BYTES * sum(each.numel() for each in frozen.start.head.parameters())
