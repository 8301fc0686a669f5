"""What an update weighs, layer by layer: measured once, at the cost of little more than reading it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.linalg import rank_tolerance, tall_gram, tall_product
from share_dist.core.newcomers import (
    in_double,
    require_equal_pseudo_rank,
    require_fit,
    require_layers,
)
from share_dist.core.values import Basis, Pair, SideUpdate, Subspace, TaskUpdate

_SAFE = (1e-15, 1e15)
"""Largest entries of a factor between which float32 products neither overflow nor vanish."""

_LEAST_OUTSIDE = 1e-2
"""Five digits of any combination need so much, where seven are those of a Gram matrix in float32."""


@dataclass(frozen=True, slots=True)
class DeltaMeasure:
    """
    An update's ``dW`` in one layer.

    Args:
        norm: ``||dW||_F``.
        rounding: What of the norm may be rounding alone; a merge refuses an update whose
            norm does not exceed it.
        largest_singular: Largest singular value of ``dW``.
        smallest_singular: The smallest of those above ``rounding``; 0 when none is.
        energy_outside: Share of ``||dW||_F^2`` that the broadcast factors of the current
            version cannot say, 0 to 1.

    What is too large to be squared in float64 has infinite norm.
    """

    norm: float
    rounding: float
    largest_singular: float
    smallest_singular: float
    energy_outside: float


def measure_update(
    update: TaskUpdate,
    base: Subspace,
    current: Subspace,
    *,
    map_layers: Callable[..., Iterable[DeltaMeasure]] = map,
) -> dict[str, DeltaMeasure]:
    """
    Measure every layer of an update.

    From products of a few rows in the basis's dtype, summed in float64; where that would lose
    digits, from the factors, formed in the basis's dtype as the worker formed them.

    Args:
        update: What was pushed.
        base: The version that it was trained against.
        current: The version that it would be merged into; mostly the same.
        map_layers: Does the layers, as ``map`` would; that of an executor does several at once.

    Accuracy:
        ``norm`` relative to ``||A|| ||B||``: 1e-6 for a float32 update. Singular values below 1e-8 of
        the largest are not told apart from 0; ``energy_outside`` to 1e-5.

    Raises:
        ShapeMismatch: It does not cover the layers, or does not fit ``base``.

    Examples:
        >>> from share_dist.core.values import LayerShape, LayerUpdate
        >>> empty = Subspace.empty({"q": LayerShape(2, 1)})
        >>> side_a = SideUpdate(torch.zeros(0, 1), torch.tensor([[3.0], [4.0]]), torch.ones(1, 1))
        >>> side_b = SideUpdate(torch.zeros(0, 1), torch.tensor([[2.0]]), torch.ones(1, 1))
        >>> update = TaskUpdate("u", "t", 0, {"q": LayerUpdate(side_a, side_b)})
        >>> found = measure_update(update, empty, empty)["q"]
        >>> round(found.norm, 6), round(found.largest_singular, 6), found.energy_outside
        (10.0, 10.0, 1.0)
    """
    require_layers(base, update)

    def measure_layer(name: str) -> DeltaMeasure:
        layer = update.layers[name]
        for side, part in layer:
            require_fit(update, name, side, part, base.layers[name][side])
        require_equal_pseudo_rank(update, name, layer.a.pseudo_rank, layer.b.pseudo_rank)
        a, b = (
            _grams(base.layers[name][side], current.layers[name][side], part)
            for side, part in layer
        )
        return _measure(Pair(a, b))

    return dict(zip(update.layers, map_layers(measure_layer, update.layers), strict=True))


@dataclass(frozen=True, slots=True)
class _Grams:
    """``F.T F`` of one side's factor, and the same of its part inside the current basis."""

    whole: Tensor
    inside: Tensor
    tolerance: float


def _grams(base: Basis, current: Basis, part: SideUpdate) -> _Grams:
    found = _grams_of_parts(base, current, part)
    whole, inside = found or _grams_of_factor(base, current, part)
    return _Grams(whole, inside, rank_tolerance(base.vectors.dtype, base.features))


def _largest(tensor: Tensor) -> float:
    return max(abs(float(end)) for end in tensor.aminmax()) if tensor.numel() else 0.0


