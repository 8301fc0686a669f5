"""
What a task's first gradient says about how to begin.

``G = dL/dW`` of a layer, ``(n, d)``, at the frozen model, says which changes of the weight lower the loss
most. A few of its directions hold most of it, and only a part of them lies in the bases.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.linalg import rank_tolerance
from share_dist.core.temporary import propose_temporary
from share_dist.core.values import LayerFactors

_OVERSAMPLE = 8
"""Columns of a random sketch beyond those asked for: the leading ones are then near the exact ones."""


def share_inside(
    gradient: Float[Tensor, "n d"], basis_b: Float[Tensor, "n k_b"], basis_a: Float[Tensor, "d k_a"]
) -> float:
    """
    Tell how much of a gradient's energy coefficients can follow: ``|V_B' G V_A|^2 / |G|^2``.

    Returns:
        0 to 1; a random basis has ``k_a k_b / (n d)`` on average. 1 for a gradient of zero.

    Examples:
        >>> gradient, basis = torch.diag(torch.tensor([3.0, 4.0])), torch.eye(2)[:, :1]
        >>> round(share_inside(gradient, basis, basis), 2)
        0.36
    """
    whole = float(gradient.double().square().sum())
    inside = float((basis_b.mT @ gradient @ basis_a).double().square().sum())
    return inside / whole if whole else 1.0


def leading_outside(
    gradient: Float[Tensor, "m d"],
    basis: Float[Tensor, "d k"],
    num_temporary: int,
    generator: torch.Generator,
) -> Float[Tensor, "d f"]:
    """
    Find the directions outside of a basis that hold most of a gradient: the leading right singular vectors of ``G (I - V V')``.

    For side A the gradient as it is, for side B its transpose.

    Shapes:
        d: features of this side
        k: principal factors; may be 0
        f: ``num_temporary``

    Accuracy:
        Of a randomised SVD with two power iterations. Where the gradient has fewer
        directions outside, the others are random.

    Returns:
        Orthonormal columns, orthogonal to the basis.

    Raises:
        RankTooLarge: The features have no ``num_temporary`` directions left.

    Examples:
        >>> gradient = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> found = leading_outside(gradient, torch.eye(3)[:, :1], 1, torch.Generator().manual_seed(0))
        >>> found.abs().round(decimals=4).flatten().tolist()
        [0.0, 1.0, 0.0]
    """
    proposed = propose_temporary(basis, num_temporary, generator)
    if num_temporary == 0 or not gradient.any():
        return proposed
    scaled = gradient / gradient.abs().max()
    outside = scaled - (scaled @ basis) @ basis.mT
    rank = min(num_temporary + _OVERSAMPLE, *outside.shape)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        _, sigma, found = torch.svd_lowrank(outside, q=rank, niter=2)
    rounding = rank_tolerance(gradient.dtype, len(basis)) * torch.linalg.matrix_norm(scaled)
    kept = found[:, sigma > rounding][:, :num_temporary]
    # what was proposed fills up, and the basis is taken out once more: digits are lost near its span
    columns = torch.cat([kept, proposed], dim=1)
    columns = columns - basis @ (basis.mT @ columns)
    directions: Tensor = torch.linalg.qr(columns).Q
    return directions[:, :num_temporary]


def aligned_coefficients(
    gradient: Float[Tensor, "n d"],
    span_b: Float[Tensor, "n s_b"],
    span_a: Float[Tensor, "d s_a"],
    pseudo_rank: int,
) -> Float[Tensor, "s_a p"]:
    """
    Choose the combinations of directions of side A in which a first step of side B lowers the loss most.

    With side B at zero the first step of its coefficients is along ``S_B' G F_A``. It is largest where ``F_A``
    are the leading right singular vectors of ``S_B' G S_A``.

    Shapes:
        s_a, s_b: directions of a side, principal and temporary
        p: ``pseudo_rank``

    Returns:
        Orthonormal columns; zeros where ``p`` exceeds the directions that there are.

    Examples:
        >>> gradient, span = torch.diag(torch.tensor([1.0, 3.0])), torch.eye(2)
        >>> aligned_coefficients(gradient, span, span, 1).abs().round(decimals=4).flatten().tolist()
        [0.0, 1.0]
    """
    core = (span_b.mT @ gradient @ span_a).double()
    scale = core.abs().max() if core.numel() else core.new_ones(())
    _, _, Vt = torch.linalg.svd(core / torch.where(scale > 0, scale, 1.0), full_matrices=False)
    chosen = Vt[:pseudo_rank].mT.to(gradient.dtype)
    empty = chosen.new_zeros(len(chosen), pseudo_rank - chosen.shape[1])
    return torch.cat([chosen, empty], dim=1)


def num_temporary_for(
    gradient: Float[Tensor, "n d"],
    span_b: Float[Tensor, "n s_b"],
    span_a: Float[Tensor, "d s_a"],
    most: int,
    pseudo_rank: int,
    reach: float,
) -> int:
    """
    Count the temporary factors that a task of a layer needs, down to none where the bases suffice.

    A weight change of rank ``p`` can follow no more of a gradient than its ``p`` leading singular values. As many
    factors are needed as let the best change of rank ``p`` within the spans follow a share of that.

    Shapes:
        s_a, s_b: directions of a side, the ``most`` last of them temporary, the leading one first
        p: ``pseudo_rank``

    Args:
        gradient: At the frozen model.
        span_b: Of side B.
        span_a: Of side A.
        most: Temporary factors in each span.
        pseudo_rank: ``p``.
        reach: The share of the energy that is enough, 0 to 1.

    Returns:
        0 to ``most``; ``most`` where even all do not reach so much.

    Examples:
        >>> gradient, span = torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2)
        >>> [num_temporary_for(gradient, span, span, 1, 2, reach) for reach in (0.8, 0.9)]
        [0, 1]
    """
    wanted = reach * _leading_energy(gradient.double(), pseudo_rank)
    core = (span_b.mT @ gradient @ span_a).double()
    for count in range(most):
        without = core[: len(core) - (most - count), : core.shape[1] - (most - count)]
        if _leading_energy(without, pseudo_rank) >= wanted:
            return count
    return most


def alignment(gradients: Mapping[str, Tensor], factors: Mapping[str, LayerFactors]) -> float:
    """
    Tell how much of what a gradient asks for is a task's weight change: ``-<G, dW> / (|G| |dW|)`` over all layers.

    Args:
        gradients: Layer -> ``(n, d)``, at the frozen model.
        factors: Of the task, of the same layers.

    Returns:
        -1 to 1; above 0 a small step along the task's change lowers the loss. 0 where one of them is zero.

    Examples:
        >>> change = LayerFactors(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        >>> alignment({"0": torch.tensor([[-3.0]])}, {"0": change})
        1.0
    """
    inner, of_gradient, of_change = 0.0, 0.0, 0.0
    for name, layer in factors.items():
        gradient, a, b = gradients[name].double(), layer.a.double(), layer.b.double()
        inner -= float((b.mT @ gradient @ a).diagonal().sum())
        of_gradient += float(gradient.square().sum())
        of_change += float(((a.mT @ a) * (b.mT @ b)).sum())
    norms = math.sqrt(of_gradient) * math.sqrt(max(of_change, 0.0))
    return inner / norms if norms else 0.0


def _leading_energy(matrix: Tensor, rank: int) -> float:
    """Energy of the leading singular values."""
    if not matrix.numel():
        return 0.0
    shorter = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return float(torch.linalg.eigvalsh(shorter @ shorter.mT)[-rank:].sum())
