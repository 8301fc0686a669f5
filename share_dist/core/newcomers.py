"""Newcomers: updates turned into weighted columns, so that no task owns the basis by its norm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from share_dist.core.linalg import rank_tolerance
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


@dataclass(frozen=True, slots=True)
class Newcomer:
    """
    One layer of one update, in float64.

    Args:
        factors: Its raw factors.
        grams: ``N_A = B.T B`` and ``N_B = A.T A``; the identity under the metric ``"factors"``.
        weights: ``w`` on each side.
        columns: ``X``; the metric factors, each scaled by ``sqrt(w)``.
    """

    factors: LayerFactors
    grams: Pair[Tensor]
    weights: Pair[float]
    columns: Pair[Tensor]


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
    sides = []
    for side, part in update.layers[name]:
        require_fit(update, name, side, part, base[side])
        sides.append(factor_of(base[side].leading.double(), in_double(part)))
    factors = LayerFactors(*sides)
    require_equal_pseudo_rank(update, name, factors.a.shape[1], factors.b.shape[1])
    return _weigh(name, factors, update, metric, base.a.vectors.dtype)


def in_double(part: SideUpdate) -> SideUpdate:
    """Say one side of an update in float64."""
    return SideUpdate(
        part.coefficients.double(), part.temporary.double(), part.temporary_coefficients.double()
    )


def delta_norm(factors: LayerFactors) -> float:
    """
    Measure ``||dW||_F = ||B A.T||_F`` without forming it.

    Accuracy:
        Through the QR of both factors in float64: relative to
        ``||B|| ||A||``, also where the product nearly cancels.

    Examples:
        >>> delta_norm(LayerFactors(torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0]])))
        10.0
    """
    upper_a, upper_b = (torch.linalg.qr(factor.double()).R for _, factor in factors)
    return float(torch.linalg.matrix_norm(upper_b @ upper_a.mT))


def _balanced(factors: LayerFactors) -> LayerFactors:
    """Give both factors the same norm: their product may fit into float32 where one alone does not."""
    norms = Pair(*(float(torch.linalg.matrix_norm(factor)) for _, factor in factors))
    scale = math.sqrt(norms.b / norms.a)
    return LayerFactors(factors.a * scale, factors.b / scale)


def _weigh(
    name: str, factors: LayerFactors, update: TaskUpdate, metric: Metric, dtype: torch.dtype
) -> Newcomer:
    """Weigh one layer, so that no task owns the basis by its norm alone."""
    square = delta_norm(factors) ** 2
    rounding = math.prod(
        rank_tolerance(dtype, factor.shape[0]) ** 0.5 * float(torch.linalg.matrix_norm(factor))
        for _, factor in factors
    )
    if not (rounding < square**0.5 and square < math.inf):
        raise UpdateRefused(
            f"update {update.update_id} for task {update.task_id!r} changes layer {name!r} by a dW of "
            f"norm {square**0.5:.3g}, where rounding alone is {rounding:.3g}: train it, or leave "
            "this task out",
            update_id=update.update_id,
            task_id=update.task_id,
            reason="norm",
        )
    factors = _balanced(factors)
    if metric == "factors":
        squares = Pair(float(factors.a.square().sum()), float(factors.b.square().sum()))
        identity = torch.eye(factors.a.shape[1], dtype=torch.float64, device=factors.a.device)
        grams, metric_factors = Pair(identity, identity), Pair(factors.a, factors.b)
    else:
        # With B = Q R, the columns A R.T have the second moment A (B.T B) A.T = dW.T dW, as
        # A (B.T B)^(1/2) has; a QR keeps the digits that a root of a Gram matrix loses.
        upper_a, upper_b = (torch.linalg.qr(factor).R for _, factor in factors)
        grams = Pair(upper_b.mT @ upper_b, upper_a.mT @ upper_a)
        metric_factors = Pair(factors.a @ upper_b.mT, factors.b @ upper_a.mT)
        squares = Pair(square, square)
    weights = Pair(update.weight / squares.a, update.weight / squares.b)
    columns = Pair(
        metric_factors.a * weights.a**0.5,
        metric_factors.b * weights.b**0.5,
    )
    return Newcomer(factors, grams, weights, columns)
