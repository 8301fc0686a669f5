"""
Fusion: what several coordinators have learnt becomes one subspace, so that coordinators can form a tree.

All that a coordinator remembers of one side of one layer is ``G_i = V_i diag(l_i) V_i.T``, the second
moment of its tasks. Different tasks beside each other simply add up, and so do their moments::

    G = G_1 + G_2 + ...  =  Z Z.T          Z = [ V_1 diag(sqrt(l_1))   V_2 diag(sqrt(l_2))   ... ]
    Z = U diag(sigma) W.T                  V = U[:, :m]     l = sigma[:m] ** 2
    E_t <- V.T V_i E_t                     for every task t of coordinator i

That is a merge in which whole subspaces arrive: nothing is lost but what the truncation cuts.

Source: the merge of sketches, Ghashami et al., 2016, with plain truncation instead of shrinkage.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from share_dist.core.account import TakenOut, kept_energy
from share_dist.core.drift import squared_difference
from share_dist.core.linalg import rank_tolerance, thin_svd
from share_dist.core.outcome import SideReport
from share_dist.core.sides import MergedSide, SideSpectrum
from share_dist.core.table import TaskTable
from share_dist.core.truncation import Truncation
from share_dist.core.values import (
    SIDES,
    Basis,
    Fingerprint,
    LayerCoefficients,
    LayerFactors,
    LayerSubspace,
    MergedLayer,
    MergedTask,
    Pair,
    Side,
    Subspace,
)
from share_dist.errors import FingerprintMismatch, ShapeMismatch


@dataclass(frozen=True)
class Sketch:
    """
    What one coordinator has learnt.

    Args:
        subspace: One of its versions, with the oversampled tail.
        tasks: Every task that is merged in it.
        fingerprint: What both belong to.
    """

    subspace: Subspace
    tasks: Mapping[str, MergedTask]
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Fusion:
    """
    Several sketches as one.

    Args:
        sketch: The subspace of them all, one version later than the latest of theirs, and
            all their tasks said in it.
        layers: Layer name -> what happened to both sides.
        drift: Task -> ``||dW(after) - dW(before)||_F`` over all layers, as served.
    """

    sketch: Sketch
    layers: Mapping[str, Pair[SideReport]]
    drift: Mapping[str, float]


def merge_subspaces(
    sketches: Sequence[Sketch],
    num_factors: int | None = None,
    energy: float | None = None,
    *,
    oversample: int = 0,
    max_bytes: int | None = None,
) -> Fusion:
    """
    Merge what several coordinators have learnt into one subspace.

    Args:
        sketches: At least one; no task is in two of them. Their order does not matter but for rounding.
        num_factors: ``k``; None keeps all that they have.
        energy: Instead, or as well: the least ``k`` per side that explains this share of
            the energy of everything merged, what was cut before included.
        oversample: ``o``; columns kept beyond ``k`` for the sake of later merges.
        max_bytes: As ``merge`` takes it.

    Returns:
        A sketch that goes on like any other: it can be merged into, tasks can be removed from it, and
        it can be merged with others. With it, how far every task moved.

    Accuracy:
        Exact but for what is cut, whose energy is in the report, and for directions of less than
        ``eps * sqrt(d)`` of the largest singular value, which are rounding.

    Raises:
        ShapeMismatch: There is no sketch, or two of them hold a task of the same name.
        FingerprintMismatch: They do not belong to the same model, layers and metric.
        ConfigError: An option is out of range, or ``max_bytes`` do not hold a factor of every side.
    """
    truncation = Truncation(num_factors, energy, oversample, max_bytes=max_bytes)
    _require_together(sketches)
    stacks = {
        name: Pair(*(_stacked([sketch.subspace.layers[name][side] for sketch in sketches]) for side in SIDES))
        for name in sketches[0].subspace.layers
    }  # fmt: skip
    chosen = truncation.choose_all(stacks, {} if max_bytes is None else _importance(sketches))
    merged = {
        name: Pair(*(side.cut(*chosen[name][which]) for which, side in stack))
        for name, stack in stacks.items()
    }
    fused = Subspace(
        {name: LayerSubspace(both.a.basis, both.b.basis) for name, both in merged.items()},
        version=1 + max(sketch.subspace.version for sketch in sketches),
        metric=sketches[0].subspace.metric,
    )
    since = [_cut_since_the_first(sketch) for sketch in sketches]
    tasks: dict[str, MergedTask] = {}
    drift: dict[str, float] = {}
    for index, sketch in enumerate(sketches):
        others = [*since[:index], *since[index + 1 :]]
        for task_id, task in sketch.tasks.items():
            tasks[task_id] = _said_in(fused, task, sketch.subspace, merged, others)
            drift[task_id] = _moved(task, sketch.subspace, tasks[task_id], fused)
    reports = {name: Pair(both.a.report, both.b.report) for name, both in merged.items()}
    return Fusion(
        Sketch(fused, dict(sorted(tasks.items())), sketches[0].fingerprint),
        reports,
        dict(sorted(drift.items())),
    )


def _require_together(sketches: Sequence[Sketch]) -> None:
    if not sketches:
        raise ShapeMismatch("no sketch was given to be merged: give at least one")
    first = sketches[0]
    for index, sketch in enumerate(sketches):
        _require_own_subspace(sketch, index)
        try:
            first.fingerprint.require(sketch.fingerprint)
        except FingerprintMismatch as error:
            raise FingerprintMismatch(
                f"sketches 0 and {index} cannot be merged, {error.details['field']} differs: "
                f"{error.details['expected']} and {error.details['found']}. Merge sketches of one "
                "base model, with the same layers and metric",
                **error.details,
            ) from error
    holders = Counter(task_id for sketch in sketches for task_id in sketch.tasks)
    twice = min((task_id for task_id, count in holders.items() if count > 1), default=None)
    if twice is not None:
        raise ShapeMismatch(
            f"task {twice!r} is in {holders[twice]} of the sketches: its energy would count as often. "
            "Remove it from all but one of them first, or let it be merged under another name"
        )


def _require_own_subspace(sketch: Sketch, index: int) -> None:
    own = replace(sketch.fingerprint, layers=sketch.subspace.shapes, metric=sketch.subspace.metric)
    if own != sketch.fingerprint:
        raise ShapeMismatch(
            f"the fingerprint of sketch {index} says metric {sketch.fingerprint.metric!r} and "
            f"{len(sketch.fingerprint.layers)} layers, its subspace has metric {own.metric!r} and "
            f"{len(own.layers)} layers or other features: give each subspace its own fingerprint"
        )


def _importance(sketches: Sequence[Sketch]) -> Mapping[str, float]:
    """Layer name -> its share in the squared size of each task, summed by weight over the tasks of all."""
    found: dict[str, float] = defaultdict(float)
    for sketch in sketches:
        table = TaskTable.of(sketch.tasks, sketch.subspace.version)
        for name, claim in table.claims(()).items():
            found[name] += claim
    return {name: found[name] if found else 1.0 for name in sketches[0].subspace.layers}


def _stacked(bases: Sequence[Basis]) -> SideSpectrum:
    """Decompose the columns of all bases, each as long as the root of its energy."""
    vectors = torch.cat([basis.vectors for basis in bases], dim=1)
    energies = torch.cat([basis.energies for basis in bases]).to(vectors.device)
    U, sigma, _ = thin_svd(vectors.double() * energies.sqrt())
    features = vectors.shape[0]
    floor = rank_tolerance(vectors.dtype, features) * sigma.amax() if len(sigma) else 0.0
    before = Basis.empty(features, vectors.dtype)
    return SideSpectrum(
        old=replace(before, cut_energy=math.fsum(basis.cut_energy for basis in bases)),
        directions=U.to(vectors.dtype),
        matrix=torch.eye(len(sigma), dtype=torch.float64, device=U.device),
        sigma=sigma,
        said=vectors.new_zeros(len(sigma), 0),
        rank=int((sigma > floor).sum()),
        taken_out=TakenOut(),
        past=vectors.new_zeros(0, 0, dtype=torch.float64),
    )


def _cut_since_the_first(sketch: Sketch) -> dict[str, Pair[float]]:
    """Find what was cut since the earliest task of a sketch came: layer name -> both sides."""
    return {
        name: Pair(*(
            max((task.layers[name].cut_meanwhile[side] for task in sketch.tasks.values()), default=0.0)
            for side in SIDES
        ))
        for name in sketch.subspace.layers
    }  # fmt: skip


def _said_in(
    fused: Subspace,
    task: MergedTask,
    own: Subspace,
    merged: Mapping[str, Pair[MergedSide]],
    others: Sequence[Mapping[str, Pair[float]]],
) -> MergedTask:
    """Say a task of one sketch in the columns of all."""
    layers = {}
    for name, layer in task.layers.items():
        a, b = (
            _side_said_in(
                merged[name][side],
                own.layers[name][side],
                layer,
                side,
                # tasks of several sketches may be taken out together: then the cuts of all count
                math.fsum(each[name][side] for each in others),
            )
            for side in SIDES
        )
        layers[name] = MergedLayer(
            LayerCoefficients(a[0], b[0]),
            layer.grams,
            layer.weights,
            Pair(a[1], b[1]),
            Pair(a[2], b[2]),
        )
    return MergedTask(task.task_id, fused.version, layers)


def _side_said_in(
    merged: MergedSide, own: Basis, layer: MergedLayer, side: Side, cut_of_others: float
) -> tuple[Tensor, float, float]:
    """Say one side of a task in the columns of all, with its account of what was cut."""
    factor = own.vectors.double() @ layer.coefficients[side].double()
    coefficients = (merged.basis.vectors.double().mT @ factor).to(merged.basis.vectors.dtype)
    lost = (merged.rotation.directions.double() @ merged.lost).mT @ factor
    cut = layer.weights[side] * float(kept_energy(lost, layer.grams[side]))
    return (
        coefficients,
        layer.cut_energy[side] + cut,
        layer.cut_meanwhile[side] + merged.cut_moment + cut_of_others,
    )


def _moved(task: MergedTask, own: Subspace, said: MergedTask, fused: Subspace) -> float:
    """Measure how far a task moves, as served, over all layers."""
    return math.sqrt(
        math.fsum(
            _squared_move(
                _served(task.layers[name], own.layers[name]),
                _served(said.layers[name], fused.layers[name]),
            )
            for name in task.layers
        )
    )


def _served(layer: MergedLayer, bases: LayerSubspace) -> LayerFactors:
    """Form the factors that the leading columns say, in float64."""
    return LayerFactors(*(
        basis.leading.double() @ layer.coefficients[side][: basis.num_factors].double()
        for side, basis in bases
    ))  # fmt: skip


def _squared_move(before: LayerFactors, after: LayerFactors) -> float:
    change = {side: factor - before[side] for side, factor in after}
    return float(squared_difference(dict(before), dict(after), change))
