"""Temporary factors: columns that live for one task and are merged or dropped."""

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.linalg import orthonormalise, rank_tolerance
from share_dist.core.values import SideUpdate
from share_dist.errors import RankTooLarge


def propose_temporary(
    basis: Float[Tensor, "d k"], num_temporary: int, generator: torch.Generator
) -> Float[Tensor, "d f"]:
    """
    Draw random directions that the basis cannot say.

    Shapes:
        d: features of this side
        k: principal factors; may be 0
        f: ``num_temporary``

    Returns:
        Orthonormal columns, orthogonal to the basis.

    Raises:
        RankTooLarge: The features have no ``num_temporary`` directions left.

    Examples:
        >>> basis = torch.eye(4)[:, :2]
        >>> new = propose_temporary(basis, 1, torch.Generator().manual_seed(0))
        >>> bool((basis.mT @ new).abs().max() < 1e-6)
        True
    """
    features, num_factors = basis.shape
    if num_factors + num_temporary > features:
        raise RankTooLarge(
            f"{num_temporary} temporary factors do not fit beside {num_factors} principal factors "
            f"in {features} features: ask for at most {features - num_factors}",
            asked=num_temporary,
            largest=features - num_factors,
        )
    drawn = torch.randn(features, num_temporary, generator=generator, dtype=torch.float64)
    drawn = drawn.to(basis.device)
    held = basis.double()
    drawn = drawn - held @ (held.mT @ drawn)
    directions, _, _ = orthonormalise(drawn, held, floor=drawn.new_zeros(()))
    return directions.to(basis.dtype)


def factor_of(basis: Float[Tensor, "d k"], update: SideUpdate) -> Float[Tensor, "d p"]:
    """
    Form the factor that an update stands for, ``F = V E + T tau``.

    Args:
        basis: The ``k`` principal factors of the update's base version.
        update: One side of one layer of a task update.
    """
    return basis @ update.coefficients + update.temporary @ update.temporary_coefficients


def fold(basis: Float[Tensor, "d k"], update: SideUpdate) -> SideUpdate:
    """
    Say the same factor with temporary factors that are orthonormal, and orthogonal to the basis.

    What the temporary factors have learnt inside the span of the basis moves
    into the coefficients; directions that say nothing beyond rounding are dropped.

    Accuracy:
        Every column of ``F = V E + T tau`` is kept to the rounding of its
        dtype, relative to that column: the other side may weigh a small column most.

    Examples:
        >>> basis = torch.tensor([[1.0], [0.0]])
        >>> update = SideUpdate(torch.zeros(1, 1), torch.tensor([[3.0], [4.0]]), torch.ones(1, 1))
        >>> folded = fold(basis, update)
        >>> folded.coefficients.tolist(), folded.temporary.abs().tolist()
        ([[3.0]], [[0.0], [1.0]])
    """
    V, E = basis.double(), update.coefficients.double()
    learnt = update.temporary.double() @ update.temporary_coefficients.double()
    norms = torch.linalg.vector_norm(V @ E + learnt, dim=0)
    norms = torch.where(norms > 0, norms, 1.0)
    inside = V.mT @ learnt
    outside = (learnt - V @ inside) / norms
    floor = outside.new_tensor(rank_tolerance(basis.dtype, basis.shape[0]))
    directions, tau, left = orthonormalise(outside, V, floor)
    kept = (torch.linalg.vector_norm(tau, dim=-1) > 0).nonzero().flatten()
    dtype = update.temporary.dtype
    return SideUpdate(
        coefficients=(E + inside + left * norms).to(dtype),
        temporary=directions[:, kept].to(dtype).contiguous(),
        temporary_coefficients=(tau[kept] * norms).to(dtype),
    )
