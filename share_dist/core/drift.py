"""Drift: how a merge carries the tasks over, and the certificate of how far each one moved."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.account import kept_energy
from share_dist.core.newcomers import Newcomer, delta_norm
from share_dist.core.outcome import SideRotation
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


@dataclass(frozen=True, slots=True)
class SideTurn:
    """
    How one side of one layer gets to the next version, as its tasks see it.

    Args:
        rotation: Says old columns in new ones.
        lost: ``(m + q, c)``; what the merge cuts, in the columns ``[V Q]``.
        cut_moment: Norm of the second moment that it cuts of all tasks.
        residue: What the tasks that it takes out add to the account of those that stay.
    """

    rotation: SideRotation
    lost: Tensor
    cut_moment: float
    residue: float


def rotate_tasks(
    tasks: Mapping[str, MergedTask],
    old: Subspace,
    new: Subspace,
    turns: Mapping[str, Pair[SideTurn]],
) -> tuple[dict[str, MergedTask], dict[str, float]]:
    """
    Say every old task in the new columns, and certify how far each one moved.

    Args:
        tasks: In the columns of ``old``.
        old: The version before.
        new: The next one.
        turns: Layer name -> how each side gets there.
    """
    layers: dict[str, dict[str, MergedLayer]] = defaultdict(dict)
    squares: dict[str, float] = dict.fromkeys(tasks, 0.0)
    for name, both in turns.items():
        for members in by_pseudo_rank(tasks, name):
            before = [tasks[task].layers[name] for task in members]
            held, turned = _turn(before, both)
            moved = _squared_drift(held, turned, both, old.layers[name], new.layers[name])
            for task, layer, square in zip(
                members, _settled(before, held, turned, both), moved.tolist(), strict=True
            ):
                layers[task][name] = layer
                squares[task] += square
    rotated = {task: MergedTask(task, new.version, layers[task]) for task in tasks}
    return rotated, {task: square**0.5 for task, square in squares.items()}


def by_pseudo_rank(tasks: Mapping[str, MergedTask], name: str) -> list[list[str]]:
    """Group tasks that can be computed with as one batch in a layer."""
    groups: dict[int, list[str]] = defaultdict(list)
    for task_id, task in tasks.items():
        groups[task.layers[name].coefficients.pseudo_rank].append(task_id)
    return list(groups.values())


def _turn(
    layers: Sequence[MergedLayer], turns: Pair[SideTurn]
) -> tuple[Pair[Tensor], Pair[Tensor]]:
    """Stack the coefficients of tasks, ``(t, m, p)`` float64, and say them in the new columns."""
    held = Pair(*(
        torch.stack([layer.coefficients[side] for layer in layers]).double() for side in SIDES
    ))  # fmt: skip
    turned = Pair(*(
        turn.rotation.matrix[: held[side].shape[1]].mT @ held[side] for side, turn in turns
    ))  # fmt: skip
    return held, turned


def _settled(
    layers: Sequence[MergedLayer], held: Pair[Tensor], turned: Pair[Tensor], turns: Pair[SideTurn]
) -> Iterator[MergedLayer]:
    """Say tasks in the new columns, each with its account of what was cut."""
    cuts = Pair(*(_cuts(layers, side, held[side], turn.lost) for side, turn in turns))
    moments = Pair(*(turn.cut_moment + turn.residue for _, turn in turns))
    for index, layer in enumerate(layers):
        yield MergedLayer(
            LayerCoefficients(
                turned.a[index].to(layer.coefficients.a.dtype),
                turned.b[index].to(layer.coefficients.b.dtype),
            ),
            layer.grams,
            layer.weights,
            Pair(layer.cut_energy.a + cuts.a[index], layer.cut_energy.b + cuts.b[index]),
            Pair(layer.cut_meanwhile.a + moments.a, layer.cut_meanwhile.b + moments.b),
        )


def _cuts(
    layers: Sequence[MergedLayer], side: Side, held: Float[Tensor, "t m p"], lost: Tensor
) -> list[float]:
    """Find the energy that a merge cuts of each task."""
    if lost.shape[1] == 0:
        return [0.0] * len(layers)
    grams = torch.stack([layer.grams[side] for layer in layers])
    weights = grams.new_tensor([layer.weights[side] for layer in layers])
    cut: list[float] = (weights * kept_energy(lost[: held.shape[1]].mT @ held, grams)).tolist()
    return cut


def _squared_drift(
    held: Pair[Tensor],
    turned: Pair[Tensor],
    turns: Pair[SideTurn],
    old: LayerSubspace,
    new: LayerSubspace,
) -> Float[Tensor, " t"]:
    """
    Compute ``||dW(after) - dW(before)||_F^2`` of each task, as served, in one layer.

    In the orthonormal columns ``[V Q]`` both are small, so it is exact.
    """
    old_factors: dict[Side, Tensor] = {}
    new_factors: dict[Side, Tensor] = {}
    changes: dict[Side, Tensor] = {}
    for side, E in held:
        U, k_old, k_new = turns[side].rotation.matrix, old[side].num_factors, new[side].num_factors
        was = E.new_zeros(E.shape[0], U.shape[0], E.shape[2])
        was[:, :k_old] = E[:, :k_old]
        said = U[:, :k_new] @ turned[side][:, :k_new]
        old_factors[side], new_factors[side], changes[side] = was, said, said - was
    return squared_difference(old_factors, new_factors, changes)


def settle(
    update: TaskUpdate,
    newcomers: Mapping[str, Newcomer],
    new: Subspace,
    cuts: Mapping[str, Pair[float]],
    turns: Mapping[str, Pair[SideTurn]],
) -> tuple[MergedTask, float]:
    """
    Say a new task in the new columns, and measure what of its ``dW`` the served ones lose.

    Args:
        update: The update.
        newcomers: Its layers as weighted columns.
        new: The next version.
        cuts: Layer name -> energy that the merge cuts of it on each side.
        turns: Layer name -> what the merge cuts of all tasks.
    """
    layers, lost, whole = {}, 0.0, 0.0
    for name, layer in newcomers.items():
        bases = new.layers[name]
        coefficients = LayerCoefficients(*(
            (bases[side].vectors.double().mT @ factor).to(bases[side].vectors.dtype)
            for side, factor in layer.factors
        ))  # fmt: skip
        for side, tensor in coefficients:
            check_finite(tensor, name, side)
        moments = Pair(turns[name].a.cut_moment, turns[name].b.cut_moment)
        layers[name] = MergedLayer(coefficients, layer.grams, layer.weights, cuts[name], moments)
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
