"""The summary: what all cells of a benchmark say together."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from share_dist.core.metrics import stream_scores
from worker.bench.adapting import FLOAT_BYTES
from worker.bench.beside import by_name
from worker.bench.cell import Cell, CellFolder
from worker.bench.methods import METHODS, RANDOM_CONTROL, Method
from worker.bench.plan import Plan
from worker.bench.seeds import mean_of, spread
from worker.bench.suite import Suite

TASK_COUNTS = (1, 10, 30, 100, 300, 1000)
"""For how many tasks the bytes in all are accounted for."""

DOUBLE_BYTES = 8
"""Of an entry of the small matrices by which a coordinator knows what a task weighs."""

AT_ONCE = ("share-async", "share-late")
"""Methods of several workers at once, which are compared with one worker."""


def summarise(suite: Suite, folder: CellFolder) -> dict[str, Any]:
    """
    Put the outcomes of all cells side by side; what is not computed yet is left out.

    Returns:
        ``tasks``: per task the frozen model, the majority class and every method, mean over seeds;
        ``methods``: per method means over tasks with their deviation over seeds, all scores, rates, bytes, time;
        ``metrics``: by which score each task is compared;
        ``few``: the same from few rows; ``after_steps``: method -> number of steps -> mean score by seed; ``bytes``: of a task, and in all by number of tasks;
        ``searched``: method -> learning rate -> mean validation score, None where training diverged; ``comparisons``: seed by seed; ``missing``: how many cells have no outcome.
    """
    plan = Plan(suite, folder)
    done, total = plan.count()
    task_methods = _of_scope(suite, "task")
    methods = {each.name: _of_method(suite, folder, plan, each, None) for each in task_methods} | {
        each.name: _of_stream(suite, folder, plan, each) for each in _of_scope(suite, "stream")
    }
    few = {
        each.name: _of_method(suite, folder, plan, each, rows)
        for each in task_methods
        if (rows := suite.few_rows(each)) is not None
    }
    return {
        "suite": suite.name,
        "seeds": suite.settings.seeds,
        "num_factors": suite.settings.num_factors,
        "training": suite.stream.training.model_dump(mode="json"),
        "order": suite.task_ids,
        "methods": methods,
        "metrics": next((each["metrics"] for each in methods.values() if each.get("metrics")), {}),
        "few_rows": suite.settings.few_rows,
        "few": few,
        "after_steps": {
            each.name: _after_steps(suite, folder, plan, each)
            for each in task_methods
            if suite.has_curve(each)
        },
        "bytes": _bytes(suite, methods),
        "searched": {
            each.name: {f"{rate:g}": mean for rate, mean in found.items()}
            for each in map(suite.method, suite.settings.methods)
            if (found := plan.searched(each))
        },
        "comparisons": _comparisons(methods, few, suite.settings.seeds),
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
        "metrics": {task_id: each[0]["metric"] for task_id, each in by_task.items() if each},
        "all_scores": by_name({task_id: [run["scores"] for run in each] for task_id, each in by_task.items()}),
        "rates": rates,
        "by_seed": [mean_of(each[seed]["test"] for each in complete) for seed in range(suite.settings.seeds)] if is_whole else [],
        "in_fewer_bits": _in_fewer_bits(complete, suite.settings.seeds) if is_whole else {},
        "adapter_bytes": mean_of(run["adapter_bytes"] for run in runs if "adapter_bytes" in run),
        "head_bytes": mean_of(run["head_bytes"] for run in runs),
        "num_parameters": mean_of(run["num_parameters"] for run in runs if "num_parameters" in run),
        "seconds": mean_of(run["seconds"] for run in runs if "seconds" in run),
        "peak_mib": max((run["peak_mib"] for run in runs if "peak_mib" in run), default=None),
    }  # fmt: skip


def _in_fewer_bits(tasks: list[list[dict[str, Any]]], num_seeds: int) -> dict[str, Any]:
    """Precision -> mean score by seed, the difference to fp32, and bytes of a task; tasks hold a run for each seed."""
    if not all("in_fewer_bits" in run for runs in tasks for run in runs):
        return {}
    found = {}
    for precision in tasks[0][0]["in_fewer_bits"]:
        short = [[run["in_fewer_bits"][precision] for run in runs] for runs in tasks]
        losses = [
            mean_of(
                each[seed]["test"] - runs[seed]["test"]
                for each, runs in zip(short, tasks, strict=True)
            )
            for seed in range(num_seeds)
        ]
        found[precision] = {
            "by_seed": [mean_of(each[seed]["test"] for each in short) for seed in range(num_seeds)],
            "less_fp32": spread([each for each in losses if each is not None]),
            "adapter_bytes": mean_of(each["adapter_bytes"] for runs in short for each in runs),
        }
    return found


def _after_steps(
    suite: Suite, folder: CellFolder, plan: Plan, method: Method
) -> dict[str, list[float]]:
    """Mean over tasks by seed after each number of steps; empty before all cells are there."""
    by_seed = []
    for seed in range(suite.settings.seeds):
        chosen = [plan.chosen(method.name, each, seed) for each in suite.task_ids]
        cells = [None if each is None else replace(each, is_curve=True) for each in chosen]
        by_seed.append([each["after_steps"] for each in _outcomes(folder, cells)])
    if any(len(each) < len(suite.task_ids) for each in by_seed):
        return {}
    return {
        steps: [fmean(each[steps] for each in tasks) for tasks in by_seed]
        for steps in map(str, suite.settings.after_steps)
    }


def _of_stream(suite: Suite, folder: CellFolder, plan: Plan, method: Method) -> dict[str, Any]:
    """What one method of whole streams has reached."""
    cells = [plan.chosen(method.name, "", seed) for seed in range(suite.settings.seeds)]
    runs = _outcomes(folder, cells)
    runs = runs if len(runs) == suite.settings.seeds else []
    scores = [_scores(run) for run in runs]
    kept = (
        "learnt",
        "lags",
        "drifts",
        "sent_bytes",
        "wire_bytes",
        "versions",
        "basis_bytes",
        "coefficient_bytes",
    )
    return {
        "tasks": {
            task_id: mean_of(run["final"][task_id] for run in runs) for task_id in suite.task_ids
        },
        "all_scores": by_name(
            {
                each: [run["scores"][each] for run in runs if "scores" in run]
                for each in suite.task_ids
            }
        ),
        "rates": {"": next((each.rate for each in cells if each is not None), None)},
        "by_seed": [mean_of(run["final"].values()) for run in runs],
        "scores": {
            name: mean_of(each[name] for each in scores if each.get(name) is not None)
            for name in ("backward_transfer", "forward_transfer", "forgetting", "learning_accuracy")
        },
        "orders": [run["order"] for run in runs],
        "matrices": [run.get("matrix") for run in runs],
        "adapter_bytes": mean_of(run["adapter_bytes"] for run in runs if "adapter_bytes" in run),
        "num_parameters": mean_of(_num_trained(run) for run in runs),
        "seconds": mean_of(run.get("seconds") for run in runs),
        "peak_mib": max((run["peak_mib"] for run in runs if "peak_mib" in run), default=None),
        "task_free": _task_free([run["task_free"] for run in runs if "task_free" in run]),
        "runs": [{name: run[name] for name in kept if name in run} for run in runs],
    }


def _num_trained(run: Mapping[str, Any]) -> float | None:
    """Numbers that are trained, of all tasks or a task; where they are sent whole, as many as are sent of a task."""
    if "sent_bytes" in run:
        return fmean(run["sent_bytes"].values()) / FLOAT_BYTES
    return run.get("num_parameters")


def _scores(run: Mapping[str, Any]) -> dict[str, Any]:
    """Backward transfer and the like, where a run has a matrix of one task after another."""
    matrix = run.get("matrix")
    if matrix is not None and len(matrix) == len(run["order"]):
        before = run.get("before")
        baselines = None if before is None else [before[each] for each in run["order"]]
        return vars(stream_scores(matrix, baselines))
    if run.get("learnt"):
        last = run["versions"][-1]["task_ids"]
        changes = [
            run["final"][each] - run["learnt"][each] for each in run["order"] if each not in last
        ]
        return {
            "backward_transfer": mean_of(changes),
            "learning_accuracy": mean_of(run["learnt"].values()),
        }
    return {}


def _task_free(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs say that were asked without their tasks' ids."""
    names = (
        "rows",
        "choice",
        "abstained",
        "strangers_abstained",
        "calibration_error",
        "oracle",
        "routed",
    )
    known = {name: [each[name] for each in found if name in each] for name in names}
    return {name: spread(each) for name, each in known.items() if each}


