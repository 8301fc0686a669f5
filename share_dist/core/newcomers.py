"""Newcomers: updates turned into weighted columns, so that no task owns the basis by its norm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from share_dist.core.linalg import rank_tolerance, upper_factor
from share_dist.core.temporary import factor_of
from share_dist.core.values import (
    Basis,
    LayerFactors,
    LayerSubspace,
    Metric,
    Pair,
    Side,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import BaseVersionTooOld, ShapeMismatch, UpdateRefused, VersionInFuture

_SAFE_NORMS = (1e-15, 1e15)
"""Norms of a factor between which float32 products neither overflow nor vanish."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """
    One layer of one update.

    Args:
        factors: Its raw factors, of equal norm, in the dtype of the bases.
        norm: ``||dW||_F``.
        grams: ``N_A = B.T B`` and ``N_B = A.T A``; the identity under the metric ``"factors"``.
        weights: ``w`` on each side.
        mixes: ``(p, q)`` float64; what makes of a raw factor ``F`` the weighted columns ``X = F mix``.
    """

    factors: LayerFactors
    norm: float
    grams: Pair[Tensor]
    weights: Pair[float]
    mixes: Pair[Tensor]


def check_distinct(updates: Sequence[TaskUpdate]) -> None:
    """
    Raise if an update or a task is named more than once.

    Raises:
        ShapeMismatch: With the first name that is.
    """
    for what in ("update_id", "task_id"):
        names = [getattr(update, what) for update in updates]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ShapeMismatch(
                f"{what} {min(twice)!r} is in this merge {names.count(min(twice))} times: "
                "merge one update per task, the next one in the next merge"
            )


def base_of(subspace: Subspace, update: TaskUpdate, bases: Mapping[int, Subspace]) -> Subspace:
    """
    Find the subspace that an update was trained against.

    Raises:
        BaseVersionTooOld: It is older than every version in ``bases``.
        VersionInFuture: It does not exist yet.
    """
    if update.base_version == subspace.version:
        return subspace
    if update.base_version > subspace.version:
        raise VersionInFuture(
            f"update {update.update_id} for task {update.task_id!r} was trained on version "
            f"{update.base_version}, now is {subspace.version}: it belongs to another coordinator",
            version=update.base_version,
            current_version=subspace.version,
        )
    if update.base_version not in bases:
        first = min(bases, default=subspace.version)
        raise BaseVersionTooOld(
            f"update {update.update_id} for task {update.task_id!r} was trained on version "
            f"{update.base_version}, the oldest that can still be merged is {first}, now is "
            f"{subspace.version}: pull version {subspace.version}, rebase and push again",
            base_version=update.base_version,
            first_version=first,
            current_version=subspace.version,
        )
    return bases[update.base_version]


def require_layers(subspace: Subspace, update: TaskUpdate) -> None:
    """
    Raise unless an update covers every layer of a subspace, and no other.

    Raises:
        ShapeMismatch: With the first layer that differs.
    """
    if update.layers.keys() != subspace.layers.keys():
        different = min(update.layers.keys() ^ subspace.layers.keys())
        holder = "the update" if different in update.layers else "the subspace"
        raise ShapeMismatch(
            f"layer {different!r} is only in {holder}: an update covers every layer of its subspace",
            layer=different,
        )


def require_fit(update: TaskUpdate, name: str, side: Side, part: SideUpdate, basis: Basis) -> None:
    """
    Raise unless one side of one layer of an update fits the basis of its base version.

    Raises:
        ShapeMismatch: With both shapes.
    """
    rows, features = part.coefficients.shape[0], part.temporary.shape[0]
    if (rows, features) != (basis.num_factors, basis.features):
        raise ShapeMismatch(
            f"update {update.update_id}, {name}, side {side}: coefficients of {rows} rows and "
            f"temporary factors of {features} features for a basis of {basis.num_factors} factors "
            f"in {basis.features} features at version {update.base_version}",
            layer=name,
            side=side,
        )


def require_equal_pseudo_rank(update: TaskUpdate, name: str, rank_a: int, rank_b: int) -> None:
    """
    Raise unless both sides of a layer of an update have the same pseudo-rank.

    Raises:
        ShapeMismatch: With both.
    """
    if rank_a != rank_b:
        raise ShapeMismatch(
            f"update {update.update_id}, {name}: pseudo-rank {rank_a} on side A and "
            f"{rank_b} on side B; both sides need the same",
            layer=name,
        )


def newcomers_of(subspace: Subspace, base: Subspace, update: TaskUpdate) -> dict[str, Newcomer]:
    """
    Form and weigh every layer of one update.

    Args:
        subspace: The current version; its layers and its metric count.
        base: The version that the update was trained against.
        update: The update.

    Raises:
        ShapeMismatch: It does not cover the layers, or does not fit ``base``.
        UpdateRefused: It changes nothing in some layer.
    """
    require_layers(subspace, update)
    return {
        name: _newcomer_of(name, base.layers[name], update, subspace.metric)
        for name in update.layers
    }


def _newcomer_of(name: str, base: LayerSubspace, update: TaskUpdate, metric: Metric) -> Newcomer:
    for side, part in update.layers[name]:
        require_fit(update, name, side, part, base[side])
    a, b = (_normed(base[side], part) for side, part in update.layers[name])
    units, norms = LayerFactors(a[0], b[0]), Pair(a[1], b[1])
    require_equal_pseudo_rank(update, name, units.a.shape[1], units.b.shape[1])
    return _weigh(name, units, norms, update, metric)


def _normed(basis: Basis, part: SideUpdate) -> tuple[Tensor, float]:
    """Form one factor in the basis's dtype, scaled to norm one, and its norm."""
    factor = factor_of(basis.leading, _in(part, basis.vectors.dtype))
    norm = float(torch.linalg.matrix_norm(factor))
    if not _SAFE_NORMS[0] < norm < _SAFE_NORMS[1]:
        factor = factor_of(basis.leading.double(), in_double(part))
        norm = float(torch.linalg.matrix_norm(factor))
    return (factor / norm if norm > 0 else factor).to(basis.vectors.dtype), norm


