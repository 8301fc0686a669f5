"""Task-free use: how well tasks are served where rows come without their task's id."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from share_dist.adapters import InjectedModel, inject
from share_dist.client import ShareClient
from share_dist.core.routing import Router, calibration_error
from share_dist.core.values import Coefficients, Subspace
from worker.backbone import Backbone
from worker.bench.suite import Suite
from worker.classification import predict
from worker.objective import unpack_head
from worker.prepared import PreparedTask, prepare
from worker.routing import coordinates_of, fit_router
from worker.sources import load_rows

FIT_ROWS = 200
"""Rows of a task to which the router is fitted, at most."""

ROUTED_ROWS = 100
"""Rows of a task that are routed, at most, and rows on which it is calibrated."""

PARTS = {"fit": FIT_ROWS, "validation": ROUTED_ROWS, "test": ROUTED_ROWS}
"""How many rows of which part are looked at."""

ROW_TYPES = ("text-classification", "image-classification")
"""Types of tasks of which a row has one class."""


@dataclass(frozen=True)
class ServedTask:
    """One task as it is served: its rows, its coefficients and its head."""

    prepared: PreparedTask
    coefficients: Coefficients
    head: nn.Module


def served_tasks(client: ShareClient, suite: Suite, backbone: Backbone) -> dict[str, ServedTask]:
    """All tasks of a suite as a coordinator serves them now."""
    found = {}
    for task in suite.stream.tasks:
        pulled, rows = client.pull_task(task.id), load_rows(task, suite.stream.folder)
        reading = backbone.reading(task.type)
        prepared = prepare(task, rows, reading, suite.stream.training)
        found[task.id] = ServedTask(
            prepared, pulled.coefficients, unpack_head(pulled.head, backbone)
        )
    return found


def task_free_scores(
    tasks: Mapping[str, ServedTask], subspace: Subspace, backbone: Backbone
) -> dict[str, Any]:
    """
    Route test rows of all tasks without their ids, and answer them by the tasks chosen.

    A row that the router leaves to the plain base model has no answer, and counts as wrong in ``choice`` and
    ``routed``. An answer is right where it says the row's class in words, whichever task said it.

    Args:
        tasks: As they are served in the subspace.
        subspace: Of one version.
        backbone: The frozen model, with nothing in it.

    Returns:
        ``rows``: how many were routed; ``choice``: share whose own task was chosen; ``choice_by_task``; ``abstained``:
        share left to the base; ``calibration_error``: of how sure the choice of the nearest is; of two tasks and
        more ``strangers_abstained``: share left to the base of each task's rows by a router of the others. Of tasks that classify rows also ``oracle`` and ``routed``: share of right answers, with the id and without.
    """
    with inject(backbone.model, subspace) as injected:
        fit, held_out, test = (
            {
                each: input_coordinates(injected, backbone, task.prepared, part, count)
                for each, task in tasks.items()
            }
            for part, count in PARTS.items()
        )
        router = fit_router(fit, held_out)
        found = {each: _routed(router, each, rows) for each, rows in test.items()}
        answers = _answers(tasks, found, injected, backbone)
    right = {name: [choice == name for choice in each.choices] for name, each in found.items()}
    choices = [choice for each in found.values() for choice in each.choices]
    return {
        "rows": len(choices),
        "choice": fmean(chain.from_iterable(right.values())),
        "choice_by_task": {name: fmean(each) for name, each in right.items()},
        "abstained": choices.count(None) / len(choices),
        "calibration_error": calibration_error(
            torch.cat([each.confidences for each in found.values()]),
            torch.cat([each.are_nearest for each in found.values()]),
        ),
        **_strangers(fit, held_out, test),
        **answers,
    }


@dataclass(frozen=True)
class _Routed:
    """A task's test rows: what was chosen for each, how sure the nearest is, and whether it is the task."""

    choices: list[str | None]
    confidences: Tensor
    are_nearest: Tensor


