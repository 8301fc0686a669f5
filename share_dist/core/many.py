"""Many adapters into one subspace, one after the other, in memory that does not grow with their number."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.nn.functional import pad

from share_dist.core.drift import squared_difference
from share_dist.core.prepared import prepare_merge
from share_dist.core.subspace import all_temporary, check_layers
from share_dist.core.truncation import Truncation
from share_dist.core.values import (
    SIDES,
    Factors,
    LayerSubspace,
    LayerUpdate,
    Metric,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import ConfigError, ShapeMismatch


def subspace_from_many(
    adapters: Iterable[tuple[str, Factors]],
    num_factors: int,
    energy: float | None = None,
    metric: Metric = "delta",
    *,
    oversample: int | None = None,
    columns_at_once: int | None = None,
) -> Subspace:
    """
    Find the bases that best explain any number of adapters, each looked at once.

    Arrivals are gathered until they have ``columns_at_once`` columns and merged as one. Only the
    bases and the energies of their columns stay: what a task says in them is found by
    ``project``, when the adapter is looked at again.

    Args:
        adapters: Name -> factors, all over the same layers; ranks may differ. Taken one at a time.
        num_factors: ``k``; kept from merge to merge with ``oversample`` columns more.
        energy: At the end: the least ``k`` per side that explains this share, if that is less.
        metric: ``"delta"`` keeps the ``dW`` best, ``"factors"`` the factors.
        oversample: ``o``; None for as many as ``num_factors``. The subspace keeps them.
        columns_at_once: Columns of one side that are merged at once; None for as many as are
            kept, at which a merge costs least per column.

    Returns:
        Version 1, with all of them merged.

    Accuracy:
        While nothing is cut, that of one SVD of everything. Else the ``k`` directions
        hold at least 0.995 of the energy that the best ``k`` hold, for singular values
        that fall as ``i ** -0.5`` or faster, ``oversample`` of ``num_factors``, and an order that
        is not sorted by kind: where all of one kind come first, less of it is kept.

    Raises:
        ShapeMismatch: There is no adapter, or one is of other layers than the first; names it.
        UpdateRefused: An adapter changes nothing in some layer; names it.
        ConfigError: A number is out of range.

    Source:
        The exact small merge of ``share_dist.core.merge``; incremental SVD (Brand, 2006).

    Examples:
        >>> from share_dist.core.values import LayerFactors
        >>> columns = [torch.eye(4)[:, [i]] * (4 - i) for i in range(3)]
        >>> adapters = [(f"{i}", {"q": LayerFactors(x, x)}) for i, x in enumerate(columns)]
        >>> subspace = subspace_from_many(adapters, num_factors=2, columns_at_once=1)
        >>> subspace.version, subspace.layers["q"].a.num_factors
        (1, 2)
    """
    oversample = num_factors if oversample is None else oversample
    meanwhile = Truncation(num_factors, None, oversample)
    at_last = Truncation(num_factors, energy, oversample)
    columns = num_factors + oversample if columns_at_once is None else columns_at_once
    if columns < 1:
        raise ConfigError(f"columns_at_once is {columns}: give at least 1", key="columns_at_once")
    empty = subspace = None
    for group, is_last in _groups(adapters, columns):
        if empty is None or subspace is None:
            empty = subspace = _empty(group[0][1], metric)
        subspace = _merged(subspace, empty, group, at_last if is_last else meanwhile)
        del group  # before the next one is gathered: one group is held, not two
    if subspace is None:
        raise ShapeMismatch("a subspace needs at least one adapter to start from, got none")
    return replace(subspace, version=1)


def delta_error(factors: Factors, said: Factors) -> float:
    """
    Measure how far one adapter's ``dW`` is from another's, relative to the first, over all layers.

    Args:
        factors: What was meant.
        said: What became of it: the same layers, of any rank.

    Returns:
        ``||dW_said - dW||_F / ||dW||_F``; the ``dW`` are not formed.

    Accuracy:
        In float64, from the factors' change where ranks are equal, so that a small
        difference keeps its digits; else to about 1e-8 of ``||dW||_F``.

    Examples:
        >>> from share_dist.core.values import LayerFactors
        >>> meant = {"q": LayerFactors(torch.eye(3)[:, :2], torch.eye(2))}
        >>> delta_error(meant, {"q": LayerFactors(torch.eye(3)[:, :1], torch.eye(2)[:, :1])})
        0.7071067811865476
    """
    lost = whole = 0.0
    for name, layer in factors.items():
        meant, found = ({side: factor.double() for side, factor in each} for each in (layer, said[name]))  # fmt: skip
        rank = max(meant["a"].shape[1], found["a"].shape[1])
        old, new = (
            {side: pad(factor, (0, rank - factor.shape[1])) for side, factor in each.items()}
            for each in (meant, found)
        )
        lost += float(squared_difference(old, new, {side: new[side] - old[side] for side in SIDES}))
        whole += float(((old["a"].mT @ old["a"]) * (old["b"].mT @ old["b"])).sum())
    return math.sqrt(lost / whole)


def _groups(
    adapters: Iterable[tuple[str, Factors]], columns: int
) -> Iterator[tuple[Sequence[tuple[str, Factors]], bool]]:
    """Gather arrivals up to a number of columns, and say of each group whether it is the last."""
    group: list[tuple[str, Factors]] = []
    gathered = 0
    for name, factors in adapters:
        rank = max((layer.a.shape[1] for layer in factors.values()), default=0)
        if group and gathered + rank > columns:
            yield group, False
            group, gathered = [], 0
        group.append((name, factors))
        gathered += rank
    if group:
        yield group, True


def _empty(factors: Factors, metric: Metric) -> Subspace:
    is_double = any(layer.a.dtype == torch.float64 for layer in factors.values())
    dtype = torch.float64 if is_double else torch.float32
    return Subspace.empty({name: layer.shape for name, layer in factors.items()}, metric, dtype)


def _merged(
    subspace: Subspace,
    empty: Subspace,
    group: Sequence[tuple[str, Factors]],
    truncation: Truncation,
) -> Subspace:
    """Merge a group; only the bases are wanted, so no task is said in them."""
    # said against version 0, where a factor is all temporary: nothing is projected twice
    updates = [_update(empty, name, factors) for name, factors in group]
    prepared = prepare_merge(subspace, {}, updates, bases={0: empty})
    layers = {
        name: LayerSubspace(*(side.cut(*truncation.choose(side)).basis for _, side in both))
        for name, both in prepared.sides.items()
    }
    return replace(subspace, layers=layers, version=subspace.version + 1)


def _update(empty: Subspace, name: str, factors: Factors) -> TaskUpdate:
    """Say an adapter against the subspace that can say nothing: all of it is temporary."""
    try:
        check_layers(empty, factors)
    except ShapeMismatch as error:
        raise ShapeMismatch(f"{name}: {error.message}", **error.details) from error
    layers = {
        layer: LayerUpdate(*(all_temporary(factor, 0) for _, factor in both))
        for layer, both in factors.items()
    }
    return TaskUpdate(name, name, empty.version, layers)
