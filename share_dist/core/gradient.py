"""
What a task's first gradient says about how to begin.

``G = dL/dW`` of a layer, ``(n, d)``, at the frozen model, says which changes of the weight lower the loss
most. A few of its directions hold most of it, and only a part of them lies in the bases.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.linalg import rank_tolerance
from share_dist.core.temporary import propose_temporary

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
