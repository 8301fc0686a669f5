"""Keeping: what holds former tasks while another is learnt in the same weights, as plain mathematics."""

import torch
from jaxtyping import Float
from torch import Tensor


def overlap(side_a: Float[Tensor, "r d"], earlier: Float[Tensor, "s d"]) -> Float[Tensor, ""]:
    """
    Sum the squared inner products of two sides A, row by row: 0 where they are orthogonal.

    Shapes:
        r: rank of the one that is learnt
        s: of all former ones together

    Source:
        Wang et al., 2023, O-LoRA: the orthogonality loss.

    Examples:
        >>> float(overlap(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 2.0]])))
        4.0
    """
    products: Tensor = side_a @ earlier.mT
    return products.square().sum()


def elastic_penalty(
    change: Float[Tensor, "n d"], fisher: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """
    Tell what former tasks lose by a change of the weights, to second order: ``1/2 sum F c^2``.

    Args:
        change: Of the weights, since they were learnt.
        fisher: The diagonal of their Fisher information.

    Source:
        Kirkpatrick et al., 2017, elastic weight consolidation.

    Examples:
        >>> float(elastic_penalty(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 4.0]])))
        4.0
    """
    return (fisher * change.square()).sum() / 2


def strongest(moments: Float[Tensor, "r r"], share: float) -> Float[Tensor, "r c"]:
    """
    Find the fewest directions that hold a share of a second moment's energy.

    Args:
        moments: Symmetric, not negative: ``sum G' G``.
        share: 0 to 1.

    Returns:
        Orthonormal columns, the strongest first; none of a moment of zero.

    Examples:
        >>> strongest(torch.diag(torch.tensor([1.0, 9.0])), 0.8).abs().tolist()
        [[0.0], [1.0]]
    """
    values, vectors = torch.linalg.eigh(moments.double())
    energies = values.flip(0).clamp_min(0)
    before = energies.cumsum(0) - energies
    kept = (before < share * energies.sum()) & (energies > 0)
    directions: Tensor = vectors.flip(1)[:, kept].to(moments.dtype)
    return directions
