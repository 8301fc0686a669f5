"""One side of one layer in a merge: the small SVD first, then where to cut it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from share_dist.core.account import TakenOut, taken_out
from share_dist.core.linalg import (
    angle_from_sine,
    largest_entry_signs,
    left_svd,
    orthonormalise,
    rank_tolerance,
    tall_gram,
)
from share_dist.core.newcomers import Newcomer
from share_dist.core.outcome import SideReport, SideRotation
from share_dist.core.values import Basis, MergedTask, Pair, Side, Subspace

_BYTES_AT_ONCE = 2**21
"""Of bases that are worked on at once where there is a cache to stay in."""

_MERGES_BETWEEN_CHECKS = 64
"""Rounding turns columns by less than 1e-6 meanwhile: a look at every merge would cost a third of it."""

_CREDIT, _DOUBT = 1.5, 0.5
"""How much of the mean loss a new direction is credited with, and how fast: found on streams sorted by theme."""

_CROOKED = 1e-6
"""Entry of ``V.T V - I`` from which on columns are straightened; 1e-5 is what is promised."""


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
        said: ``(m + q', s)``; the newcomers' raw factors, side by side, in the columns ``[V Q]``
            and their dtype.
        rank: How many singular values are more than rounding.
        taken_out: The tasks whose former contribution is no longer in it.
        past: ``H``, ``(m, m)``; ``V H H.T V.T`` is the second moment of the tasks that stay.
        credit: Energy that each of the new directions is credited with, as ``merge`` says it.
    """

    old: Basis
    directions: Tensor
    matrix: Tensor
    sigma: Tensor
    said: Tensor
    rank: int
    taken_out: TakenOut
    past: Tensor
    credit: float = 0.0

    @property
    def cut_before(self) -> float:
        """Energy of the tasks that stay which earlier merges have cut, but for what is credited."""
        return max(
            0.0, _cut_before(self.old, self.taken_out) - self.credit * self.directions.shape[1]
        )

    def cut(self, k: int, columns: int, *, shrinks: bool = False) -> MergedSide:
        """
        Keep some columns, and say how the old ones become them.

        Args:
            k: Those that are broadcast.
            columns: All that are kept; at most ``rank``.
            shrinks: As ``Truncation`` says it.
        """
        U, vectors = self._turned(columns)
        energies = self.sigma.square()
        beyond = energies[columns : self.rank]
        shrunk = beyond[:1].sum() if shrinks else beyond.new_zeros(())
        kept = energies[:columns] - shrunk
        cut = float(beyond.sum() + columns * shrunk)
        total = float(kept.sum()) + cut + self.cut_before
        outside = _outside(U, self.old.num_factors, k)
        return MergedSide(
            basis=Basis(vectors, kept, k, self.cut_before + cut),
            rotation=SideRotation(U, self.directions),
            report=SideReport(
                explained_energy=float(kept[:k].sum()) / total if total else 1.0,
                cut_energy=cut,
                num_factors=k,
                num_columns=columns,
                angle=angle_from_sine(outside) if outside.numel() else 0.0,
                residue_bound=self.taken_out.bound,
                moved=self._moved(k),
            ),
            lost=self.matrix[:, columns : self.rank],
            cut_moment=float(torch.linalg.vector_norm(torch.cat([beyond, shrunk.expand(columns)])))
            + self.credit * math.sqrt(self.directions.shape[1]),
        )

    def _turned(self, columns: int) -> tuple[Tensor, Tensor]:
        """Make the new columns, each with its largest entry positive, and the ``U`` that leads to them."""
        U = self.matrix[:, :columns].contiguous()
        vectors = SideRotation(U, self.directions).advance(self.old.vectors)
        signs = largest_entry_signs(vectors)
        if bool((signs < 0).any()):
            # exact, so that whoever follows by the rotation gets these very columns
            vectors, U = vectors * signs, U * signs.to(U.dtype)
        return U, vectors

    def _moved(self, k: int) -> float:
        """
        Find how far the served part of the tasks that stay is moved, all of them together.

        The projection on the old served columns becomes that on the new ones, ``P_0 -> P_1``, and
        ``sum w |(P_1 - P_0) F N^(1/2)|^2 = |(P_1 - P_0) V H|^2``: the tasks' second moment tells it.
        """
        m, k_old = self.old.num_columns, self.old.num_factors
        gained = self.matrix[k_old:m, :k].mT @ self.past[k_old:]
        lost = self.matrix[:k_old, k:].mT @ self.past[:k_old]
        whole = float(self.past.square().sum()) + self.cut_before
        moved = float(gained.square().sum() + lost.square().sum())
        return math.sqrt(moved / whole) if whole else 0.0