def _bytes(suite: Suite, methods: Mapping[str, Any]) -> dict[str, Any]:
    """
    What methods send and store.

    Returns:
        ``head``: of one task, in fp32. ``tasks``: method -> what `_bytes_of_task` says of one task.
        ``num_tasks``, and ``in_all``: method -> ``served`` and ``kept``, stored bytes of so many tasks, with heads and, once, the bases.
    """
    head = next(
        (each["head_bytes"] for each in methods.values() if each.get("head_bytes") is not None),
        None,
    )
    tasks = {name: _bytes_of_task(suite, METHODS[name], each) for name, each in methods.items()}
    in_all: dict[str, dict[str, list[int]]] = {}
    for name, each in methods.items():
        basis = _basis_bytes(METHODS[name], each)
        if basis is None or head is None or tasks[name]["served"] is None:
            continue
        served = [basis + count * (tasks[name]["served"] + head) for count in TASK_COUNTS]
        kept = served
        if METHODS[name].is_shared:
            kept = [
                _growth(suite, METHODS[name], each, count) * basis
                + count * (_kept_of_task(suite, METHODS[name], each, count) + head)
                for count in TASK_COUNTS
            ]
        in_all[name] = {"served": [*map(round, served)], "kept": [*map(round, kept)]}
    return {"head": head, "tasks": tasks, "num_tasks": list(TASK_COUNTS), "in_all": in_all}


