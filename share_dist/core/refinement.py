"""
Refinement: bases for serving that lose less of the ``dW`` than the leading columns of the merge.

A merge finds each side's directions without looking at the other side's cut (HOSVD). With the tasks at hand
both can be chosen for each other. In the kept columns a task's ``dW`` is the small core ``K_t = E_B E_A.T``, and
what orthonormal ``P_A``, ``P_B`` of ``k`` columns lose of all tasks together is least where they hold most::

    f(P_A, P_B) = sum_t w_t | P_B.T K_t P_A |^2

With ``P_B`` held fast, the best ``P_A`` is the leading eigenvectors of

    M_A = sum_t w_t E_A (E_B.T P_B P_B.T E_B) E_A.T        f = sum of its k largest eigenvalues

and the other way round: no half of a sweep lets ``f`` fall. What comes out is for serving: a lineage goes on from
its own bases, whose energies are the second moment of everything merged.

Source: higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle, 2000).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.budget import task_norms
from share_dist.core.values import (
    SIDES,
    Basis,
    Coefficients,
    LayerCoefficients,
    LayerSubspace,
    MergedTask,
    Pair,
    Side,
    Subspace,
)
from share_dist.errors import ConfigError, ShapeMismatch

STILL = 1e-6
"""A sweep that gains less than this share of what is held is the last one."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Refinement:
    """
    Bases for serving, and every task said in them.

    Args:
        subspace: With ``k`` columns a side and no tail; the energy of a column is the ``M`` above, in it.
        tasks: Task -> its coefficients there.
        lost: Task -> relative Frobenius error of its ``dW`` over all layers, against the
            ``dW`` that all kept columns say.
        history: Layer name -> ``f`` at the start and after each half of a sweep.
    """

    subspace: Subspace
    tasks: Mapping[str, Coefficients]
    lost: Mapping[str, float]
    history: Mapping[str, tuple[float, ...]]


def refine(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    num_factors: int | Mapping[str, Pair[int]],
    *,
    weights: Mapping[str, float] | None = None,
    sweeps: int = 30,
) -> Refinement:
    """
    Choose the bases that lose least of all tasks' ``dW`` together.

    Args:
        subspace: A version with its tail: only what its columns say can be chosen from.
        tasks: Every task that is to be served; at least one, all of that version.
        num_factors: ``k``, for all sides or layer by layer and side by side; where a side has
            fewer columns, it keeps those.
        weights: Task -> how much its relative squared error counts; 1 where it is not named.
        sweeps: Most times that both sides are chosen anew; it ends earlier when nothing more is gained.

    Returns:
        A subspace without a tail, and all tasks in it.

    Accuracy:
        ``f`` never falls from one half of a sweep to the next, to rounding in float64. It comes to rest at a point that no
        change of one side alone improves; there is no promise that it is the best of all.

    Raises:
        ShapeMismatch: There is no task.
        ConfigError: ``num_factors`` or ``sweeps`` is out of range.
    """
    _require(tasks, num_factors, sweeps)
    norms = task_norms(_whole(subspace), tasks)
    counts = torch.tensor(
        [(weights or {}).get(task_id, 1.0) / max(norms[task_id], _TINY) ** 2 for task_id in tasks],
        dtype=torch.float64,
    )
    chosen, history = {}, {}
    for name, layer in subspace.layers.items():
        held = Pair(*(_held(tasks, name, side) for side in SIDES))
        wanted = num_factors if isinstance(num_factors, int) else num_factors[name]
        ks = Pair(*(
            min(basis.num_columns, wanted if isinstance(wanted, int) else wanted[side])
            for side, basis in layer
        ))  # fmt: skip
        chosen[name], history[name] = _alternate(held, counts, ks, sweeps)
    return _served(subspace, tasks, chosen, norms, history)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """``P``, ``(m, k)``, and the energy of each of its columns."""

    directions: Tensor
    energies: Tensor


def _require(
    tasks: Mapping[str, MergedTask], num_factors: int | Mapping[str, Pair[int]], sweeps: int
) -> None:
    if not tasks:
        raise ShapeMismatch("no task was given to be refined for: give at least one")
    numbers = [num_factors] if isinstance(num_factors, int) else [k for pair in num_factors.values() for _, k in pair]  # fmt: skip
    if min(numbers, default=1) < 1:
        raise ConfigError(f"num_factors is {min(numbers)}: ask for at least 1", key="num_factors")
    if sweeps < 1:
        raise ConfigError(f"sweeps is {sweeps}: ask for at least 1", key="sweeps")


