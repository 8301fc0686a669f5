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
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.linalg import (
    angle_from_sine,
    largest_angle,
    largest_entry_signs,
    orthonormalise,
    rank_tolerance,
    thin_svd,
)
from share_dist.core.temporary import factor_of
from share_dist.core.values import (
    Basis,
    LayerCoefficients,
    LayerFactors,
    LayerSubspace,
    MergedLayer,
    MergedTask,
    Metric,
    Pair,
    Side,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import (
    BaseVersionTooOld,
    ConfigError,
    ShapeMismatch,
    UpdateRefused,
    VersionInFuture,
)


@dataclass(frozen=True, slots=True)
class SideRotation:
    """
    How one side of one layer got from a version to the next: ``V_new = [V Q] U``.

    Args:
        matrix: ``U``, ``(m + q, m_new)`` float64 with orthonormal columns.
        directions: ``Q``, ``(d, q)``; what the merge brought in.
    """

    matrix: Tensor
    directions: Tensor

    def advance(self, vectors: Float[Tensor, "d m"]) -> Float[Tensor, "d m_new"]:
        """Turn the old version's columns into the new version's."""
        return torch.cat([vectors, self.directions], dim=1) @ self.matrix.to(vectors.dtype)

    def rotate(self, coefficients: Float[Tensor, "*batch m p"]) -> Float[Tensor, "*batch m_new p"]:
        """Say in the new version's columns what a task said in the old one's."""
        old_rows = self.matrix[: coefficients.shape[-2]]
        return (old_rows.mT @ coefficients.double()).to(coefficients.dtype)


class LayerRotation(Pair[SideRotation]):
    """How both sides of one layer got from a version to the next."""


@dataclass(frozen=True, slots=True)
class SideReport:
    """
    What a merge did to one side of one layer.

    Args:
        explained_energy: Share of this merge's energy in the ``k`` broadcast factors, 0 to 1.
        cut_energy: Energy of the columns that were not kept at all (beyond ``m``).
        num_factors: ``k``.
        num_columns: ``m``.
        angle: Largest principal angle to the version before, radians.
    """

    explained_energy: float
    cut_energy: float
    num_factors: int
    num_columns: int
    angle: float


@dataclass(frozen=True)
class MergeReport:
    """
    What a merge did: to the subspace, to the old tasks, to the new ones.

    Args:
        version: The version that it made.
        update_ids: The updates merged, sorted.
        task_ids: Their tasks, in the same order.
        layers: Layer name -> both sides.
        drift: Old task -> ``||dW(after) - dW(before)||_F`` over all layers, as served.
        lag: Update -> versions between its base version and the one merged into.
        base_angle: Update -> largest principal angle between those two, radians.
        truncation: Update -> relative Frobenius error of its ``dW`` after the merge.
    """

    version: int
    update_ids: tuple[str, ...]
    task_ids: tuple[str, ...]
    layers: Mapping[str, Pair[SideReport]]
    drift: Mapping[str, float]
    lag: Mapping[str, int]
    base_angle: Mapping[str, float]
    truncation: Mapping[str, float]

    def _sides(self) -> list[SideReport]:
        return [report for layer in self.layers.values() for _, report in layer]

    @property
    def lowest_energy_kept(self) -> float:
        """Smallest explained energy of any side of any layer."""
        return min((side.explained_energy for side in self._sides()), default=1.0)

    @property
    def mean_energy_kept(self) -> float:
        """Explained energy, averaged over layers and sides."""
        sides = self._sides()
        return sum(side.explained_energy for side in sides) / len(sides) if sides else 1.0

    @property
    def angle(self) -> float:
        """Largest principal angle to the version before, over layers and sides, radians."""
        return max((side.angle for side in self._sides()), default=0.0)

    @property
    def num_factors(self) -> int:
        """Largest ``k`` of any side of any layer."""
        return max((side.num_factors for side in self._sides()), default=0)

    def to_dict(self) -> dict[str, object]:
        """All of it as JSON-able values."""
        return asdict(self) | {
            "lowest_energy_kept": self.lowest_energy_kept,
            "mean_energy_kept": self.mean_energy_kept,
            "angle": self.angle,
            "num_factors": self.num_factors,
        }


@dataclass(frozen=True)
class MergeOutcome:
    """
    What a merge returns; its inputs are as they were.

    Args:
        subspace: The next version.
        tasks: Every task, old and new, in its columns.
        rotation: Layer name -> how each side got there.
        report: What the merge did.
    """

    subspace: Subspace
    tasks: dict[str, MergedTask]
    rotation: dict[str, LayerRotation]
    report: MergeReport


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """One layer of one update: raw factors, grams and weights in float64."""

    factors: LayerFactors
    grams: Pair[Tensor]
    weights: Pair[float]
    columns: Pair[Tensor]


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
    _check_distinct(updates)
    base_of = {update.update_id: _base(subspace, update, bases or {}) for update in updates}
    newcomers = {
        update.update_id: _admit_layers(subspace, base_of[update.update_id], update)
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
    new_tasks, drift = _rotate_tasks(kept, subspace, new_subspace, rotation)
    truncation = {}
    for update in updates:
        task, lost = _settle(update, newcomers[update.update_id], new_subspace)
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
            update.update_id: _angle_between(base_of[update.update_id], subspace)
            for update in updates
        },
        truncation=truncation,
    )
    return MergeOutcome(new_subspace, dict(sorted(new_tasks.items())), rotation, report)


