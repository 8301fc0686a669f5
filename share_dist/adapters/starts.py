"""Starts: the values with which a task begins to train, or goes on in another version."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from share_dist.core.gradient import aligned_coefficients, leading_outside, num_temporary_for
from share_dist.core.rebase import rebase_side
from share_dist.core.temporary import propose_temporary
from share_dist.core.values import (
    Coefficients,
    LayerCoefficients,
    LayerShape,
    LayerUpdate,
    SideUpdate,
    Subspace,
)
from share_dist.errors import (
    BaseVersionTooOld,
    NotFinite,
    RankTooLarge,
    ShapeMismatch,
    VersionInFuture,
)


def cold_start(
    subspace: Subspace, pseudo_rank: int, num_temporary: int, generator: torch.Generator
) -> dict[str, LayerUpdate]:
    """
    Start a task that computes exactly what the base computes.

    Side A is random, side B is zero: ``dW = 0``, and yet the first gradient
    reaches side B's coefficients and those of its temporary factors (both
    sides zero would be a saddle). A column of side A has the norm that LoRA
    gives it, ``1 / sqrt(3)`` in expectation.

    Args:
        subspace: The bases.
        pseudo_rank: ``p``.
        num_temporary: ``f``.
        generator: On the CPU; the same seed gives the same start.

    Raises:
        RankTooLarge: A side has no ``num_temporary`` directions left.
    """
    return {
        name: LayerUpdate(
            _random_side(layer.a.leading, pseudo_rank, num_temporary, generator),
            _zero_side(layer.b.leading, pseudo_rank, num_temporary, generator),
        )
        for name, layer in subspace.layers.items()
    }


def gradient_start(
    subspace: Subspace,
    pseudo_rank: int,
    num_temporary: int,
    gradients: Mapping[str, Tensor],
    generator: torch.Generator,
    reach: float | None = None,
) -> dict[str, LayerUpdate]:
    """
    Start a task that computes what the base computes, where its first steps lower the loss most.

    Temporary factors are the leading directions of the gradient that the bases lack; side A's
    columns are the best combinations of all directions for the gradient, with a column's usual norm. Side
    B is zero.

    Args:
        subspace: The bases.
        pseudo_rank: ``p``.
        num_temporary: ``f``; with ``reach`` the most that a layer gets.
        gradients: Layer -> gradient of the loss with respect to its weight, ``(n, d)``, at the base.
        generator: On the CPU; for what the gradient leaves open.
        reach: A layer gets only as many temporary factors as let its task follow this share of
            what a weight change of rank ``p`` could follow of the gradient; None: all.

    Raises:
        RankTooLarge: A side has no ``num_temporary`` directions left.
        ShapeMismatch: A gradient is missing, or not that of its layer.
        NotFinite: An entry of a gradient is no number.
    """
    started = {}
    for name, layer in subspace.layers.items():
        gradient = _gradient_of(name, layer.shape, gradients)
        a, b = (basis.leading.detach().cpu().float() for _, basis in layer)
        new_a = leading_outside(gradient, a, num_temporary, generator)
        new_b = leading_outside(gradient.mT, b, num_temporary, generator)
        if reach is not None:
            span_b, span_a = torch.cat([b, new_b], dim=1), torch.cat([a, new_a], dim=1)
            needed = num_temporary_for(gradient, span_b, span_a, num_temporary, pseudo_rank, reach)
            if 0 in {a.shape[1], b.shape[1]}:
                needed = max(needed, 1)
            new_a, new_b = new_a[:, :needed], new_b[:, :needed]
        started[name] = _along(gradient, (b, new_b), (a, new_a), pseudo_rank)
    return started


def _along(
    gradient: Tensor, side_b: tuple[Tensor, Tensor], side_a: tuple[Tensor, Tensor], pseudo_rank: int
) -> LayerUpdate:
    """A layer's start along its gradient; a side is its basis and its temporary factors."""
    span_b, span_a = torch.cat(side_b, dim=1), torch.cat(side_a, dim=1)
    _require_directions(span_a.shape[1])
    chosen = aligned_coefficients(gradient, span_b, span_a, pseudo_rank) / math.sqrt(3)
    zeros = torch.zeros(span_b.shape[1], pseudo_rank)
    (a, new_a), (b, new_b) = side_a, side_b
    k_a, k_b = a.shape[1], b.shape[1]
    return LayerUpdate(
        SideUpdate(chosen[:k_a], new_a, chosen[k_a:]), SideUpdate(zeros[:k_b], new_b, zeros[k_b:])
    )


def warm_start(
    subspace: Subspace, coefficients: Coefficients, num_temporary: int, generator: torch.Generator
) -> dict[str, LayerUpdate]:
    """
    Start a task that computes what its coefficients say; its temporary factors say nothing yet.

    Raises:
        BaseVersionTooOld: The coefficients are those of an older version.
        VersionInFuture: They are those of a newer one.
        ShapeMismatch: They are of other layers or of another ``k``.
    """
    _require_version(coefficients.version, subspace.version)
    _require_fit(coefficients.layers, subspace)
    return {
        name: LayerUpdate(
            *(
                _said_side(basis.leading, coefficients.layers[name][side], num_temporary, generator)
                for side, basis in layer
            )
        )
        for name, layer in subspace.layers.items()
    }


