"""Drift: how a merge carries the tasks over, and the certificate of how far each one moved."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.newcomers import Newcomer, delta_norm
from share_dist.core.outcome import LayerRotation
from share_dist.core.values import (
    SIDES,
    LayerCoefficients,
    LayerFactors,
    LayerSubspace,
    MergedLayer,
    MergedTask,
    Pair,
    Side,
    Subspace,
    TaskUpdate,
    check_finite,
)


def rotate_tasks(
    tasks: Mapping[str, MergedTask],
    old: Subspace,
    new: Subspace,
    rotation: Mapping[str, LayerRotation],
) -> tuple[dict[str, MergedTask], dict[str, float]]:
    """Say every old task in the new columns, and certify how far each one moved."""
    layers: dict[str, dict[str, MergedLayer]] = defaultdict(dict)
    squares: dict[str, float] = dict.fromkeys(tasks, 0.0)
    for name, turn in rotation.items():
        for members in _by_pseudo_rank(tasks, name):
            before = Pair(*(
                torch.stack([tasks[task].layers[name].coefficients[side] for task in members])
                for side in SIDES
            ))  # fmt: skip
            after = Pair(turn.a.rotate(before.a), turn.b.rotate(before.b))
            moved = _squared_drift(before, turn, old.layers[name], new.layers[name])
            for index, task in enumerate(members):
                layers[task][name] = replace(
                    tasks[task].layers[name],
                    coefficients=LayerCoefficients(after.a[index].clone(), after.b[index].clone()),
                )
                squares[task] += float(moved[index])
    rotated = {task: MergedTask(task, new.version, layers[task]) for task in tasks}
    return rotated, {task: square**0.5 for task, square in squares.items()}


def _by_pseudo_rank(tasks: Mapping[str, MergedTask], name: str) -> list[list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for task_id, task in tasks.items():
        groups[task.layers[name].coefficients.pseudo_rank].append(task_id)
    return list(groups.values())


def _squared_drift(
    before: Pair[Tensor], turn: LayerRotation, old: LayerSubspace, new: LayerSubspace
) -> Float[Tensor, " t"]:
    """
    Compute ``||dW(after) - dW(before)||_F^2`` of each task, as served, in one layer.

    In the orthonormal columns ``[V Q]`` both are small, so it is exact.
    """
    old_factors: dict[Side, Tensor] = {}
    new_factors: dict[Side, Tensor] = {}
    changes: dict[Side, Tensor] = {}
    for side, coefficients in before:
        U = turn[side].matrix
        leading = U[:, : new[side].num_factors]
        E = coefficients.double()
        held = E.new_zeros(E.shape[0], U.shape[0], E.shape[2])
        held[:, : old[side].num_factors] = E[:, : old[side].num_factors]
        said = leading @ (leading[: E.shape[1]].mT @ E)
        old_factors[side], new_factors[side], changes[side] = held, said, said - held

    return squared_difference(old_factors, new_factors, changes)


def settle(
    update: TaskUpdate, newcomers: Mapping[str, Newcomer], new: Subspace
) -> tuple[MergedTask, float]:
    """Say a new task in the new columns, and measure what of its ``dW`` the served ones lose."""
    layers, lost, whole = {}, 0.0, 0.0
    for name, layer in newcomers.items():
        bases = new.layers[name]
        coefficients = LayerCoefficients(*(
            (bases[side].vectors.double().mT @ factor).to(bases[side].vectors.dtype)
            for side, factor in layer.factors
        ))  # fmt: skip
        for side, tensor in coefficients:
            check_finite(tensor, name, side)
        layers[name] = MergedLayer(coefficients, layer.grams, layer.weights)
        lost += _squared_loss(layer.factors, coefficients, bases)
        whole += delta_norm(layer.factors) ** 2
    return MergedTask(update.task_id, new.version, layers), (lost / whole) ** 0.5


def _squared_loss(
    factors: LayerFactors, coefficients: LayerCoefficients, layer: LayerSubspace
) -> float:
    """Compute ``||B A.T - B^ A^.T||_F^2`` for the projections ``A^, B^`` on the served factors."""
    said: dict[Side, Tensor] = {}
    changes: dict[Side, Tensor] = {}
    for side, factor in factors:
        k = layer[side].num_factors
        said[side] = layer[side].leading.double() @ coefficients[side][:k].double()
        changes[side] = said[side] - factor
    return float(squared_difference({"a": factors.a, "b": factors.b}, said, changes))


def squared_difference(
    old: Mapping[Side, Tensor], new: Mapping[Side, Tensor], change: Mapping[Side, Tensor]
) -> Float[Tensor, "*t"]:
    """
    Compute ``||B_new A_new.T - B_old A_old.T||_F^2`` from ``p x p`` products.

    The difference is split as ``dB A_new.T + B_old dA.T``, which does not
    cancel when it is far below the norm of either product.
    """
    square: Tensor = (
        (change["b"].mT @ change["b"]) * (new["a"].mT @ new["a"])
        + 2 * (change["b"].mT @ old["b"]) * (new["a"].mT @ change["a"])
        + (old["b"].mT @ old["b"]) * (change["a"].mT @ change["a"])
    )
    summed: Tensor = square.sum(dim=(-2, -1))
    return summed.clamp_min(0.0)
