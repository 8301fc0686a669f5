"""One side of one layer in a merge: the small SVD first, then where to cut it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.account import TakenOut, taken_out
from share_dist.core.linalg import (
    angle_from_sine,
    largest_entry_signs,
    orthonormalise,
    rank_tolerance,
    thin_svd,
)
from share_dist.core.newcomers import Newcomer
from share_dist.core.outcome import SideReport, SideRotation
from share_dist.core.values import Basis, MergedTask, Pair, Side, Subspace
from share_dist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Truncation:
    """
    How many columns a merge keeps on each side; never beyond the numerical rank.

    Args:
        num_factors: ``k``; None for all that the data have.
        energy: Instead, or as well: the least ``k`` that explains this share of the energy
            of everything merged, 0 to 1; all there is where what was cut before is too much.
        oversample: ``o``; columns kept beyond ``k``.
        least_factors: ``k`` is not chosen below this, whatever the others say.
        keeps_factors: Nor below what the side has now.
        shrink: Take the energy of the first column that is cut from every column that is kept, as
            Frequent Directions does (Liberty, 2013). In no direction is then more energy lost over
            all merges than ``basis.cut_energy / (m + 1)``, whatever arrived; in practice the
            leading columns are worse.
    """

    num_factors: int | None = None
    energy: float | None = None
    oversample: int = 0
    least_factors: int = 0
    keeps_factors: bool = False
    shrink: bool = False

    def __post_init__(self) -> None:
        if self.num_factors is not None and self.num_factors < 1:
            raise ConfigError(
                f"num_factors is {self.num_factors}: ask for at least 1", key="num_factors"
            )
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy is {self.energy}: give a share in (0, 1]", key="energy")
        if self.oversample < 0:
            raise ConfigError(f"oversample is {self.oversample}: give 0 or more", key="oversample")

    def choose(self, side: "SideSpectrum") -> tuple[int, int]:
        """Choose ``k`` and ``m`` for one side."""
        k = side.rank if self.num_factors is None else self.num_factors
        if self.energy is not None:
            squares = side.sigma.square()
            share = self.energy * (float(squares.sum()) + side.cut_before) * (1 - 1e-12)
            k = min(k, int((squares.cumsum(0) < share).sum()) + 1)
        k = max(k, self.least_factors, side.old.num_factors if self.keeps_factors else 0)
        k = min(k, side.rank)
        return k, min(side.rank, k + self.oversample)


@dataclass(frozen=True, slots=True)
class MergedSide:
    """
    One side of one layer after the cut.

    Args:
        basis: The next one.
        rotation: How the old one becomes it.
        report: What the merge did.
        lost: ``(m + q', c)``; what is cut, in the columns ``[V Q]``.
        cut_moment: Frobenius norm of the second moment that is cut.
    """

    basis: Basis
    rotation: SideRotation
    report: SideReport
    lost: Tensor
    cut_moment: float


@dataclass(frozen=True, slots=True)
class SideSpectrum:
    """
    One side of one layer after the small SVD, before anything is cut.

    Args:
        old: The basis before.
        directions: ``Q``, ``(d, q')``; what is new.
        matrix: ``U``, ``(m + q', c)``; all left singular vectors.
        sigma: ``(c,)``, never increasing.
        incoming: ``(m + q', q)``; the newcomers' weighted columns, in the columns ``[V Q]``.
        rank: How many singular values are more than rounding.
        taken_out: The tasks whose former contribution is no longer in it.
    """

    old: Basis
    directions: Tensor
    matrix: Tensor
    sigma: Tensor
    incoming: Tensor
    rank: int
    taken_out: TakenOut

    @property
    def cut_before(self) -> float:
        """Energy of the tasks that stay which earlier merges have cut."""
        left = self.old.cut_energy - self.taken_out.cut
        # both are sums of the same numbers: less than their rounding is nothing
        return left if left > 1e-12 * self.old.cut_energy else 0.0

    def cut(self, truncation: Truncation) -> MergedSide:
        """Keep as many columns as a truncation says, and say how the old ones become them."""
        k, columns = truncation.choose(self)
        U = self.matrix[:, :columns]
        vectors = torch.cat([self.old.vectors, self.directions], dim=1) @ U.to(
            self.old.vectors.dtype
        )
        signs = largest_entry_signs(vectors)
        vectors, U = vectors * signs, U * signs.to(U.dtype)
        energies = self.sigma.square()
        beyond = energies[columns : self.rank]
        shrunk = beyond[:1].sum() if truncation.shrink else beyond.new_zeros(())
        kept = energies[:columns] - shrunk
        cut = float(beyond.sum() + columns * shrunk)
        total = float(kept.sum()) + cut + self.cut_before
        outside = _outside(U, self.old.num_factors, k)
        return MergedSide(
            basis=Basis(vectors.contiguous(), kept, k, self.cut_before + cut),
            rotation=SideRotation(U.contiguous(), self.directions),
            report=SideReport(
                explained_energy=float(kept[:k].sum()) / total if total else 1.0,
                cut_energy=cut,
                num_factors=k,
                num_columns=columns,
                angle=angle_from_sine(outside) if outside.numel() else 0.0,
                residue_bound=self.taken_out.bound,
            ),
            lost=self.matrix[:, columns : self.rank],
            cut_moment=float(torch.linalg.vector_norm(torch.cat([beyond, shrunk.expand(columns)]))),
        )


def side_spectra(
    subspace: Subspace,
    newcomers: Mapping[str, Mapping[str, Newcomer]],
    leaving: Sequence[MergedTask],
) -> dict[str, Pair[SideSpectrum]]:
    """
    Decompose every side of every layer: the past less the tasks that go, beside the newcomers.

    Args:
        subspace: The current version.
        newcomers: Update -> its layers as weighted columns.
        leaving: Tasks whose contribution is taken out first.
    """
    groups: dict[object, list[tuple[str, Side, Tensor]]] = defaultdict(list)
    for name, layer in subspace.layers.items():
        for side, basis in layer:
            columns = [update[name].columns[side] for update in newcomers.values()]
            new = torch.cat(
                [*columns, basis.vectors.new_zeros(basis.features, 0, dtype=torch.float64)], dim=1
            ).to(basis.vectors.dtype)
            key = (basis.vectors.shape, new.shape, basis.vectors.dtype, basis.vectors.device)
            groups[key].append((name, side, new))
    done: dict[tuple[str, Side], SideSpectrum] = {}
    for members in groups.values():
        old = [subspace.layers[name][side] for name, side, _ in members]
        gone = [taken_out(leaving, name, side) for name, side, _ in members]
        pasts = [
            _past(basis, name, side, leaving, out.kept)
            for basis, (name, side, _), out in zip(old, members, gone, strict=True)
        ]
        results = _decompose(
            old, torch.stack(pasts), torch.stack([new for *_, new in members]), gone
        )
        done |= {(name, side): result for (name, side, _), result in zip(members, results, strict=True)}  # fmt: skip
    return {name: Pair(done[name, "a"], done[name, "b"]) for name in subspace.layers}


def _past(
    basis: Basis, name: str, side: Side, leaving: Sequence[MergedTask], energy: float
) -> Float[Tensor, "m m"]:
    """Find ``H`` with ``V H H.T V.T`` the second moment of the past, less the tasks that go."""
    if not leaving:
        return torch.diag(basis.energies.sqrt()).to(basis.vectors.device)
    moment = torch.diag(basis.energies).to(basis.vectors.device)
    for task in leaving:
        layer = task.layers[name]
        E = layer.coefficients[side].double()
        moment = moment - layer.weights[side] * (E @ layer.grams[side] @ E.mT)
    energies, directions = torch.linalg.eigh(moment)
    # what is left in the directions of a task that is gone is rounding: of its own coefficients,
    # in their dtype, and of this float64 sum. Anything larger may be a neighbour of small weight.
    rounding = 8 * torch.finfo(basis.vectors.dtype).eps * energy
    rounding += 64 * torch.finfo(torch.float64).eps * float(basis.energies.sum())
    past: Tensor = directions * torch.where(energies > rounding, energies, 0.0).sqrt()
    return past


def _decompose(
    old: Sequence[Basis],
    past: Float[Tensor, "b m m"],
    new: Float[Tensor, "b d q"],
    gone: Sequence[TakenOut],
) -> list[SideSpectrum]:
    V = torch.stack([basis.vectors for basis in old])
    m = V.shape[-1]
    norm = torch.linalg.matrix_norm(new.double())
    tolerance = rank_tolerance(V.dtype, V.shape[1])

    C = V.mT @ new
    R = new - V @ C
    D = V.mT @ R  # once more: the first pass leaves rounding of the size of X inside the span
    R, C = R - V @ D, C + D
    Q, S = orthonormalise(R, V, floor=norm * tolerance)

    incoming = torch.cat([C.double(), S], dim=-2)
    past = torch.cat([past, S.new_zeros(*S.shape[:-1], m)], dim=-2)
    U, sigma, _ = thin_svd(torch.cat([past, incoming], dim=-1))
    floors = torch.maximum(norm * tolerance, sigma[..., 0] * 1e-14) if sigma.shape[-1] else norm
    live = (S != 0).any(dim=-1).sum(dim=-1).tolist()  # directions that bring nothing come last
    return [
        SideSpectrum(
            old=basis,
            directions=Q[index, :, : live[index]].contiguous(),
            matrix=U[index, : m + live[index]],
            sigma=sigma[index],
            incoming=incoming[index, : m + live[index]],
            rank=int((sigma[index] > floors[index]).sum()),
            taken_out=gone[index],
        )
        for index, basis in enumerate(old)
    ]


def _outside(U: Float[Tensor, "mq m_new"], k_old: int, k_new: int) -> Tensor:
    """Find the part of the smaller of two broadcast spans that lies outside the other one."""
    if min(k_old, k_new) == 0:
        return U.new_zeros(0, 0)
    leading = U[:, :k_new]
    if k_new < k_old:
        return leading[k_old:]
    held = torch.eye(U.shape[0], dtype=U.dtype, device=U.device)[:, :k_old]
    return held - leading @ leading[:k_old].mT
