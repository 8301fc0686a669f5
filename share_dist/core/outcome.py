"""What a merge returns: the next version, how it got there, and what it did."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.table import TaskTable
from share_dist.core.values import Pair, Subspace


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
        U = self.matrix.to(vectors.dtype)
        m = vectors.shape[1]
        return torch.addmm(self.directions @ U[m:], vectors, U[:m])

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
        explained_energy: Share of the energy of everything merged, as it was merged, that the
            ``k`` broadcast factors hold, 0 to 1.
        cut_energy: Energy of the columns that this merge did not keep at all (beyond ``m``).
        num_factors: ``k``.
        num_columns: ``m``.
        angle: Largest principal angle to the version before, radians.
        residue_bound: What the tasks taken out may have left behind, as ``MergeReport`` says it.
        moved: How far the served part of the tasks that stay is moved on this side, relative to
            each task's own norm: root mean square over the tasks, by weight.
    """

    explained_energy: float
    cut_energy: float
    num_factors: int
    num_columns: int
    angle: float
    residue_bound: float = 0.0
    moved: float = 0.0


@dataclass(frozen=True)
class MergeReport:
    """
    What a merge did: to the subspace, to the old tasks, to the new ones.

    Args:
        version: The version that it made.
        update_ids: The updates merged, sorted.
        task_ids: Their tasks, in the same order.
        layers: Layer name -> both sides.
        drift: Old task -> ``||dW(after) - dW(before)||_F`` over all layers, as served; measured
            when somebody asks.
        lag: Update -> versions between its base version and the one merged into.
        base_angle: Update -> largest principal angle between those two, radians.
        truncation: Update -> relative Frobenius error of its ``dW`` after the merge.
        removed_task_ids: Tasks taken out for good, sorted.
    """

    version: int
    update_ids: tuple[str, ...]
    task_ids: tuple[str, ...]
    layers: Mapping[str, Pair[SideReport]]
    drift: Mapping[str, float]
    lag: Mapping[str, int]
    base_angle: Mapping[str, float]
    truncation: Mapping[str, float]
    removed_task_ids: tuple[str, ...] = ()

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
    def residue_bound(self) -> float:
        """
        How much of the tasks taken out, removed or replaced, may be left, relative to their own energy.

        Bounds the Frobenius norm of the difference between the second moment of the tasks that
        stay, as it is kept, and what it would be had the others never come; the largest over layers and
        sides. 0 says that nothing was cut while they were here: nothing of them is left.
        """
        return max((side.residue_bound for side in self._sides()), default=0.0)

    @property
    def mean_drift(self) -> float:
        """
        Bound of how far the tasks that stay are moved, from the energies alone: no task is looked at.

        Of ``||dW(after) - dW(before)||_F``, as served, relative to the task's norm as it came (``||A|| ||B||``
        under the metric ``"factors"``): root mean square over layers, and over tasks by weight.
        With ``B P_B`` and ``P_A A`` for what is served, ``P_0 -> P_1`` moves ``B A.T`` by
        ``(P_1 - P_0)_B B A.T P_1A + P_0B B A.T (P_1 - P_0)_A``, whose norms are at most the sides' own.
        """
        shares = [layer.a.moved + layer.b.moved for layer in self.layers.values()]
        return math.sqrt(sum(share**2 for share in shares) / len(shares)) if shares else 0.0

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
            "residue_bound": self.residue_bound,
            "angle": self.angle,
            "mean_drift": self.mean_drift,
            "num_factors": self.num_factors,
        }


@dataclass(frozen=True)
class MergeOutcome:
    """
    What a merge returns; its inputs are as they were.

    Args:
        subspace: The next version.
        tasks: Every task, old and new, in its columns; brought up to date when somebody reads.
        rotation: Layer name -> how each side got there.
        report: What the merge did.
    """

    subspace: Subspace
    tasks: TaskTable
    rotation: dict[str, LayerRotation]
    report: MergeReport
