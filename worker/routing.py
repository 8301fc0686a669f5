"""Routing for a worker: coordinates of its rows, and a router fitted to them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from share_dist.adapters import InjectedModel
from share_dist.core.routing import Router, abstention_bounds, calibrated_temperature
from share_dist.errors import WorkerError
from worker.backbone import SCORING_BATCH, Backbone

TEMPERATURES = tuple(2.0**power for power in range(8))
"""Among which one is chosen: coordinates of different layers say much the same, so that distances overstate."""

KEPT_SHARE = 0.95
"""Share of the tasks' own held-out rows that lie near enough to one task, and to no other, to be taken for its."""


@torch.no_grad()
def coordinates_of(injected: InjectedModel, backbone: Backbone, rows: Sequence[Tensor]) -> Tensor:
    """
    Where inputs lie in the subspace, as the frozen model's layers are given them.

    Args:
        injected: The frozen model with the subspace in it.
        backbone: The same model: makes batches, and one vector of a row's tokens.
        rows: Prepared inputs.

    Returns:
        ``(rows, c)``.
    """
    was_training = backbone.model.training
    backbone.model.eval()
    pieces = []
    with injected.watch_coordinates() as last:
        for at in range(0, len(rows), SCORING_BATCH):
            batch = backbone.modality.collate(rows[at : at + SCORING_BATCH])
            backbone.pooled(rows[at : at + SCORING_BATCH])
            seen = SimpleNamespace(last_hidden_state=last().cpu())
            pieces.append(backbone.modality.pool(seen, batch))
    backbone.model.train(was_training)
    return torch.cat(pieces)


def fit_router(fit: Mapping[str, Tensor], held_out: Mapping[str, Tensor]) -> Router:
    """
    Fit a router to coordinates of tasks' rows.

    The covariance within tasks is shrunk as Ledoit and Wolf say. What is calibrated
    is calibrated on rows that nothing was fitted to: how sure a choice is, and how far is too far or how sure not enough.

    Args:
        fit: Task -> ``(rows, c)`` to fit to.
        held_out: The same tasks' other rows.

    Raises:
        WorkerError: No task, or one without rows of either kind or with a number in them that is not finite.
    """
    from sklearn.covariance import ledoit_wolf

    _require_rows(fit, held_out)
    task_ids = tuple(fit)
    center = torch.cat(list(fit.values())).double().mean(0)
    means = torch.stack([fit[each].double().mean(0) - center for each in task_ids])
    within = torch.cat([each.double() - each.double().mean(0) for each in fit.values()])
    covariance = torch.from_numpy(ledoit_wolf(within.numpy(), assume_centered=True)[0])
    values, vectors = torch.linalg.eigh(covariance)
    whitening = vectors / values.clamp_min(1e-12 * float(values[-1])).sqrt()
    router = Router(task_ids, means @ whitening, whitening, center, 1.0, float("inf"), 0.0)
    distances = torch.cat([router.distances(held_out[each]) for each in task_ids])
    truth = [number for number, each in enumerate(task_ids) for _ in held_out[each]]
    router = replace(router, temperature=calibrated_temperature(distances, truth, TEMPERATURES))
    sure = torch.cat([router.probabilities(held_out[each]) for each in task_ids]).amax(dim=1)
    farthest, least_sure = abstention_bounds(distances.amin(dim=1), sure, KEPT_SHARE)
    return replace(router, farthest=farthest, least_sure=least_sure)


def _require_rows(fit: Mapping[str, Tensor], held_out: Mapping[str, Tensor]) -> None:
    if not fit:
        raise WorkerError("a router needs at least one task to choose, got none")
    if fit.keys() != held_out.keys():
        odd = ", ".join(sorted(fit.keys() ^ held_out.keys()))
        raise WorkerError(f"a router needs rows to fit to and held-out rows of each task: {odd} has one kind alone")  # fmt: skip
    for part, what in ((fit, "to fit to"), (held_out, "held out")):
        for task_id, rows in part.items():
            if not len(rows):
                raise WorkerError(f"a router needs rows of each task: none of {task_id} are {what}")
            if not rows.isfinite().all():
                raise WorkerError(f"coordinates of {task_id} {what} are not all finite: look for rows that the frozen model overflows on")  # fmt: skip


def shares_right(router: Router, coordinates: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of each task's rows that are taken for that task's."""
    return {
        task_id: sum(each == task_id for each in router.choose(rows)) / len(rows)
        for task_id, rows in coordinates.items()
    }
