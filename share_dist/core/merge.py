"""
The exact merge: a subspace and task updates in, the next version out, without the past.

All that a merge must remember of earlier tasks is the energy ``l`` of each
column of a basis ``V``, because ``G = V diag(l) V.T`` *is* the second moment of
everything merged before. New columns ``X`` are split into what the basis can
say and what it cannot, ``X = V C + Q S``, and one small SVD does the rest::

    M = [ diag(sqrt(l))  C ]  =  U diag(sigma) W.T          (m + q', m + q)
        [ 0              S ]

    V_new = [V Q] U[:, :m]     l_new = sigma[:m] ** 2
    E_t  <- U[:m, :m].T E_t    for every old task t
    E     = V_new.T F          for a new task with raw factor F

``U`` is the rotation. Nothing here grows with the number of earlier tasks but
the product that rotates their coefficients. Layers and sides of equal shape
are computed as one batch.

Source: Share, arXiv:2602.06043 (the merge by SVD of all tasks), incremental SVD
(Brand, 2006) and Tucker-2 / HOSVD (De Lathauwer, 2000) for the metric ``delta``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.drift import rotate_tasks, settle
from share_dist.core.linalg import (
    angle_from_sine,
    largest_angle,
    largest_entry_signs,
    orthonormalise,
    rank_tolerance,
    thin_svd,
)
from share_dist.core.newcomers import Newcomer, base_of, check_distinct, newcomers_of
from share_dist.core.outcome import (
    LayerRotation,
    MergeOutcome,
    MergeReport,
    SideReport,
    SideRotation,
)
from share_dist.core.values import (
    Basis,
    LayerSubspace,
    MergedTask,
    Pair,
    Side,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _MergedSide:
    """One side of one layer after the small SVD."""

    basis: Basis
    rotation: SideRotation
    report: SideReport


def merge(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    updates: Sequence[TaskUpdate],
    num_factors: int | None = None,
    energy: float | None = None,
    *,
    oversample: int = 0,
    bases: Mapping[int, Subspace] | None = None,
) -> MergeOutcome:
    """
    Merge task updates into a subspace.

    Args:
        subspace: The current version, with its oversampled tail.
        tasks: Every task that is merged in it. A task that an update names
            again is replaced: its former contribution is taken out first.
        updates: At most one per task. Their order does not matter.
        num_factors: ``k``; None keeps all that the data have.
        energy: Instead, or as well: the least ``k`` per side that explains
            this share of the merge's energy, 0 to 1.
        oversample: ``o``; columns kept beyond ``k`` for the sake of later merges.
        bases: Version -> subspace, for updates that were trained on an older
            version. They are merged exactly: being late loses nothing.

    Returns:
        The next version, all tasks said in it, the rotation and a report.

    Accuracy:
        The leading columns are those of the SVD of everything merged since
        version 0, exactly while nothing is truncated; what a truncation cuts
        is in the report. Taking out a replaced task is exact while nothing of
        it was truncated.

    Raises:
        ShapeMismatch: An update does not fit the subspace, or names a task twice.
        BaseVersionTooOld: An update's base version is not in ``bases``.
        VersionInFuture: An update's base version does not exist yet.
        UpdateRefused: An update changes nothing in some layer.
        ConfigError: ``num_factors``, ``energy`` or ``oversample`` is out of range.
    """
    _check_options(num_factors, energy, oversample)
    # sorted by update_id: a merge must not depend on the order of arrival
    updates = sorted(updates, key=lambda update: update.update_id)
    check_distinct(updates)
    bases_used = {update.update_id: base_of(subspace, update, bases or {}) for update in updates}
    newcomers = {
        update.update_id: newcomers_of(subspace, bases_used[update.update_id], update)
        for update in updates
    }
    named = {update.task_id for update in updates}
    replaced = [task for task_id, task in tasks.items() if task_id in named]
    kept = {task_id: task for task_id, task in tasks.items() if task_id not in named}

    merged = _merge_sides(subspace, newcomers, replaced, num_factors, energy, oversample)
    version = subspace.version + 1
    new_subspace = replace(
        subspace,
        version=version,
        layers={
            name: LayerSubspace(layer.a.basis, layer.b.basis) for name, layer in merged.items()
        },
    )
    rotation = {
        name: LayerRotation(layer.a.rotation, layer.b.rotation) for name, layer in merged.items()
    }
    new_tasks, drift = rotate_tasks(kept, subspace, new_subspace, rotation)
    truncation = {}
    for update in updates:
        task, lost = settle(update, newcomers[update.update_id], new_subspace)
        new_tasks[update.task_id] = task
        truncation[update.update_id] = lost
    report = MergeReport(
        version=version,
        update_ids=tuple(update.update_id for update in updates),
        task_ids=tuple(update.task_id for update in updates),
        layers={name: Pair(layer.a.report, layer.b.report) for name, layer in merged.items()},
        drift=drift,
        lag={update.update_id: subspace.version - update.base_version for update in updates},
        base_angle={
            update.update_id: angle_between(bases_used[update.update_id], subspace)
            for update in updates
        },
        truncation=truncation,
    )
    return MergeOutcome(new_subspace, dict(sorted(new_tasks.items())), rotation, report)


def _check_options(num_factors: int | None, energy: float | None, oversample: int) -> None:
    if num_factors is not None and num_factors < 1:
        raise ConfigError(f"num_factors is {num_factors}: ask for at least 1", key="num_factors")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy is {energy}: give a share in (0, 1]", key="energy")
    if oversample < 0:
        raise ConfigError(f"oversample is {oversample}: give 0 or more", key="oversample")


def angle_between(base: Subspace, current: Subspace) -> float:
    """Find the largest principal angle between two versions, over layers and sides, radians."""
    if base.version == current.version:
        return 0.0
    return max(
        (
            largest_angle(base.layers[name][side].leading, basis.leading)
            for name, layer in current.layers.items()
            for side, basis in layer
        ),
        default=0.0,
    )


def _merge_sides(
    subspace: Subspace,
    newcomers: Mapping[str, Mapping[str, Newcomer]],
    replaced: Sequence[MergedTask],
    num_factors: int | None,
    energy: float | None,
    oversample: int,
) -> dict[str, Pair[_MergedSide]]:
    groups: dict[object, list[tuple[str, Side, Tensor]]] = defaultdict(list)
    for name, layer in subspace.layers.items():
        for side, basis in layer:
            columns = [update[name].columns[side] for update in newcomers.values()]
            new = torch.cat(
                [*columns, basis.vectors.new_zeros(basis.features, 0, dtype=torch.float64)], dim=1
            ).to(basis.vectors.dtype)
            key = (basis.vectors.shape, new.shape, basis.vectors.dtype, basis.vectors.device)
            groups[key].append((name, side, new))
    done: dict[tuple[str, Side], _MergedSide] = {}
    for members in groups.values():
        old = [subspace.layers[name][side] for name, side, _ in members]
        pasts = [_past(basis, name, side, replaced) for basis, (name, side, _) in zip(old, members, strict=True)]  # fmt: skip
        results = _merge_batch(
            old,
            torch.stack(pasts),
            torch.stack([new for _, _, new in members]),
            num_factors,
            energy,
            oversample,
        )
        done |= {(name, side): result for (name, side, _), result in zip(members, results, strict=True)}  # fmt: skip
    return {name: Pair(done[name, "a"], done[name, "b"]) for name in subspace.layers}


def _past(
    basis: Basis, name: str, side: Side, replaced: Sequence[MergedTask]
) -> Float[Tensor, "m m"]:
    """Find ``H`` with ``V H H.T V.T`` the second moment of the past, less the tasks replaced."""
    if not replaced:
        return torch.diag(basis.energies.sqrt()).to(basis.vectors.device)
    moment = torch.diag(basis.energies).to(basis.vectors.device)
    taken_out = 0.0
    for task in replaced:
        layer = task.layers[name]
        E = layer.coefficients[side].double()
        part = layer.weights[side] * (E @ layer.grams[side] @ E.mT)
        moment = moment - part
        taken_out += float(part.trace())
    energies, directions = torch.linalg.eigh(moment)
    # what is left in the directions of a task that is gone is rounding: of its own coefficients,
    # in their dtype, and of this float64 sum. Anything larger may be a neighbour of small weight.
    rounding = 8 * torch.finfo(basis.vectors.dtype).eps * taken_out
    rounding += 64 * torch.finfo(torch.float64).eps * float(basis.energies.sum())
    past: Tensor = directions * torch.where(energies > rounding, energies, 0.0).sqrt()
    return past


def _merge_batch(
    old: Sequence[Basis],
    past: Float[Tensor, "b m m"],
    new: Float[Tensor, "b d q"],
    num_factors: int | None,
    energy: float | None,
    oversample: int,
) -> list[_MergedSide]:
    V = torch.stack([basis.vectors for basis in old])
    m = V.shape[-1]
    norm = torch.linalg.matrix_norm(new.double())
    tolerance = rank_tolerance(V.dtype, V.shape[1])

    C = V.mT @ new
    R = new - V @ C
    D = V.mT @ R  # once more: the first pass leaves rounding of the size of X inside the span
    R, C = R - V @ D, C + D
    Q, S = orthonormalise(R, V, floor=norm * tolerance)

    top = torch.cat([past, C.double()], dim=-1)
    bottom = torch.cat([S.new_zeros(*S.shape[:-1], m), S], dim=-1)
    U, sigma, _ = thin_svd(torch.cat([top, bottom], dim=-2))
    floors = torch.maximum(norm * tolerance, sigma[..., 0] * 1e-14) if sigma.shape[-1] else norm

    VQ = torch.cat([V, Q], dim=-1)
    results = []
    for index, basis in enumerate(old):
        k, columns = _choose(sigma[index], float(floors[index]), num_factors, energy, oversample)
        results.append(_merged_side(basis, VQ[index], U[index, :, :columns], sigma[index], k, m))
    return results


def _choose(
    sigma: Float[Tensor, " c"],
    floor: float,
    num_factors: int | None,
    energy: float | None,
    oversample: int,
) -> tuple[int, int]:
    """Choose ``k`` and ``m``, neither beyond the numerical rank."""
    rank = int((sigma > floor).sum())
    k = rank if num_factors is None else min(num_factors, rank)
    if energy is not None and rank:
        cumulated = sigma.square().cumsum(0)
        enough = int((cumulated < energy * cumulated[-1] * (1 - 1e-12)).sum()) + 1
        k = min(k, enough)
    return k, min(rank, k + oversample)


def _merged_side(
    old: Basis,
    VQ: Float[Tensor, "d mq"],
    U: Float[Tensor, "mq m_new"],
    sigma: Float[Tensor, " c"],
    num_factors: int,
    m: int,
) -> _MergedSide:
    vectors = VQ @ U.to(VQ.dtype)
    signs = largest_entry_signs(vectors)
    vectors, U = vectors * signs, U * signs.to(U.dtype)
    energies = sigma.square()
    columns, total = U.shape[1], float(energies.sum())
    outside = _outside(U, old.num_factors, num_factors)
    return _MergedSide(
        basis=Basis(vectors.contiguous(), energies[:columns].clone(), num_factors),
        rotation=SideRotation(U.contiguous(), VQ[:, m:].contiguous()),
        report=SideReport(
            explained_energy=float(energies[:num_factors].sum()) / total if total else 1.0,
            cut_energy=float(energies[columns:].sum()),
            num_factors=num_factors,
            num_columns=columns,
            angle=angle_from_sine(outside) if outside.numel() else 0.0,
        ),
    )


def _outside(U: Float[Tensor, "mq m_new"], k_old: int, k_new: int) -> Tensor:
    """Find the part of the smaller of two broadcast spans that lies outside the other one."""
    if min(k_old, k_new) == 0:
        return U.new_zeros(0, 0)
    leading = U[:, :k_new]
    if k_new < k_old:
        return leading[k_old:]
    held = torch.eye(U.shape[0], dtype=U.dtype, device=U.device)[:, :k_old]
    return held - leading @ leading[:k_old].mT
