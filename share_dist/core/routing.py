"""
Routing: which task an input belongs to, where nobody says it, told from the subspace itself.

An input's *coordinates* are what the frozen model's adapted layers are given, said in the principal factors
of side A: ``z = V_A' x``, the mean over a row's tokens, layers side by side. Every task needs them anyway; one pass of
the base model gives them for all tasks. Tasks differ in where their inputs lie there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from share_dist.errors import ShapeMismatch


@dataclass(frozen=True)
class Router:
    """
    Tasks as normal distributions of coordinates that share a covariance.

    Args:
        task_ids: ``t`` tasks.
        means: ``(t, c)``, of each task's coordinates, whitened.
        whitening: ``(c, c)``; coordinates times it have covariance one within a task.
        center: ``(c,)``, subtracted before.
        temperature: What squared distances are divided by, calibrated on rows that nothing was fitted to.
        farthest: Beyond this distance from every task an input is of none of them.
        least_sure: Nor is an input whose likeliest task is less likely than this: it lies between tasks.
    """

    task_ids: tuple[str, ...]
    means: Tensor
    whitening: Tensor
    center: Tensor
    temperature: float
    farthest: float
    least_sure: float

    def __post_init__(self) -> None:
        size = len(self.center)
        if self.means.shape != (len(self.task_ids), size) or self.whitening.shape != (size, size):
            raise ShapeMismatch(
                f"a router of {len(self.task_ids)} tasks and {size} coordinates needs means of as "
                f"many, got {tuple(self.means.shape)} and {tuple(self.whitening.shape)}"
            )

    def distances(self, coordinates: Float[Tensor, "rows c"]) -> Float[Tensor, "rows t"]:
        """
        Tell how far each row is from each task: Mahalanobis distances, in standard deviations.

        Raises:
            ShapeMismatch: Rows have another number of coordinates than the router.
        """
        if coordinates.shape[1] != len(self.center):
            raise ShapeMismatch(
                f"rows of {len(self.center)} coordinates are routed here, got {tuple(coordinates.shape)}: "
                "gather them in the version that the router was fitted in"
            )
        whitened = (coordinates.to(self.center) - self.center) @ self.whitening
        return torch.cdist(whitened, self.means, compute_mode="donot_use_mm_for_euclid_dist")

    def probabilities(self, coordinates: Float[Tensor, "rows c"]) -> Float[Tensor, "rows t"]:
        """Tell how likely each task is, all being as likely before; rows sum to one."""
        return self._likely(self.distances(coordinates))

    def choose(self, coordinates: Float[Tensor, "rows c"]) -> list[str | None]:
        """
        Choose the nearest task of each row; None, the plain base model, where none is near or two are nearly as near.

        Examples:
            >>> sides = torch.tensor([[-3.0], [3.0]])
            >>> router = Router(("left", "right"), sides, torch.eye(1), torch.zeros(1), 1.0, 2.5, 0.9)
            >>> router.choose(torch.tensor([[-2.0], [2.0], [9.0], [0.1]]))
            ['left', 'right', None, None]
        """
        distances = self.distances(coordinates)
        nearest, sure = distances.min(dim=1), self._likely(distances).amax(dim=1)
        is_of_one = (nearest.values <= self.farthest) & (sure >= self.least_sure)
        return [
            self.task_ids[task] if is_known else None
            for is_known, task in zip(is_of_one.tolist(), nearest.indices.tolist(), strict=True)
        ]

    def _likely(self, distances: Float[Tensor, "rows t"]) -> Float[Tensor, "rows t"]:
        return torch.softmax(-distances.square() / (2 * self.temperature), dim=1)


def calibrated_temperature(
    distances: Float[Tensor, "rows t"], tasks: Sequence[int], among: Sequence[float]
) -> float:
    """
    Choose what squared distances are divided by: the least mean negative log-likelihood of the true tasks.

    Args:
        distances: Of rows that nothing was fitted to.
        tasks: The true task of each row.
        among: Temperatures to choose from.
    """
    truth = torch.tensor(tasks)
    losses = [
        float(torch.nn.functional.cross_entropy(-distances.square() / (2 * each), truth))
        for each in among
    ]
    return among[min(range(len(losses)), key=losses.__getitem__)]


def abstention_bounds(
    nearest: Float[Tensor, " rows"], sure: Float[Tensor, " rows"], kept_share: float
) -> tuple[float, float]:
    """
    Choose how far is too far and how sure is not enough: as many held-out rows lie beyond the one bound as the other.

    Args:
        nearest: Distances to the nearest task, of rows that nothing was fitted to.
        sure: How likely that task is for each.
        kept_share: At least this share of the rows lies within both bounds. A row beyond each makes two: of fewer than
            ``2 / (1 - kept_share)`` rows all are kept, unless one is both farthest and least sure.

    Returns:
        The largest distance and the least likelihood with which a row is a task's.

    Examples:
        >>> abstention_bounds(torch.tensor([1.0, 2.0, 9.0, 3.0]), torch.tensor([0.9, 0.4, 1.0, 0.8]), 0.5)
        (3.0, 0.800000011920929)
    """
    falling, rising = nearest.sort(descending=True).values, sure.sort().values
    # how many rows lie at least as far out by either, so that equal rows stand or fall together
    num_as_far = torch.searchsorted(-falling, -nearest, right=True)
    num_as_unsure = torch.searchsorted(rising, sure, right=True)
    num_out = torch.minimum(num_as_far, num_as_unsure).sort().values - 1
    beyond = int(num_out[len(nearest) - math.ceil(kept_share * len(nearest))])
    return float(falling[beyond]), float(rising[beyond])


def calibration_error(
    confidences: Float[Tensor, " rows"],
    are_right: Bool[Tensor, " rows"],
    num_bins: int = 10,
) -> float:
    """
    Tell how far confidences are from frequencies: the expected calibration error.

    Rows are put into bins of equal width by confidence; a bin's error is that of its mean confidence
    against its share of right rows, and counts by its rows.

    Args:
        confidences: 0 to 1.
        are_right: Whether each row's choice was right.
        num_bins: How many bins.

    Returns:
        0 to 1; 0 of no rows.

    Source:
        Guo et al., 2017.

    Examples:
        >>> calibration_error(torch.tensor([0.75, 0.75, 1.0, 1.0]), torch.tensor([True, False, True, True]))
        0.125
    """
    if not len(confidences):
        return 0.0
    bins = (confidences * num_bins).long().clamp_max(num_bins - 1)
    excess = confidences.double() - are_right.double()
    sums = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, excess)
    return float(sums.abs().sum()) / len(confidences)
