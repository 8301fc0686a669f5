import pytest
import torch

from share_dist.core.gradient import (
    aligned_coefficients,
    alignment,
    leading_outside,
    num_temporary_for,
    share_inside,
)
from share_dist.core.values import LayerFactors
from share_dist.errors import RankTooLarge
from tests.strategies import orthonormal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient_of(*, n=24, d=32, seed=0, rank=None):
    """A gradient whose singular values fall by half from one to the next."""
    rank = rank or min(n, d)
    values = 2.0 ** -torch.arange(rank)
    return orthonormal(n, rank, seed) * values @ orthonormal(d, rank, seed + 1).mT


def leading_right(matrix, count):
    return torch.linalg.svd(matrix.double(), full_matrices=False)[2][:count].mT.float()


def projector(columns):
    return columns @ columns.mT


@pytest.mark.parametrize("num_factors", [0, 1, 8])
@pytest.mark.parametrize("num_temporary", [1, 4])
def test_the_directions_are_the_leading_ones_outside_the_basis(num_factors, num_temporary):
    """They span what the exact singular value decomposition of ``G (I - V V')`` leads with."""
    gradient, basis = gradient_of(), orthonormal(32, num_factors, 9)
    found = leading_outside(gradient, basis, num_temporary, generator())
    outside = gradient - gradient @ projector(basis)
    exact = leading_right(outside, num_temporary)
    assert torch.allclose(projector(found), projector(exact), atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rank", [1, 2, 24])
def test_the_directions_are_orthonormal_whatever_the_gradient(scale, rank):
    """Also where the gradient has fewer directions than are asked for, and at either end of the range."""
    basis = orthonormal(32, 8, 9)
    found = leading_outside(scale * gradient_of(rank=rank), basis, 6, generator())
    assert found.shape == (32, 6)
    assert torch.allclose(found.mT @ found, torch.eye(6), atol=1e-5)
    assert (basis.mT @ found).abs().max() < 1e-5


def test_a_gradient_of_zero_or_inside_the_basis_leaves_random_directions():
    """There is nothing to follow: any direction outside does, and the seed decides which."""
    basis = orthonormal(32, 8, 9)
    inside = gradient_of() @ projector(basis)
    for gradient in (torch.zeros(24, 32), inside):
        first, again, other = (
            leading_outside(gradient, basis, 2, generator(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.allclose(projector(first), projector(other), atol=1e-2)
        assert (basis.mT @ first).abs().max() < 1e-5


def test_no_direction_is_asked_for_or_left():
    """None asked for gives none; more than there are is refused."""
    gradient = gradient_of()
    assert leading_outside(gradient, orthonormal(32, 8, 9), 0, generator()).shape == (32, 0)
    with pytest.raises(RankTooLarge):
        leading_outside(gradient, orthonormal(32, 30, 9), 3, generator())


def test_the_global_generator_is_left_as_it_was():
    """A start takes its chance from its own seed, and gives none away."""
    before = torch.get_rng_state()
    leading_outside(gradient_of(), orthonormal(32, 4, 9), 2, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_the_share_inside_is_that_of_the_projection():
    """All of a gradient made of basis columns, none of one beside them, about ``k k / (n d)`` of any other."""
    a, b = orthonormal(32, 4, 3), orthonormal(24, 4, 4)
    assert share_inside(b @ torch.randn(4, 4, generator=generator()) @ a.mT, b, a) == pytest.approx(
        1
    )
    beside = gradient_of() - projector(b) @ gradient_of()
    assert share_inside(beside, b, a) == pytest.approx(0, abs=1e-9)
    shares = [
        share_inside(torch.randn(24, 32, generator=generator(seed)), b, a) for seed in range(50)
    ]
    assert sum(shares) / 50 == pytest.approx(16 / (24 * 32), rel=0.3)
    assert share_inside(torch.zeros(24, 32), b, a) == 1.0


@pytest.mark.parametrize("pseudo_rank", [1, 3])
def test_no_other_start_makes_a_larger_first_step(pseudo_rank):
    """``|S_B' G S_A E|`` over orthonormal ``E`` is largest at the coefficients chosen."""
    gradient, a, b = gradient_of(), orthonormal(32, 8, 3), orthonormal(24, 6, 4)
    chosen = aligned_coefficients(gradient, b, a, pseudo_rank)
    step = (b.mT @ gradient @ a @ chosen).norm()
    for seed in range(20):
        other = orthonormal(8, pseudo_rank, seed)
        assert (b.mT @ gradient @ a @ other).norm() <= step + 1e-6


def test_columns_beyond_the_directions_are_zero():
    """A pseudo-rank above the directions of a small subspace has nothing for its last columns."""
    gradient, a, b = gradient_of(), orthonormal(32, 2, 3), orthonormal(24, 6, 4)
    chosen = aligned_coefficients(gradient, b, a, 5)
    assert chosen.shape == (2, 5)
    assert torch.allclose(chosen[:, :2].mT @ chosen[:, :2], torch.eye(2), atol=1e-5)
    assert not chosen[:, 2:].any()


def spans(gradient, a, b, most):
    """Bases with the gradient's leading directions outside of them."""
    new_a = leading_outside(gradient, a, most, generator())
    new_b = leading_outside(gradient.mT, b, most, generator())
    return torch.cat([b, new_b], dim=1), torch.cat([a, new_a], dim=1)


@pytest.mark.parametrize("reach", [0.01, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("pseudo_rank", [1, 3, 50])
def test_no_fewer_temporary_factors_reach_as_much(reach, pseudo_rank):
    """The count is the first of all whose best change of rank ``p`` follows the share asked for."""
    gradient, a, b = gradient_of(), orthonormal(32, 4, 3), orthonormal(24, 4, 4)
    span_b, span_a = spans(gradient, a, b, 6)

    def energy(matrix):
        return torch.linalg.svdvals(matrix.double())[:pseudo_rank].square().sum()

    reached = [
        energy(span_b[:, : 4 + f].mT @ gradient @ span_a[:, : 4 + f]) / energy(gradient)
        for f in range(7)
    ]
    enough = [f for f in range(7) if reached[f] >= reach]
    found = num_temporary_for(gradient, span_b, span_a, 6, pseudo_rank, reach)
    assert found == (enough[0] if enough else 6)


def test_a_basis_that_holds_the_gradient_needs_no_temporary_factor():
    """None where the gradient lies within the bases, or there is none; all where it lies outside of one."""
    a, b = orthonormal(32, 4, 3), orthonormal(24, 4, 4)
    inside = b @ torch.randn(4, 4, generator=generator()) @ a.mT
    outside = gradient_of(rank=8) - projector(b) @ gradient_of(rank=8)
    for gradient, wanted in ((inside, 0), (torch.zeros(24, 32), 0), (outside, 1)):
        found = num_temporary_for(gradient, *spans(gradient, a, b, 3), 3, 2, 0.7)
        assert found == wanted


def test_alignment_is_the_cosine_with_the_steepest_descent():
    """As of all weight changes written out and put one after another, with the sign turned."""
    layers = {"0": (24, 32), "1": (8, 16)}
    gradients = {name: gradient_of(n=n, d=d, seed=n) for name, (n, d) in layers.items()}
    factors = {
        name: LayerFactors(orthonormal(d, 3, 1) * 2, orthonormal(n, 3, 2))
        for name, (n, d) in layers.items()
    }
    wanted = torch.cat([-gradients[name].flatten() for name in layers])
    changes = torch.cat([factors[name].delta_weight().flatten() for name in layers])
    expected = torch.nn.functional.cosine_similarity(wanted, changes, dim=0)
    assert alignment(gradients, factors) == pytest.approx(float(expected), abs=1e-6)
    assert alignment({name: 0 * each for name, each in gradients.items()}, factors) == 0.0