def _strangers(
    fit: Mapping[str, Tensor], held_out: Mapping[str, Tensor], test: Mapping[str, Tensor]
) -> dict[str, float]:
    """Share of test rows that are left to the base where the router knows all tasks but theirs; nothing of a single task."""
    if len(test) < 2:
        return {}
    choices: list[str | None] = []
    for task_id, rows in test.items():
        others = (
            {each: found for each, found in part.items() if each != task_id}
            for part in (fit, held_out)
        )
        choices += fit_router(*others).choose(rows)
    return {"strangers_abstained": choices.count(None) / len(choices)}


def input_coordinates(
    injected: InjectedModel, backbone: Backbone, task: PreparedTask, part: str, count: int
) -> Tensor:
    """
    Where a task's inputs lie in the subspace, the mean over a row's tokens.

    Args:
        injected: The frozen model with the subspace in it.
        backbone: The same model.
        task: Whose.
        part: ``"fit"``, ``"validation"`` or ``"test"``.
        count: Rows, at most.

    Returns:
        ``(rows, c)``; of a completion nothing is looked at but its prompt.
    """
    reading = backbone.reading(task.task.type)
    encoded = getattr(task, part).encoded[:count]
    if task.task.type == "causal-lm":
        encoded = [_prompt(each) for each in encoded]
    sizes = [reading.modality.num_units(each) for each in encoded]
    units = torch.split(coordinates_of(injected, reading, encoded), sizes)
    return torch.stack([each.mean(0) for each in units])


def _prompt(encoded: Tensor) -> Tensor:
    """A row up to the place that says the first token of the answer, all of it read."""
    prompt = encoded[: int(encoded[:, 1].argmax()) + 1].clone()
    prompt[:, 1] = 1
    return prompt


def _routed(router: Router, task_id: str, coordinates: Tensor) -> _Routed:
    nearest = router.probabilities(coordinates).max(dim=1)
    are_nearest = nearest.indices == router.task_ids.index(task_id)
    return _Routed(router.choose(coordinates), nearest.values, are_nearest)


def _answers(
    tasks: Mapping[str, ServedTask],
    routed: Mapping[str, _Routed],
    injected: InjectedModel,
    backbone: Backbone,
) -> dict[str, float]:
    """Share of right answers with the id and without; nothing where no task classifies rows."""
    asked: dict[str, list[tuple[str, int]]] = defaultdict(list)
    known = {name for name, each in tasks.items() if each.prepared.task.type in ROW_TYPES}
    rows = [
        (name, row, choice)
        for name in tasks
        if name in known
        for row, choice in enumerate(routed[name].choices)
    ]
    if not rows:
        return {}
    for name, row, choice in rows:
        for server in known & {name, choice}:
            asked[server].append((name, row))
    right = {
        server: _right(tasks, server, each, injected, backbone) for server, each in asked.items()
    }
    return {
        "oracle": fmean((name, row) in right[name] for name, row, _ in rows),
        "routed": fmean((name, row) in right.get(choice or "", ()) for name, row, choice in rows),
    }


def _right(
    tasks: Mapping[str, ServedTask],
    server: str,
    rows: Sequence[tuple[str, int]],
    injected: InjectedModel,
    backbone: Backbone,
) -> set[tuple[str, int]]:
    """Of some test rows, each a task's, those that one task answers rightly."""
    served = tasks[server]
    injected.set_coefficients(server, served.coefficients)
    injected.activate(server)
    encoded = [tasks[name].prepared.test.encoded[row] for name, row in rows]
    features = backbone.reading(served.prepared.task.type).features(encoded)
    said = [served.prepared.label_names[each] for each in predict(served.head, features).tolist()]
    injected.drop_task(server)
    return {
        asking
        for asking, answer in zip(rows, said, strict=True)
        if answer == _truth(tasks, *asking)
    }


def _truth(tasks: Mapping[str, ServedTask], task_id: str, row: int) -> str:
    """The class of a test row in words: tasks of the same classes can answer for each other."""
    prepared = tasks[task_id].prepared
    return prepared.label_names[int(prepared.test.labels[row])]