# --- what comes in ------------------------------------------------------------------------------


def _check_options(num_factors: int | None, energy: float | None, oversample: int) -> None:
    if num_factors is not None and num_factors < 1:
        raise ConfigError(f"num_factors is {num_factors}: ask for at least 1", key="num_factors")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy is {energy}: give a share in (0, 1]", key="energy")
    if oversample < 0:
        raise ConfigError(f"oversample is {oversample}: give 0 or more", key="oversample")


def _check_distinct(updates: Sequence[TaskUpdate]) -> None:
    for what in ("update_id", "task_id"):
        names = [getattr(update, what) for update in updates]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ShapeMismatch(
                f"{what} {min(twice)!r} is in this merge {names.count(min(twice))} times: "
                "merge one update per task, the next one in the next merge"
            )


def _base(subspace: Subspace, update: TaskUpdate, bases: Mapping[int, Subspace]) -> Subspace:
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


def _admit_layers(subspace: Subspace, base: Subspace, update: TaskUpdate) -> dict[str, _Newcomer]:
    if update.layers.keys() != subspace.layers.keys():
        different = min(update.layers.keys() ^ subspace.layers.keys())
        holder = "the update" if different in update.layers else "the subspace"
        raise ShapeMismatch(
            f"layer {different!r} is only in {holder}: an update covers every layer of its subspace",
            layer=different,
        )
    return {
        name: _admit_layer(name, base.layers[name], update, subspace.metric)
        for name in update.layers
    }


def _admit_layer(name: str, base: LayerSubspace, update: TaskUpdate, metric: Metric) -> _Newcomer:
    sides = []
    for side, part in update.layers[name]:
        basis = base[side].leading
        rows, features = part.coefficients.shape[0], part.temporary.shape[0]
        if (rows, features) != (basis.shape[1], basis.shape[0]):
            raise ShapeMismatch(
                f"update {update.update_id}, {name}, side {side}: coefficients of {rows} rows and "
                f"temporary factors of {features} features for a basis of {basis.shape[1]} factors "
                f"in {basis.shape[0]} features at version {update.base_version}",
                layer=name,
                side=side,
            )
        sides.append(factor_of(basis.double(), _double(part)))
    factors = LayerFactors(*sides)
    if factors.a.shape[1] != factors.b.shape[1]:
        raise ShapeMismatch(
            f"update {update.update_id}, {name}: pseudo-rank {factors.a.shape[1]} on side A and "
            f"{factors.b.shape[1]} on side B; both sides need the same",
            layer=name,
        )
    return _newcomer(name, factors, update, metric)


def _double(part: SideUpdate) -> SideUpdate:
    return SideUpdate(
        part.coefficients.double(), part.temporary.double(), part.temporary_coefficients.double()
    )


def _newcomer(name: str, factors: LayerFactors, update: TaskUpdate, metric: Metric) -> _Newcomer:
    """Weigh one layer, so that no task owns the basis by its norm alone."""
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
        square = float((upper_b @ upper_a.mT).square().sum())
        squares = Pair(square, square)
    for _, square in squares:
        if not 0 < square < float("inf"):
            raise UpdateRefused(
                f"update {update.update_id} for task {update.task_id!r} changes layer {name!r} by a "
                f"dW of squared norm {square:.3g}: train it, or leave this task out",
                update_id=update.update_id,
                task_id=update.task_id,
                reason="norm",
            )
    weights = Pair(update.weight / squares.a, update.weight / squares.b)
    columns = Pair(
        metric_factors.a * weights.a**0.5,
        metric_factors.b * weights.b**0.5,
    )
    return _Newcomer(factors, grams, weights, columns)