def _grams_of_parts(base: Basis, current: Basis, part: SideUpdate) -> tuple[Tensor, Tensor] | None:
    """
    Find both Gram matrices without forming ``F = V E + T tau``.

    With ``V`` orthonormal, ``F.T F = E.T E + E.T S tau + tau.T S.T E + tau.T N tau`` where
    ``S = V.T T`` and ``N = T.T T``: only these two cost more than a few small products.

    Returns:
        None where digits are lost that ``F`` itself has: products may overflow or vanish, and temporary factors
        that are nearly combinations of each other and of the basis may cancel.
    """
    T = part.temporary.to(base.vectors.dtype)
    E, tau = part.coefficients.double(), part.temporary_coefficients.double()
    N = tall_gram(T)
    if not max(_largest(E), _largest(tau)) < _SAFE[1] or not _have_safe_entries(N, T.shape[0]):
        return None
    S = tall_product(base.leading, T)
    if not _are_independent(S, N):
        return None
    crossed = E.mT @ S @ tau
    whole = E.mT @ E + tau.mT @ N @ tau + crossed + crossed.mT
    if current is base:
        inside = E + S @ tau
    else:
        inside = tall_product(current.leading, base.leading) @ E
        inside = inside + tall_product(current.leading, T) @ tau
    return whole, inside.mT @ inside


def _have_safe_entries(N: Float[Tensor, "f f"], features: int) -> bool:
    """
    Whether the largest entry of ``T`` is one of a safe size, told from ``N = T.T T``.

    To look at ``T`` itself would take as long as the product did. A column of squared length ``n`` has
    a largest entry from ``sqrt(n / d)`` to ``sqrt(n)``.
    """
    if not N.numel():
        return True
    longest = float(N.diagonal().max())
    return features * _SAFE[0] ** 2 < longest < _SAFE[1] ** 2


def _are_independent(S: Float[Tensor, "k f"], N: Float[Tensor, "f f"]) -> bool:
    """
    Whether every combination of ``V`` and ``T`` keeps the digits that their Gram matrix has.

    With the columns of ``T`` scaled to norm one: what of any combination of them lies outside
    ``V`` is at least ``_LEAST_OUTSIDE`` of its energy.
    """
    norms = N.diagonal().sqrt()
    outside = (N - S.mT @ S) / norms.outer(norms)
    outside.diagonal().sub_(_LEAST_OUTSIDE)
    return bool(torch.linalg.cholesky_ex(outside).info == 0)


def _grams_of_factor(base: Basis, current: Basis, part: SideUpdate) -> tuple[Tensor, Tensor]:
    rows = _factor_rows(base.leading, part)
    if not (_SAFE[0] < _largest(rows) < _SAFE[1]):
        rows = _factor_rows(base.leading.double(), in_double(part))
    inside = (rows.to(current.vectors.dtype) @ current.leading).double()
    rows = rows.double()
    return rows @ rows.mT, inside @ inside.mT


def _factor_rows(basis: Float[Tensor, "d k"], part: SideUpdate) -> Float[Tensor, "p d"]:
    """Form ``F.T``: with the few columns first, the products take a fifth of the time."""
    E, T, tau = (
        tensor.to(basis.dtype)
        for tensor in (part.coefficients, part.temporary, part.temporary_coefficients)
    )
    return E.mT @ basis.mT + tau.mT @ T.mT


def _measure(grams: Pair[_Grams]) -> DeltaMeasure:
    # each side scaled to norm 1: squares of squares of what a peer sent may overflow
    norms = Pair(*(math.sqrt(max(0.0, float(side.whole.trace()))) for _, side in grams))
    scale = norms.a * norms.b
    if scale == 0:
        return DeltaMeasure(0.0, 0.0, 0.0, 0.0, 0.0)
    if not math.isfinite(scale):
        return DeltaMeasure(math.inf, math.inf, math.inf, 0.0, 1.0)
    wholes = Pair(*(side.whole / norms[each] ** 2 for each, side in grams))
    insides = Pair(*(side.inside / norms[each] ** 2 for each, side in grams))
    singular = torch.linalg.svdvals(_root(wholes.b) @ _root(wholes.a).mT)
    rounding = math.sqrt(grams.a.tolerance * grams.b.tolerance)
    energy = float(singular.square().sum())
    above = singular[singular > rounding]
    inside = float((insides.a * insides.b).sum())
    return DeltaMeasure(
        norm=math.sqrt(energy) * scale,
        rounding=rounding * scale,
        largest_singular=float(singular[0]) * scale,
        smallest_singular=float(above[-1]) * scale if above.numel() else 0.0,
        energy_outside=min(1.0, max(0.0, 1.0 - inside / energy)) if energy else 0.0,
    )


def _root(gram: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """Find ``R`` with ``R.T R`` the given Gram matrix."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors.mT * values.clamp_min(0.0).sqrt().unsqueeze(-1)
    return root