def side_spectra(
    subspace: Subspace,
    newcomers: Mapping[str, Mapping[str, Newcomer]],
    leaving: Sequence[MergedTask],
    *,
    gives_credit: bool = False,
) -> dict[str, Pair[SideSpectrum]]:
    """
    Decompose every side of every layer: the past less the tasks that go, beside the newcomers.

    Args:
        subspace: The current version.
        newcomers: Update -> its layers as weighted columns.
        leaving: Tasks whose contribution is taken out first.
        gives_credit: Credit directions that come anew, as ``merge`` says it.
    """
    done: dict[tuple[str, Side], SideSpectrum] = {}
    straightens = subspace.version % _MERGES_BETWEEN_CHECKS == _MERGES_BETWEEN_CHECKS - 1
    for members in _batches(subspace, newcomers):
        old = [subspace.layers[name][side] for name, side, *_ in members]
        gone = [taken_out(leaving, name, side) for name, side, *_ in members]
        pasts = [
            _past(basis, name, side, leaving, out.kept)
            for basis, (name, side, *_), out in zip(old, members, gone, strict=True)
        ]
        F, mixes = [F for *_, F, _ in members], [mix for *_, mix in members]
        results = _decompose(old, torch.stack(pasts), torch.stack(F), torch.stack(mixes), gone, straightens=straightens, gives_credit=gives_credit)  # fmt: skip
        done |= {(name, side): result for (name, side, *_), result in zip(members, results, strict=True)}  # fmt: skip
    return {name: Pair(done[name, "a"], done[name, "b"]) for name in subspace.layers}


def _batches(
    subspace: Subspace, newcomers: Mapping[str, Mapping[str, Newcomer]]
) -> Iterator[list[tuple[str, Side, Tensor, Tensor]]]:
    """Gather sides of equal shape, with the newcomers' raw factors ``F``, and what makes columns of them."""
    groups: dict[object, list[tuple[str, Side, Tensor, Tensor]]] = defaultdict(list)
    for name, layer in subspace.layers.items():
        for side, basis in layer:
            V = basis.vectors
            F = [V.new_zeros(V.shape[0], 0), *(each[name].factors[side] for each in newcomers.values())]  # fmt: skip
            mix = _beside([each[name].mixes[side] for each in newcomers.values()], V.device)
            factors = torch.cat(F, dim=1)
            key = (V.shape, mix.shape, factors.shape, V.dtype, V.device)
            groups[key].append((name, side, factors, mix))
    for members in groups.values():
        V = subspace.layers[members[0][0]][members[0][1]].vectors
        # a processor's cache holds a few bases: more at once would be read from memory at every product
        at_once = len(members) if V.is_cuda else max(1, _BYTES_AT_ONCE // max(1, V.nbytes))
        for start in range(0, len(members), at_once):
            yield members[start : start + at_once]


def _beside(mixes: Sequence[Tensor], device: torch.device) -> Float[Tensor, "s q"]:
    """Put matrices on the diagonal of one."""
    whole = torch.zeros(
        sum(mix.shape[0] for mix in mixes), sum(mix.shape[1] for mix in mixes), dtype=torch.float64
    ).to(device)
    row = column = 0
    for mix in mixes:
        whole[row : row + mix.shape[0], column : column + mix.shape[1]] = mix
        row, column = row + mix.shape[0], column + mix.shape[1]
    return whole


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
    F: Float[Tensor, "b d s"],
    mix: Float[Tensor, "b s q"],
    gone: Sequence[TakenOut],
    *,
    straightens: bool,
    gives_credit: bool,
) -> list[SideSpectrum]:
    V = torch.stack([basis.vectors for basis in old])
    m = V.shape[-1]
    tolerance = rank_tolerance(V.dtype, V.shape[1])
    upright = _upright(V) if straightens else None
    if upright is not None:
        V = V @ upright.to(V.dtype)

    said = V.mT @ F  # so that X = F mix = V said mix + R, without forming X
    R = torch.baddbmm(F, V, said, alpha=-1) @ mix.to(V.dtype)
    C = said.double() @ mix
    norm = torch.hypot(torch.linalg.matrix_norm(C), torch.linalg.matrix_norm(R).double())
    # what two factors that nearly cancel leave is rounding of the size of both
    reach = torch.linalg.vector_norm(F, dim=-2) * torch.linalg.vector_norm(mix, dim=-1)
    rounding = 4 * torch.finfo(V.dtype).eps * torch.linalg.vector_norm(reach, dim=-1)
    floor = torch.maximum(norm * tolerance, rounding)
    Q, S, D = orthonormalise(R, V, floor)
    said = torch.cat([said, Q.mT @ F], dim=-2)

    incoming = torch.cat([C + D, S], dim=-2)
    held = torch.cat([past, S.new_zeros(*S.shape[:-1], m)], dim=-2)
    is_live = (S != 0).any(dim=-1)  # directions that bring nothing come last
    columns, credit = [held, incoming], [0.0] * len(old)
    if gives_credit:
        found = _credit([_cut_before(*each) for each in zip(old, gone, strict=True)], V, S, is_live)
        credit = found.tolist()
        on_their_own = torch.diag_embed(is_live * found.sqrt().unsqueeze(-1))
        columns.append(torch.cat([S.new_zeros(len(old), m, S.shape[-2]), on_their_own], dim=-2))
    U, sigma = left_svd(torch.cat(columns, dim=-1), is_single=V.dtype == torch.float32)
    floors = torch.maximum(floor, sigma[..., 0] * 1e-14) if sigma.shape[-1] else floor
    if upright is not None:
        U = torch.cat([upright @ U[..., :m, :], U[..., m:, :]], dim=-2)
    live = is_live.sum(dim=-1).tolist()
    return [
        SideSpectrum(
            old=basis,
            directions=Q[index, :, : live[index]].contiguous(),
            matrix=U[index, : m + live[index]],
            sigma=sigma[index],
            said=said[index, : m + live[index]],
            rank=int((sigma[index] > floors[index]).sum()),
            taken_out=gone[index],
            past=past[index],
            credit=credit[index],
        )
        for index, basis in enumerate(old)
    ]