def _angle_between(base: Subspace, current: Subspace) -> float:
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


# --- the small SVD, batched over layers and sides of equal shape ----------------------------------


def _merge_sides(
    subspace: Subspace,
    newcomers: Mapping[str, Mapping[str, _Newcomer]],
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
    for task in replaced:
        layer = task.layers[name]
        E = layer.coefficients[side].double()
        moment = moment - layer.weights[side] * (E @ layer.grams[side] @ E.mT)
    energies, directions = torch.linalg.eigh(moment)
    # what is left of a task that was all there was is rounding, not content
    rounding = basis.energies.sum() * rank_tolerance(basis.vectors.dtype, basis.features)
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


# --- the tasks ------------------------------------------------------------------------------------


def _rotate_tasks(
    tasks: Mapping[str, MergedTask],
    old: Subspace,
    new: Subspace,
    rotation: Mapping[str, LayerRotation],
) -> tuple[dict[str, MergedTask], dict[str, float]]:
    """Say every old task in the new columns, and certify how far each one moved."""
    layers: dict[str, dict[str, MergedLayer]] = defaultdict(dict)
    squares: dict[str, float] = dict.fromkeys(tasks, 0.0)
    for name, turn in rotation.items():
        for members in _by_pseudo_rank(tasks, name):
            before = Pair(*(
                torch.stack([tasks[task].layers[name].coefficients[side] for task in members])
                for side in ("a", "b")
            ))  # fmt: skip
            after = Pair(turn.a.rotate(before.a), turn.b.rotate(before.b))
            moved = _squared_drift(before, turn, old.layers[name], new.layers[name])
            for index, task in enumerate(members):
                layers[task][name] = replace(
                    tasks[task].layers[name],
                    coefficients=LayerCoefficients(after.a[index].clone(), after.b[index].clone()),
                )
                squares[task] += float(moved[index])
    rotated = {task: MergedTask(task, new.version, layers[task]) for task in tasks}
    return rotated, {task: square**0.5 for task, square in squares.items()}


def _by_pseudo_rank(tasks: Mapping[str, MergedTask], name: str) -> list[list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for task_id, task in tasks.items():
        groups[task.layers[name].coefficients.pseudo_rank].append(task_id)
    return list(groups.values())


def _squared_drift(
    before: Pair[Tensor], turn: LayerRotation, old: LayerSubspace, new: LayerSubspace
) -> Float[Tensor, " t"]:
    """
    Compute ``||dW(after) - dW(before)||_F^2`` of each task, as served, in one layer.

    In the orthonormal columns ``[V Q]`` both are small, so it is exact.
    """
    old_factors: dict[Side, Tensor] = {}
    new_factors: dict[Side, Tensor] = {}
    changes: dict[Side, Tensor] = {}
    for side, coefficients in before:
        U = turn[side].matrix
        leading = U[:, : new[side].num_factors]
        E = coefficients.double()
        held = E.new_zeros(E.shape[0], U.shape[0], E.shape[2])
        held[:, : old[side].num_factors] = E[:, : old[side].num_factors]
        said = leading @ (leading[: E.shape[1]].mT @ E)
        old_factors[side], new_factors[side], changes[side] = held, said, said - held

    return _squared_difference(old_factors, new_factors, changes)


def _settle(
    update: TaskUpdate, newcomers: Mapping[str, _Newcomer], new: Subspace
) -> tuple[MergedTask, float]:
    """Say a new task in the new columns, and measure what of its ``dW`` the served ones lose."""
    layers, lost, whole = {}, 0.0, 0.0
    for name, layer in newcomers.items():
        coefficients = LayerCoefficients(*(
            (new.layers[name][side].vectors.double().mT @ factor).to(new.layers[name][side].vectors.dtype)
            for side, factor in layer.factors
        ))  # fmt: skip
        layers[name] = MergedLayer(coefficients, layer.grams, layer.weights)
        lost += _squared_loss(layer.factors, coefficients, new.layers[name])
        whole += float(((layer.factors.b.mT @ layer.factors.b) * (layer.factors.a.mT @ layer.factors.a)).sum())  # fmt: skip
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
    return float(_squared_difference({"a": factors.a, "b": factors.b}, said, changes))


def _squared_difference(
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
