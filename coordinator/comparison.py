"""What lies between two versions: which tasks came and went, how far the others moved, what turned."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from coordinator.versions import Snapshot
from share_dist.core.drift import squared_difference
from share_dist.core.linalg import largest_angle
from share_dist.core.values import SIDES, Side
from share_dist.wire.records import LayerDiff, VersionDiff


def compare(a: Snapshot, b: Snapshot) -> VersionDiff:
    """
    Say what lies between two versions.

    Args:
        a: Mostly the older one.
        b: Mostly the newer one.

    Returns:
        Sides by layer, largest angle first; every drift, of which a message tells the largest.
    """
    layers = sorted(_layer_diffs(a, b), key=lambda diff: -diff.angle)
    drift = drift_between(a, b)
    return VersionDiff(
        version_a=a.version,
        version_b=b.version,
        layers=tuple(layers),
        angle=layers[0].angle if layers else 0.0,
        added_task_ids=tuple(sorted(b.tasks.keys() - a.tasks.keys())),
        removed_task_ids=tuple(sorted(a.tasks.keys() - b.tasks.keys())),
        drift=drift,
        num_moved=sum(moved > 0 for moved in drift.values()),
    )


def drift_between(a: Snapshot, b: Snapshot) -> dict[str, float]:
    """
    Compute ``||dW(b) - dW(a)||_F``, as served, of every task that is in both versions.

    Accuracy:
        To about 1e-6 of ``||A|| ||B||``, the rounding of bases and coefficients.
    """
    task_ids = sorted(a.tasks.keys() & b.tasks.keys())
    squares = torch.zeros(len(task_ids), dtype=torch.float64)
    if task_ids:
        for name in a.subspace.layers:
            squares += _squared_drifts(a, b, task_ids, name)
    return dict(zip(task_ids, squares.sqrt().tolist(), strict=True))


def _layer_diffs(a: Snapshot, b: Snapshot) -> list[LayerDiff]:
    return [
        LayerDiff(
            layer=name,
            side=side,
            angle=largest_angle(basis.leading, b.subspace.layers[name][side].leading),
            num_factors_a=basis.num_factors,
            num_factors_b=b.subspace.layers[name][side].num_factors,
        )
        for name, layer in a.subspace.layers.items()
        for side, basis in layer
    ]


def _squared_drifts(
    a: Snapshot, b: Snapshot, task_ids: list[str], name: str
) -> Float[Tensor, " t"]:
    """Compute the squares in one layer, in orthonormal columns that span both bases."""
    before: dict[Side, Tensor] = {}
    after: dict[Side, Tensor] = {}
    changes: dict[Side, Tensor] = {}
    for side in SIDES:
        leading = [s.subspace.layers[name][side].leading.double() for s in (a, b)]
        joint = torch.linalg.qr(torch.cat(leading, dim=1)).R
        columns = joint.split([basis.shape[1] for basis in leading], dim=1)
        said = [
            basis @ _served(snapshot, task_ids, name, side)
            for snapshot, basis in zip((a, b), columns, strict=True)
        ]
        before[side], after[side] = _with_equal_pseudo_rank(*said)
        changes[side] = after[side] - before[side]
    return squared_difference(before, after, changes)


def _served(
    snapshot: Snapshot, task_ids: list[str], name: str, side: Side
) -> Float[Tensor, "t k p"]:
    """Stack the served coefficients of tasks; a smaller pseudo-rank gets columns of zeros."""
    k = snapshot.subspace.layers[name][side].num_factors
    kept = [snapshot.tasks[task_id].layers[name].coefficients[side][:k] for task_id in task_ids]
    p = max(tensor.shape[1] for tensor in kept)
    return torch.stack([pad(tensor.double(), (0, p - tensor.shape[1])) for tensor in kept])


def _with_equal_pseudo_rank(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    p = max(a.shape[-1], b.shape[-1])
    return pad(a, (0, p - a.shape[-1])), pad(b, (0, p - b.shape[-1]))