def _whole(subspace: Subspace) -> Subspace:
    """The same version with all columns broadcast."""
    layers = {
        name: LayerSubspace(*(replace(basis, num_factors=basis.num_columns) for _, basis in layer))
        for name, layer in subspace.layers.items()
    }
    return replace(subspace, layers=layers)


def _held(tasks: Mapping[str, MergedTask], name: str, side: Side) -> Float[Tensor, "t m p"]:
    """Stack the coefficients of all tasks; narrower ones are filled up with columns of zeros."""
    stacked = [task.layers[name].coefficients[side].double().mT for task in tasks.values()]
    return torch.nn.utils.rnn.pad_sequence(stacked, batch_first=True).mT


def _alternate(
    held: Pair[Tensor], weights: Float[Tensor, " t"], ks: Pair[int], sweeps: int
) -> tuple[Pair[_Chosen], tuple[float, ...]]:
    """Choose both sides in turn, each for what the other has, until nothing more is gained."""
    weights = weights.to(held.a.device)
    # the first choice looks at all that the other side holds: HOSVD, as the merge
    a = _best(held.a, held.b.mT @ held.b, weights, ks.a)
    b = _best(held.b, held.a.mT @ held.a, weights, ks.b)
    history = [_captured(held, a, b, weights)]
    for _ in range(sweeps):
        before = history[-1]
        a = _best(held.a, _seen(held.b, b), weights, ks.a)
        history.append(float(a.energies.sum()))
        b = _best(held.b, _seen(held.a, a), weights, ks.b)
        history.append(float(b.energies.sum()))
        if history[-1] - before <= STILL * history[-1]:
            break
    return Pair(a, b), tuple(history)


def _seen(E: Float[Tensor, "t m p"], chosen: _Chosen) -> Float[Tensor, "t p p"]:
    """Compute ``E.T P P.T E`` of every task."""
    said = chosen.directions.mT @ E
    return said.mT @ said


def _best(
    E: Float[Tensor, "t m p"], grams: Float[Tensor, "t p p"], weights: Float[Tensor, " t"], k: int
) -> _Chosen:
    """Find the ``k`` leading eigenvectors of ``sum_t w_t E N E.T``."""
    moment = torch.einsum("tmp,tnp->mn", (E @ grams) * weights[:, None, None], E)
    energies, directions = torch.linalg.eigh((moment + moment.mT) / 2)
    return _Chosen(directions.flip(-1)[:, :k], energies.flip(-1)[:k].clamp_min(0.0))


def _captured(held: Pair[Tensor], a: _Chosen, b: _Chosen, weights: Float[Tensor, " t"]) -> float:
    return float(((_seen(held.a, a) * _seen(held.b, b)).sum(dim=(-2, -1)) * weights).sum())


def _served(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    chosen: Mapping[str, Pair[_Chosen]],
    norms: Mapping[str, float],
    history: Mapping[str, tuple[float, ...]],
) -> Refinement:
    """Turn the bases to what was chosen, and say every task there."""
    layers = {
        name: LayerSubspace(*(_turned(basis, chosen[name][side]) for side, basis in layer))
        for name, layer in subspace.layers.items()
    }
    refined = replace(subspace, layers=layers, digest="")
    said, lost = {}, {}
    for task_id, task in tasks.items():
        said[task_id] = Coefficients(
            {
                name: LayerCoefficients(*(
                    (chosen[name][side].directions.mT @ E.double()).to(E.dtype)
                    for side, E in layer.coefficients
                ))
                for name, layer in task.layers.items()
            },
            subspace.version,
        )  # fmt: skip
        lost[task_id] = _lost(said[task_id], norms[task_id])
    return Refinement(refined, said, lost, history)


def _turned(basis: Basis, chosen: _Chosen) -> Basis:
    vectors = (basis.vectors.double() @ chosen.directions).to(basis.vectors.dtype)
    return Basis(vectors.contiguous(), chosen.energies, vectors.shape[1])


def _lost(said: Coefficients, norm: float) -> float:
    """Find the relative error: what projections keep is orthogonal to what they lose."""
    kept = math.fsum(
        float(((layer.a.double().mT @ layer.a.double()) * (layer.b.double().mT @ layer.b.double())).sum())
        for layer in said.layers.values()
    )  # fmt: skip
    return math.sqrt(max(0.0, 1 - kept / norm**2)) if norm else 0.0
