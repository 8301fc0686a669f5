"""Linear algebra with fixed signs and known accuracy; nothing here knows of tasks."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_KNOWN = 1e-9
"""Share of the largest singular value below which the root of a Gram matrix in float64 is nothing but rounding."""

_NEARLY_INSIDE = 0.25
"""Squared norm that a column of norm one has left at most, when the span beside it holds most of it."""


def thin_svd(
    matrix: Float[Tensor, "*batch d s"],
) -> tuple[Float[Tensor, "*batch d c"], Float[Tensor, "*batch c"], Float[Tensor, "*batch c s"]]:
    """
    Decompose ``matrix = U diag(sigma) Vt`` with signs that equal input always gives.

    Shapes:
        d, s: any
        c: ``min(d, s)``

    Returns:
        ``U`` with orthonormal columns, each with its largest entry positive;
        ``sigma``, never increasing; ``Vt`` with orthonormal rows.

    Accuracy:
        The matrix is divided by a power of two first, which is exact, so that
        entries near the ends of the floating-point range neither overflow nor vanish.

    Examples:
        >>> U, sigma, Vt = thin_svd(torch.tensor([[0.0, -3.0], [2.0, 0.0]]))
        >>> sigma.tolist()
        [3.0, 2.0]
        >>> U.abs().equal(U), bool((U * sigma @ Vt - torch.tensor([[0.0, -3.0], [2.0, 0.0]])).any())
        (True, False)
    """
    scale = _power_of_two(matrix)
    U, sigma, Vt = torch.linalg.svd(matrix / scale, full_matrices=False)
    signs = largest_entry_signs(U)
    return U * signs.unsqueeze(-2), sigma * scale.squeeze(-1), Vt * signs.unsqueeze(-1)


def largest_entry_signs(matrix: Float[Tensor, "*batch d c"]) -> Float[Tensor, "*batch c"]:
    """
    Tell for each column the sign of its largest entry; +1 for a column of zeros.

    Examples:
        >>> largest_entry_signs(torch.tensor([[1.0, 2.0], [-3.0, 1.0]])).tolist()
        [-1.0, 1.0]
    """
    if matrix.shape[-2] == 0:
        return matrix.new_ones(matrix.shape[:-2] + matrix.shape[-1:])
    is_negative = -matrix.amin(dim=-2) > matrix.amax(dim=-2)
    return torch.where(is_negative, -1.0, 1.0).to(matrix.dtype)


def rank_tolerance(dtype: torch.dtype, features: int) -> float:
    """
    Tell how small a column is, relative to the whole, when it is nothing but rounding.

    ``eps * sqrt(d)``: what a product with ``d`` terms may be off by.
    """
    return torch.finfo(dtype).eps * math.sqrt(features)


def orthonormalise(
    matrix: Float[Tensor, "*batch d q"],
    against: Float[Tensor, "*batch d m"],
    floor: Float[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch d c"], Float[Tensor, "*batch c q"], Float[Tensor, "*batch m q"]]:
    """
    Find what of ``matrix`` is new beside the orthonormal columns ``against``.

    A rank-revealing factorisation ``matrix = against D + Q S``; ``matrix`` must already be
    nearly orthogonal to ``against``, as it is after ``against`` was projected out once.

    Shapes:
        d: features
        q: columns of ``matrix``; at most ``d - m`` of them can be new
        m: columns of ``against``
        c: ``min(d, q)``

    Args:
        matrix: The columns to express.
        against: Orthonormal columns that ``Q`` shall be orthogonal to.
        floor: Singular values below it are rounding, and dropped.

    Returns:
        ``Q``, whose leading columns are orthonormal, to ``against`` too; ``S`` and ``D`` in float64.
        Dropped directions have columns and rows of zeros, and come last.
    """
    Q, sigma, Wt = tall_svd(matrix)
    sigma = sigma * (sigma > floor.double().unsqueeze(-1))
    Q = Q * (sigma > 0).to(Q.dtype).unsqueeze(-2)
    # A column that was nearly in the span of `against` has lost digits: clean it once more,
    # after scaling it to norm one, or the lost digits stay in the basis for ever.
    D = against.mT @ Q
    Q = Q - against @ D
    values, directions = (found.flip(-1) for found in torch.linalg.eigh(_gram(Q)))
    # near one, or the column lay in the span of `against` but for rounding
    roots = values.clamp_min(0.0).sqrt() * (values > _NEARLY_INSIDE)
    inverse = directions * torch.where(roots > 0, 1 / roots, 0.0).unsqueeze(-2)
    small = sigma.unsqueeze(-1) * Wt
    S = roots.unsqueeze(-1) * (directions.mT @ small)
    return Q @ inverse.to(Q.dtype), S, D.double() @ small


def tall_svd(
    matrix: Float[Tensor, "*batch d q"],
) -> tuple[Float[Tensor, "*batch d c"], Float[Tensor, "*batch c"], Float[Tensor, "*batch c q"]]:
    """
    Decompose a matrix of many rows, ``matrix = U diag(sigma) Wt``.

    Returns:
        ``U`` in the matrix's dtype; ``sigma``, never increasing, and ``Wt`` in float64.

    Accuracy:
        For float32 through the Gram matrix, formed in float64, whose root knows singular values above
        1e-8 of the largest, far below float32's own rounding; columns of ``U`` are orthonormal
        to 1e-7 times the largest singular value over their own, and those of smaller ones may be
        zero. Otherwise through a QR, to rounding.
    """
    if matrix.dtype == torch.float64 or matrix.shape[-1] > matrix.shape[-2]:
        Q, upper = torch.linalg.qr(matrix)
        U, sigma, Wt = thin_svd(upper.double())
        return Q @ U.to(Q.dtype), sigma, Wt
    values, directions = (found.flip(-1) for found in torch.linalg.eigh(_gram(matrix)))
    # less than this is the rounding of the sum, and the inverse of it may overflow
    sigma = torch.where(values > _KNOWN**2 * values[..., :1], values, 0.0).sqrt()
    inverse = directions * torch.where(sigma > 0, 1 / sigma, 0.0).unsqueeze(-2)
    return matrix @ inverse.to(matrix.dtype), sigma, directions.mT


def upper_factor(matrix: Float[Tensor, "d p"]) -> Float[Tensor, "c p"]:
    """
    Find a small ``R`` with ``R.T R = matrix.T matrix``, in float64.

    Accuracy:
        As ``tall_svd``: singular values below 1e-8 of the largest are not known for float32.

    Examples:
        >>> upper_factor(torch.tensor([[3.0], [4.0]])).abs().tolist()
        [[5.0]]
    """
    if matrix.dtype == torch.float64 or matrix.shape[1] > matrix.shape[0]:
        upper: Tensor = torch.linalg.qr(matrix.double()).R
        return upper
    values, directions = torch.linalg.eigh(_gram(matrix))
    root: Tensor = values.clamp_min(0.0).sqrt().unsqueeze(-1) * directions.mT
    return root


def left_svd(
    matrix: Float[Tensor, "*batch n s"], *, is_single: bool
) -> tuple[Float[Tensor, "*batch n c"], Float[Tensor, "*batch c"]]:
    """
    Find the left singular vectors and the singular values of small matrices in float64.

    Args:
        matrix: What to decompose.
        is_single: Whether its numbers come from float32: then the Gram matrix will do wherever its
            root knows every singular value to more digits than the numbers have.
    """
    if not is_single or 0 in matrix.shape[-2:] or matrix.shape[-2] > matrix.shape[-1]:
        return thin_svd(matrix)[:2]
    values, U = (found.flip(-1) for found in torch.linalg.eigh(matrix @ matrix.mT))
    least = 1e6 * torch.finfo(torch.float64).eps * matrix.shape[-2] * values[..., :1]
    if not bool((values > least).all()):
        return thin_svd(matrix)[:2]
    return U * largest_entry_signs(U).unsqueeze(-2), values.sqrt()


def _gram(matrix: Float[Tensor, "*batch d q"]) -> Float[Tensor, "*batch q q"]:
    doubled = matrix.double()
    gram: Tensor = doubled.mT @ doubled
    return gram


_ROWS_AT_ONCE = 256


def tall_product(left: Float[Tensor, "d f"], right: Float[Tensor, "d g"]) -> Float[Tensor, "f g"]:
    """
    Multiply ``left.T @ right`` over many rows, in float64 but for the sums of a few rows each.

    Accuracy:
        Relative to ``||left|| ||right||`` the error is that of a product with 256 terms in the
        factors' own dtype, however many rows there are; at the speed of a product in that dtype.

    Examples:
        >>> tall_product(torch.ones(1000, 1), torch.full((1000, 1), 0.5))
        tensor([[500.]], dtype=torch.float64)
    """
    num_blocks = left.shape[0] // _ROWS_AT_ONCE
    end = num_blocks * _ROWS_AT_ONCE
    first, second = (
        side[:end].reshape(num_blocks, _ROWS_AT_ONCE, side.shape[1]) for side in (left, right)
    )
    rest = left[end:].mT @ right[end:]
    summed: Tensor = (first.mT @ second).sum(dim=0, dtype=torch.float64) + rest
    return summed


def tall_gram(matrix: Float[Tensor, "d f"]) -> Float[Tensor, "f f"]:
    """
    Multiply ``matrix.T @ matrix`` as ``tall_product`` does, and as accurately.

    On a processor by numpy, which sees that the product is symmetric and takes two thirds of the time.

    Examples:
        >>> tall_gram(torch.ones(1000, 1))
        tensor([[1000.]], dtype=torch.float64)
    """
    if matrix.device.type != "cpu" or matrix.dtype not in {torch.float32, torch.float64}:
        return tall_product(matrix, matrix)
    rows = matrix.detach().numpy()
    num_blocks = len(rows) // _ROWS_AT_ONCE
    end = num_blocks * _ROWS_AT_ONCE
    blocks, rest = rows[:end].reshape(num_blocks, _ROWS_AT_ONCE, rows.shape[1]), rows[end:]
    # what overflows is no number in the product, as torch has it, and no warning
    with np.errstate(all="ignore"):
        summed = np.matmul(blocks.transpose(0, 2, 1), blocks).sum(0, dtype=np.float64)
        return torch.from_numpy(summed + rest.T @ rest)


def nearest_orthonormal(matrix: Float[Tensor, "d m"]) -> Float[Tensor, "d m"] | None:
    """
    Find the orthonormal columns nearest to columns that are nearly so: ``V (V.T V)^(-1/2)``.

    Returns:
        The polar factor in float64, the nearest in Frobenius norm; None where ``V.T V`` is so far from the
        identity (by half, in some direction) that the columns cannot have been orthonormal.

    Source:
        Higham, 1989.

    Examples:
        >>> nearest_orthonormal(torch.tensor([[1.1, 0.0], [0.0, 0.9]])).round(decimals=6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> nearest_orthonormal(torch.ones(2, 2)) is None
        True
    """
    V = matrix.double()
    values, directions = torch.linalg.eigh(V.mT @ V)
    if values.numel() and not bool((values - 1).abs().max() <= 0.5):
        return None
    root: Tensor = directions * values.rsqrt() @ directions.mT
    return V @ root


def largest_angle(old: Float[Tensor, "d k_old"], new: Float[Tensor, "d k_new"]) -> float:
    """
    Measure the largest principal angle between two spans of orthonormal columns, in radians.

    Where the numbers of columns differ, the smaller span is compared with the
    larger one: 0 says that it lies inside.

    Accuracy:
        Through the sine, so that angles near 0 keep their digits; in float32
        an angle of 0 comes out as about 1e-7.

    Source:
        Björck and Golub, 1973.

    Examples:
        >>> x, y = torch.eye(2).split(1, dim=1)
        >>> round(largest_angle(x, (x + y) / 2**0.5), 4) == round(math.pi / 4, 4)
        True
        >>> largest_angle(x, torch.zeros(2, 0))
        0.0
    """
    smaller, larger = (old, new) if old.shape[1] <= new.shape[1] else (new, old)
    if smaller.shape[1] == 0:
        return 0.0
    smaller, larger = smaller.double(), larger.double()
    outside = smaller - larger @ (larger.mT @ smaller)
    return angle_from_sine(outside)


def angle_from_sine(outside: Float[Tensor, "d k"]) -> float:
    """Turn the part of a span that lies outside another into their largest angle, in radians."""
    gram = outside.mT @ outside if outside.shape[0] > outside.shape[1] else outside @ outside.mT
    sine = math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))
    return math.asin(min(1.0, sine))


def _power_of_two(matrix: Float[Tensor, "*batch d s"]) -> Float[Tensor, "*batch 1 1"]:
    if matrix.numel() == 0:
        return matrix.new_ones((*matrix.shape[:-2], 1, 1))
    largest = matrix.abs().amax(dim=(-2, -1), keepdim=True)
    _, exponent = torch.frexp(largest)
    one = torch.ones_like(largest)
    # one less than frexp's exponent: at the end of the range that power itself would overflow
    return torch.where(largest > 0, torch.ldexp(one, exponent - 1), one)