def in_double(part: SideUpdate) -> SideUpdate:
    """Say one side of an update in float64."""
    return _in(part, torch.float64)


def _in(part: SideUpdate, dtype: torch.dtype) -> SideUpdate:
    return SideUpdate(
        part.coefficients.to(dtype), part.temporary.to(dtype), part.temporary_coefficients.to(dtype)
    )


def _weigh(
    name: str, units: LayerFactors, norms: Pair[float], update: TaskUpdate, metric: Metric
) -> Newcomer:
    """Weigh one layer, so that no task owns the basis by its norm alone."""
    # With B = Q R, the columns A R.T have the second moment A (B.T B) A.T = dW.T dW, as
    # A (B.T B)^(1/2) has; a QR keeps the digits that a root of a Gram matrix loses.
    upper_a, upper_b = (upper_factor(unit) for _, unit in units)
    share = float(torch.linalg.matrix_norm(upper_b @ upper_a.mT))
    scale = norms.a * norms.b
    rounding = math.prod(rank_tolerance(unit.dtype, unit.shape[0]) ** 0.5 for _, unit in units)
    _require_a_change(name, update, share * scale, rounding * scale)
    # equal norms: their product may fit into float32 where one factor alone does not
    factors = LayerFactors(units.a * scale**0.5, units.b * scale**0.5)
    if metric == "factors":
        identity = torch.eye(units.a.shape[1], dtype=torch.float64, device=units.a.device)
        grams, square, mixes = Pair(identity, identity), scale, Pair(identity, identity)
    else:
        grams = Pair(scale * (upper_b.mT @ upper_b), scale * (upper_a.mT @ upper_a))
        square, mixes = (share * scale) ** 2, Pair(upper_b.mT / share, upper_a.mT / share)
    weight, length = update.weight / square, (update.weight / scale) ** 0.5
    return Newcomer(
        factors,
        share * scale,
        grams,
        Pair(weight, weight),
        Pair(mixes.a * length, mixes.b * length),
    )


def _require_a_change(name: str, update: TaskUpdate, norm: float, rounding: float) -> None:
    if not (rounding < norm and norm**2 < math.inf):
        raise UpdateRefused(
            f"update {update.update_id} for task {update.task_id!r} changes layer {name!r} by a dW of "
            f"norm {norm:.3g}, where rounding alone is {rounding:.3g}: train it, or leave "
            "this task out",
            update_id=update.update_id,
            task_id=update.task_id,
            reason="norm",
        )