def _cut_before(old: Basis, gone: TakenOut) -> float:
    left = old.cut_energy - gone.cut
    # both are sums of the same numbers: less than their rounding is nothing
    return left if left > 1e-12 * old.cut_energy else 0.0


def _credit(
    cut: Sequence[float],
    V: Float[Tensor, "b d m"],
    S: Float[Tensor, "b c q"],
    is_live: Bool[Tensor, "b c"],
) -> Float[Tensor, " b"]:
    """
    Find what each new direction is credited with: ``1.5 a^2 / (a + e / 2)``.

    ``a`` is the energy cut so far over the directions that are not kept: what one of them has lost, on average. Those
    that tasks use come back, so it is rather more; but less while it is no more than ``e``, the energy that a new direction brings
    itself: then few have come, and most directions are new for the first time.
    """
    lost, count = S.new_tensor(cut), is_live.sum(dim=-1).clamp_min(1)
    a = lost / max(1, V.shape[-2] - V.shape[-1])
    e = S.square().sum(dim=(-2, -1)) / count
    credit = _CREDIT * a.square() / (a + _DOUBT * e)
    # no more than was cut; and nothing where neither was anything cut nor anything comes
    return torch.minimum(torch.where(a > 0, credit, 0.0), lost / count)


def _upright(V: Float[Tensor, "b d m"]) -> Float[Tensor, "b m m"] | None:
    """Find what makes columns orthonormal again to first order, ``I - (V.T V - I) / 2``, where rounding has turned them."""
    identity = torch.eye(V.shape[-1], dtype=torch.float64, device=V.device)
    excess = torch.stack([tall_gram(each) for each in V]) - identity
    if not bool((excess.abs() > _CROOKED).any()):
        return None
    return identity - excess / 2


def _outside(U: Float[Tensor, "mq m_new"], k_old: int, k_new: int) -> Tensor:
    """Find the part of the smaller of two broadcast spans that lies outside the other one."""
    if min(k_old, k_new) == 0:
        return U.new_zeros(0, 0)
    leading = U[:, :k_new]
    if k_new <= k_old:
        return leading[k_old:]
    held = torch.eye(U.shape[0], dtype=U.dtype, device=U.device)[:, :k_old]
    return held - leading @ leading[:k_old].mT