def _bytes_of_task(suite: Suite, method: Method, found: Mapping[str, Any]) -> dict[str, Any]:
    """
    Bytes of one task in fp32, without its head and without bases.

    Returns:
        ``sent``: by its node, all updates together; ``pulled``: bases that came to its node for it, where one worker learns
        all tasks; ``wire``: the whole payload of its one update; ``served``: what a model is given of it; ``kept``: what is
        stored of it, where a coordinator has more columns than it serves.
    """
    if method.is_shared:
        runs = found["runs"]
        sent, wire = (
            mean_of(each for run in runs for each in run.get(name, {}).values())
            for name in ("sent_bytes", "wire_bytes")
        )
        served = mean_of(run.get("coefficient_bytes") for run in runs)
        is_one_update = not suite.training(method).refine_epochs
        return {
            "sent": sent,
            "pulled": None if method.name in AT_ONCE else mean_of(map(_pulled, runs)),
            "wire": wire if is_one_update else None,
            "served": served,
            "kept": None
            if served is None
            else _kept_of_task(suite, method, found, len(suite.task_ids)),
        }
    stored = found["adapter_bytes"]
    is_stream = method.scope == "stream"
    if is_stream and stored is not None:
        stored /= len(suite.task_ids)
    sent = None if is_stream else stored
    return {"sent": sent, "pulled": None, "wire": None, "served": stored, "kept": stored}


def _pulled(run: Mapping[str, Any]) -> float | None:
    """Bytes of the bases that one worker pulls, a task: of every version but the last, each once."""
    versions = run.get("versions")
    return versions and sum(each["subspace_bytes"] for each in versions[:-1]) / len(versions)


def _growth(suite: Suite, method: Method, found: Mapping[str, Any], count: int) -> float:
    """
    How many columns a coordinator keeps at most after so many tasks, to those that the last version serves.

    A task brings no more directions than it has temporary factors.
    """
    columns = suite.num_factors(method) + suite.settings.oversample
    most = min(columns, count * suite.training(method).num_temporary)
    served = fmean(run["versions"][-1]["num_factors"] for run in found["runs"])
    return max(1.0, most / served)


def _kept_of_task(suite: Suite, method: Method, found: Mapping[str, Any], count: int) -> float:
    """Of one task among so many: coefficients of all columns, and by which its weight is known."""
    rank = suite.training(method).pseudo_rank
    served = fmean(run["coefficient_bytes"] for run in found["runs"])
    factors = fmean(run["versions"][-1]["num_factors"] for run in found["runs"])
    num_sides = served / (FLOAT_BYTES * rank * factors)
    return _growth(suite, method, found, count) * served + num_sides * rank * rank * DOUBLE_BYTES


def _basis_bytes(method: Method, found: Mapping[str, Any]) -> float | None:
    """Of what all tasks of a method share, as the last version serves it; None where that is not known, or is no method of any number of tasks."""
    if method.is_shared:
        return mean_of(run.get("basis_bytes") for run in found["runs"])
    return 0.0 if method.name == "lora" else None


def _comparisons(
    methods: Mapping[str, Any], few: Mapping[str, Any], num_seeds: int
) -> dict[str, Any]:
    """
    What methods have of others, seed by seed, where all seeds are computed.

    Returns:
        ``of_lora``: method -> mean score as a share of own LoRAs', where these are above zero; ``less_share``: method of workers at once -> mean accuracy less that of ``share``;
        ``few_over_lora`` and ``few_over_random``: method -> gain from few rows, of a first gradient's start over random directions with that start.
    """

    def paired(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[float, float]]:
        values, others = one.get("by_seed", []), other.get("by_seed", [])
        is_whole = len(values) == len(others) == num_seeds
        return list(zip(values, others, strict=True)) if is_whole else []

    def less(found: Mapping[str, Any], name: str, other: str) -> dict[str, Any] | None:
        pairs = paired(found.get(name, {}), found.get(other, {}))
        return spread([one - another for one, another in pairs]) if pairs else None

    def gains(others: Mapping[str, str]) -> dict[str, Any]:
        known = {name: less(few, name, other) for name, other in others.items() if name != other}
        return {name: each for name, each in known.items() if each is not None}

    lora = methods.get("lora", {})
    pairs = {name: paired(each, lora) for name, each in methods.items()}
    ratios = {
        # a share of nothing, or of a negative correlation, would say nothing
        name: [one / other for one, other in each] if all(other > 0 for _, other in each) else []
        for name, each in pairs.items()
    }
    return {
        "of_lora": {name: spread(each) for name, each in ratios.items() if each},
        "less_share": {name: less(methods, name, "share") for name in AT_ONCE if name in methods},
        "few_over_lora": gains(dict.fromkeys(few, "lora")),
        "few_over_random": gains({name: _control(name, few) for name in few}),
    }


def _control(name: str, few: Mapping[str, Any]) -> str:
    """Random directions, begun as the method begins where that was computed."""
    begins_alike = METHODS[name].start == "gradient" and "random-gradient" in few
    return "random-gradient" if begins_alike else RANDOM_CONTROL


def _outcomes(folder: CellFolder, cells: Iterable[Cell | None]) -> list[dict[str, Any]]:
    found = (folder.load(each) for each in cells if each is not None)
    return [each for each in found if each is not None]
