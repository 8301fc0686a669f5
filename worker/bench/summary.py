"""The summary: what all cells of a benchmark say together."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from share_dist.core.metrics import stream_scores
from worker.bench.cell import Cell, CellFolder
from worker.bench.methods import METHODS, Method
from worker.bench.plan import Plan
from worker.bench.suite import Suite

TASK_COUNTS = (1, 10, 30, 100, 300, 1000)
"""For how many tasks the bytes in all are accounted for."""


def summarise(suite: Suite, folder: CellFolder) -> dict[str, Any]:
    """
    Put the outcomes of all cells side by side; what is not computed yet is left out.

    Returns:
        ``tasks``: per task the frozen model, the majority class and every method, mean over seeds;
        ``methods``: per method means over tasks with their deviation over seeds, rates, bytes, time;
        ``few``: the same from few rows; ``bytes``: in all, by number of tasks; ``versions``: of each
        seed's stream; ``missing``: how many cells have no outcome.
    """
    plan = Plan(suite, folder)
    done, total = plan.count()
    task_methods = _of_scope(suite, "task")
    methods = {each.name: _of_method(suite, folder, plan, each, None) for each in task_methods} | {
        each.name: _of_stream(suite, folder, plan, each) for each in _of_scope(suite, "stream")
    }
    few = suite.settings.few_rows
    return {
        "suite": suite.name,
        "seeds": suite.settings.seeds,
        "num_factors": suite.settings.num_factors,
        "training": suite.stream.training.model_dump(mode="json"),
        "order": suite.task_ids,
        "methods": methods,
        "few_rows": few,
        "few": {} if few is None else {each.name: _of_method(suite, folder, plan, each, few) for each in task_methods},
        "missing": total - done,
    }  # fmt: skip


def _of_scope(suite: Suite, scope: str) -> list[Method]:
    methods = [METHODS[name] for name in suite.settings.methods]
    return [each for each in methods if each.scope == scope]


def _of_method(
    suite: Suite, folder: CellFolder, plan: Plan, method: Method, rows: int | None
) -> dict[str, Any]:
    """What one method of single tasks has reached."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    rates: dict[str, float | None] = {}
    for task_id in suite.task_ids:
        cells = [
            plan.chosen(method.name, task_id, seed, rows) for seed in range(suite.settings.seeds)
        ]
        by_task[task_id] = _outcomes(folder, cells)
        rates[task_id] = next((each.rate for each in cells if each is not None), None)
    complete = [runs for runs in by_task.values() if len(runs) == suite.settings.seeds]
    is_whole = len(complete) == len(by_task)
    runs = [run for each in by_task.values() for run in each]
    return {
        "tasks": {task_id: mean_of(run["test"] for run in each) for task_id, each in by_task.items()},
        "majority": {task_id: mean_of(run["majority"] for run in each) for task_id, each in by_task.items()},
        "rates": rates,
        "by_seed": [mean_of(each[seed]["test"] for each in complete) for seed in range(suite.settings.seeds)] if is_whole else [],
        "adapter_bytes": mean_of(run["adapter_bytes"] for run in runs if "adapter_bytes" in run),
        "head_bytes": mean_of(run["head_bytes"] for run in runs),
        "num_parameters": mean_of(run["num_parameters"] for run in runs if "num_parameters" in run),
        "seconds": mean_of(run["seconds"] for run in runs if "seconds" in run),
        "peak_mib": max((run["peak_mib"] for run in runs if "peak_mib" in run), default=None),
    }  # fmt: skip


def _of_stream(suite: Suite, folder: CellFolder, plan: Plan, method: Method) -> dict[str, Any]:
    """What one method of whole streams has reached."""
    cells = [plan.chosen(method.name, "", seed) for seed in range(suite.settings.seeds)]
    runs = _outcomes(folder, cells)
    scores = [_scores(run) for run in runs]
    kept = (
        "learnt",
        "lags",
        "drifts",
        "sent_bytes",
        "versions",
        "basis_bytes",
        "coefficient_bytes",
    )
    return {
        "tasks": {
            task_id: mean_of(run["final"][task_id] for run in runs) for task_id in suite.task_ids
        },
        "rates": {"": next((each.rate for each in cells if each is not None), None)},
        "by_seed": [mean_of(run["final"].values()) for run in runs],
        "scores": {
            name: mean_of(each[name] for each in scores if each.get(name) is not None)
            for name in ("backward_transfer", "forgetting", "learning_accuracy")
        },
        "orders": [run["order"] for run in runs],
        "matrices": [run.get("matrix") for run in runs],
        "adapter_bytes": mean_of(run["adapter_bytes"] for run in runs if "adapter_bytes" in run),
        "num_parameters": mean_of(run["num_parameters"] for run in runs if "num_parameters" in run),
        "seconds": mean_of(run["seconds"] for run in runs),
        "runs": [{name: run[name] for name in kept if name in run} for run in runs],
    }


def _scores(run: Mapping[str, Any]) -> dict[str, Any]:
    """Backward transfer and the like, where a run has a matrix of one task after another."""
    matrix = run.get("matrix")
    if matrix is not None and len(matrix) == len(run["order"]):
        return vars(stream_scores(matrix))
    if run.get("learnt"):
        changes = [run["final"][each] - run["learnt"][each] for each in run["order"]]
        return {
            "backward_transfer": mean_of(changes),
            "learning_accuracy": mean_of(run["learnt"].values()),
        }
    return {}


def _outcomes(folder: CellFolder, cells: Iterable[Cell | None]) -> list[dict[str, Any]]:
    found = (folder.load(each) for each in cells if each is not None)
    return [each for each in found if each is not None]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of what there is; None of nothing."""
    known = [each for each in values if each is not None]
    return math.fsum(known) / len(known) if known else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean of paired differences, by Student's t; None of fewer than two."""
    if len(differences) < 2:
        return None
    from scipy.stats import t  # type: ignore[import-untyped]  # scipy has no types

    middle = statistics.fmean(differences)
    half = (
        t.ppf(0.975, len(differences) - 1)
        * statistics.stdev(differences)
        / math.sqrt(len(differences))
    )
    return middle - half, middle + half