def carry_over(
    layers: Mapping[str, LayerUpdate], old: Subspace, new: Subspace
) -> dict[str, LayerUpdate]:
    """
    Say a task of one version in the next.

    Coefficients are rebased; temporary factors stay to the bit, so that training goes on with what an
    optimiser remembers of them. What the new basis says of them is taken out when the task is read.
    """
    return {
        name: LayerUpdate(
            *(
                _carried_side(
                    update, old.layers[name][side].leading, new.layers[name][side].leading
                )
                for side, update in layer
            )
        )
        for name, layer in layers.items()
    }


def _random_side(
    basis: Tensor, pseudo_rank: int, num_temporary: int, generator: torch.Generator
) -> SideUpdate:
    num_directions = basis.shape[1] + num_temporary
    _require_directions(num_directions)
    scale = 1 / math.sqrt(3 * num_directions)
    drawn = scale * torch.randn(num_directions, pseudo_rank, generator=generator)
    temporary = _propose(basis, num_temporary, generator)
    return SideUpdate(drawn[: basis.shape[1]], temporary, drawn[basis.shape[1] :])


def _zero_side(
    basis: Tensor, pseudo_rank: int, num_temporary: int, generator: torch.Generator
) -> SideUpdate:
    zeros = torch.zeros(basis.shape[1], pseudo_rank)
    return _said_side(basis, zeros, num_temporary, generator)


def _said_side(
    basis: Tensor, coefficients: Tensor, num_temporary: int, generator: torch.Generator
) -> SideUpdate:
    return SideUpdate(
        coefficients=coefficients.detach().cpu().float().clone(),
        temporary=_propose(basis, num_temporary, generator),
        temporary_coefficients=torch.zeros(num_temporary, coefficients.shape[1]),
    )


def _propose(basis: Tensor, num_temporary: int, generator: torch.Generator) -> Tensor:
    return propose_temporary(basis.detach().cpu().float(), num_temporary, generator)


def _carried_side(update: SideUpdate, old: Tensor, new: Tensor) -> SideUpdate:
    old, new = old.to(update.coefficients), new.to(update.coefficients)
    rebased = rebase_side(update.coefficients, old, new)
    return SideUpdate(rebased, update.temporary, update.temporary_coefficients)


def _gradient_of(name: str, shape: LayerShape, gradients: Mapping[str, Tensor]) -> Tensor:
    gradient = gradients.get(name)
    wanted = (shape.out_features, shape.in_features)
    if gradient is None or gradient.shape != wanted:
        found = "is missing" if gradient is None else f"has the shape {tuple(gradient.shape)}"
        raise ShapeMismatch(
            f"{name}: the gradient to start from {found}: give one of {wanted} for each layer",
            layer=name,
        )
    num_odd = int(gradient.numel() - gradient.isfinite().sum())
    if num_odd:
        raise NotFinite(
            f"{name}: {num_odd} entries of the gradient to start from are no numbers: gather it in a wider "
            "precision, or start at random",
            layer=name,
            num_entries=num_odd,
        )
    return gradient.detach().cpu().float()


def _require_directions(num_directions: int) -> None:
    if num_directions == 0:
        raise RankTooLarge(
            "a task with num_temporary=0 in an empty subspace has nothing to train: "
            "give it temporary factors, or pull a later version",
            asked=1,
            largest=0,
        )


def _require_version(found: int, current: int) -> None:
    if found < current:
        raise BaseVersionTooOld(
            f"coefficients of version {found} mean nothing in version {current}: rebase them first",
            base_version=found,
            first_version=current,
            current_version=current,
        )
    if found > current:
        raise VersionInFuture(
            f"coefficients of version {found} are ahead of the model's version {current}: "
            "give the model that subspace first",
            version=found,
            current_version=current,
        )


def _require_fit(layers: Mapping[str, LayerCoefficients], subspace: Subspace) -> None:
    if layers.keys() != subspace.layers.keys():
        name = min(layers.keys() ^ subspace.layers.keys())
        raise ShapeMismatch(
            f"coefficients are of {len(layers)} layers, the subspace is of {len(subspace.layers)}: "
            f"{name!r} is in one only",
            layer=name,
        )
    for name, layer in layers.items():
        for side, tensor in layer:
            num_factors = subspace.layers[name][side].num_factors
            if tensor.shape[0] != num_factors:
                raise ShapeMismatch(
                    f"{name}, side {side}: coefficients have {tensor.shape[0]} rows, the basis has "
                    f"{num_factors} principal factors: use the coefficients of version {subspace.version}",
                    layer=name,
                    side=side,
                )
