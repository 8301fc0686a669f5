"""Linear algebra, temporary factors, projection and rebase, each against the obvious way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.linalg import (
    largest_angle,
    orthonormalise,
    tall_gram,
    tall_product,
    thin_svd,
)
from share_dist.core.rebase import rebase, rebase_moments
from share_dist.core.subspace import (
    project,
    reconstruct,
    subspace_from_factors,
    update_from_factors,
)
from share_dist.core.temporary import factor_of, fold, propose_temporary
from share_dist.core.values import LayerFactors, SideUpdate, Subspace
from share_dist.errors import RankTooLarge, ShapeMismatch
from tests.core.adapters import SHAPES, merge_in_sequence, random_factors


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=50, deadline=None)
@given(
    d=st.integers(1, 12),
    s=st.integers(1, 12),
    power=st.integers(-100, 100),
    seed=st.integers(0, 99),
)
def test_thin_svd_agrees_with_numpy(d, s, power, seed):
    """Singular values are numpy's at every scale, the product is the matrix, signs are fixed."""
    matrix = draw(d, s, seed=seed) * 10.0**power
    U, sigma, Vt = thin_svd(matrix)
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-9, atol=1e-14 * expected[0])
    assert torch.allclose(U * sigma @ Vt, matrix, rtol=0, atol=1e-13 * float(sigma[0]) * max(d, s))
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()


def test_thin_svd_survives_the_ends_of_the_range():
    """The largest and the smallest normal numbers neither overflow nor vanish."""
    for dtype in (torch.float64, torch.float32):
        limits = torch.finfo(dtype)
        for scale in (limits.max, limits.tiny):
            _, sigma, _ = thin_svd(torch.eye(2, dtype=dtype) * scale)
            assert sigma.tolist() == pytest.approx([scale, scale])


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 1100), f=st.integers(0, 4), g=st.integers(0, 4), seed=st.integers(0, 99))
def test_tall_product_is_the_product_in_float64(rows, f, g, seed):
    """However many rows there are, the error is that of a few of them."""
    left, right = (draw(rows, columns, seed=seed, dtype=torch.float32) for columns in (f, g))
    found, expected = tall_product(left, right), left.double().mT @ right.double()
    assert found.dtype == torch.float64
    scale = float(left.double().norm() * right.double().norm())
    assert found.shape == (f, g)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6 * scale)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 1100),
    f=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_tall_gram_is_the_product_of_a_matrix_with_itself(rows, f, dtype, turned, seed):
    """Symmetric, in whatever order the matrix lies in memory, and as near as the product of any two."""
    matrix = draw(rows, f, seed=seed, dtype=torch.float32).to(dtype)
    if turned:
        matrix = matrix.mT.contiguous().mT
    found, exact = tall_gram(matrix), matrix.double().mT @ matrix.double()
    assert found.dtype == torch.float64
    scale = float(matrix.double().square().sum())
    assert torch.equal(found, found.mT)
    assert torch.allclose(found, exact, rtol=0, atol=scale * max(1e-6, torch.finfo(dtype).eps))


@pytest.mark.filterwarnings("error")
def test_a_gram_matrix_that_overflows_is_no_number():
    """As from torch: whoever looks at it sees that it is none, and nothing is said meanwhile."""
    matrix = torch.full((300, 1), 1e30)
    assert not tall_gram(matrix).isfinite().any()
    assert tall_gram(torch.full((300, 1), math.nan)).isnan().all()


@settings(max_examples=50, deadline=None)
@given(m=st.integers(0, 5), q=st.integers(0, 6), alike=st.booleans(), seed=st.integers(0, 99))
def test_orthonormalise_splits_off_what_is_new(m, q, alike, seed):
    """Q S is the matrix, live columns are orthonormal to everything, copies bring nothing."""
    against = torch.linalg.qr(draw(12, m, seed=seed)).Q
    matrix = draw(12, q, seed=seed + 1)
    if alike and q:
        matrix = matrix[:, :1].expand(12, q)
    matrix = matrix - against @ (against.mT @ matrix)
    Q, S, D = orthonormalise(matrix, against, floor=torch.tensor(1e-12))
    alive = (S.norm(dim=1) > 0).sum()
    assert alive == (1 if alike and q else q)
    assert torch.allclose(against @ D + Q @ S, matrix, atol=1e-12)
    joint = torch.cat([against, Q[:, :alive]], dim=1)
    assert torch.allclose(joint.mT @ joint, torch.eye(m + alive, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.3, math.pi / 2])
def test_largest_angle_is_the_rotation_between_two_planes(angle):
    """Small angles keep their digits, and a right angle is pi / 2."""
    x, y, z = torch.eye(3, dtype=torch.float64).split(1, dim=1)
    turned = torch.cat([x, y * math.cos(angle) + z * math.sin(angle)], dim=1)
    plane = torch.cat([x, y], dim=1)
    assert largest_angle(plane, turned) == pytest.approx(angle, rel=1e-6, abs=1e-12)
    assert largest_angle(x, turned) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_proposed_temporary_factors_are_new(k, dtype):
    """They are orthonormal, orthogonal to the basis, and the same for the same seed."""
    held = torch.linalg.qr(draw(9, k)).Q.to(dtype)
    one, other = (propose_temporary(held, 2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.dtype == dtype
    assert torch.equal(one, other)
    assert torch.allclose(one.mT @ one, torch.eye(2, dtype=dtype), atol=1e-6)
    assert not k or (held.mT @ one).abs().max() < 1e-6


def test_temporary_factors_must_fit_in_the_features():
    """Asking for more directions than are left names how many are."""
    with pytest.raises(RankTooLarge, match="at most 1"):
        propose_temporary(torch.eye(4)[:, :3], 2, torch.Generator())


@settings(max_examples=50, deadline=None)
@given(k=st.integers(0, 4), f=st.integers(0, 4), p=st.integers(1, 4), seed=st.integers(0, 99))
def test_folding_keeps_the_factor(k, f, p, seed):
    """V E + T tau is what it was; T comes out orthonormal and orthogonal to the basis."""
    held = torch.linalg.qr(draw(10, k, seed=seed)).Q
    update = SideUpdate(
        draw(k, p, seed=seed + 1), draw(10, f, seed=seed + 2), draw(f, p, seed=seed + 3)
    )
    folded = fold(held, update)
    assert torch.allclose(factor_of(held, folded), factor_of(held, update), atol=1e-12)
    assert folded.num_temporary == min(f, p)
    joint = torch.cat([held, folded.temporary], dim=1)
    identity = torch.eye(k + folded.num_temporary, dtype=torch.float64)
    assert torch.allclose(joint.mT @ joint, identity, atol=1e-12)


def test_folding_keeps_columns_that_only_the_other_side_makes_large():
    """A temporary factor 1e8 times smaller than another is content when its coefficients are large."""
    T = torch.diag(torch.tensor([1e4, 1e-4, 0.0]))[:, :2]
    tau = torch.diag(torch.tensor([1e-4, 1e4]))
    folded = fold(torch.zeros(3, 0), SideUpdate(torch.zeros(0, 2), T, tau))
    assert torch.allclose(factor_of(torch.zeros(3, 0), folded), T @ tau, atol=1e-6)


@pytest.mark.parametrize("c", [1e2, 1e4, 1e6])
def test_a_lopsided_split_is_pushed_whole_in_float32(c):
    """Directions that are tiny in one factor and huge in the other keep their dW."""
    adapter = random_factors(0, dtype=torch.float32)
    mix = torch.diag(torch.tensor([c, 1.0, 1.0, 1 / c]))
    lopsided = {
        name: LayerFactors(layer.a @ torch.linalg.inv(mix), layer.b @ mix)
        for name, layer in adapter.items()
    }
    subspace = subspace_from_factors([random_factors(1, dtype=torch.float32)])
    update = update_from_factors(subspace, lopsided, "t")
    for name, layer in update.layers.items():
        again = LayerFactors(
            *(factor_of(subspace.layers[name][side].leading, part) for side, part in layer)
        )
        error = (again.delta_weight() - adapter[name].delta_weight()).norm()
        assert error < 1e-5 * adapter[name].delta_weight().norm()


def test_folding_drops_what_the_basis_can_say():
    """A temporary factor inside the span becomes coefficients and is not sent."""
    held = torch.eye(5)[:, :2]
    folded = fold(held, SideUpdate(torch.zeros(2, 1), held[:, :1] * 2, torch.ones(1, 1)))
    assert folded.num_temporary == 0
    assert folded.coefficients.tolist() == [[2.0], [0.0]]


def test_rebase_there_and_back_is_the_identity_without_truncation():
    """A task said in a later version and back again is the same task."""
    history = merge_in_sequence([random_factors(seed, rank=2) for seed in range(3)], "delta")
    old, new = history[0][2], history[-1][2].subspace
    task = old.tasks["task-000"].served(old.subspace)
    there = rebase(task, old.subspace, new)
    assert there.version == new.version == 3
    back = rebase(there, new, old.subspace)
    for name, layer in task.layers.items():
        for side, coefficients in layer:
            assert torch.allclose(back.layers[name][side], coefficients, atol=1e-10)


def test_a_tail_remembers_what_a_rebase_cannot_know():
    """With an oversampled tail the coordinator's coefficients are nearer to the task than a worker's."""
    adapters = [random_factors(seed) for seed in range(5)]
    history = merge_in_sequence(adapters, "delta", 6, oversample=6)
    before, tasks, outcome = history[-1]
    mine = rebase(tasks["task-000"].served(before), before, outcome.subspace)
    theirs = outcome.tasks["task-000"].served(outcome.subspace)

    def error(coefficients):
        said = reconstruct(outcome.subspace, coefficients)
        return sum(
            float((said[name].delta_weight() - layer.delta_weight()).square().sum())
            for name, layer in adapters[0].items()
        )

    assert error(theirs) < error(mine)


@pytest.mark.parametrize("kept", [6, 4], ids=["the same span", "a smaller one"])
def test_a_mean_of_gradients_is_rebased_as_the_gradients_are(kept):
    """With ``G`` the gradient of a factor in the old span, the mean becomes ``V_new.T G``."""
    generator = torch.Generator().manual_seed(0)
    old = torch.linalg.qr(torch.randn(9, 6, generator=generator, dtype=torch.float64)).Q
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    new = old @ turn[:, :kept]
    gradient = old @ torch.randn(6, 3, generator=generator, dtype=torch.float64)
    first, _ = rebase_moments(old.mT @ gradient, torch.zeros(6, 3).double(), old, new)
    assert torch.allclose(first, new.mT @ gradient)


def test_squares_of_gradients_stay_in_their_range():
    """Rotated, none is below the least or above the largest; where there were none, none are made up."""
    generator = torch.Generator().manual_seed(1)
    old = torch.linalg.qr(torch.randn(9, 4, generator=generator)).Q
    new = torch.linalg.qr(torch.randn(9, 7, generator=generator)).Q
    squares = torch.rand(4, 3, generator=generator) + 0.5
    _, second = rebase_moments(torch.zeros(4, 3), squares, old, new)
    assert second.shape == (7, 3)
    assert bool((second >= squares.min(dim=0).values - 1e-6).all())
    assert bool((second <= squares.max(dim=0).values + 1e-6).all())
    none, _ = rebase_moments(torch.zeros(0, 3), torch.zeros(0, 3), old[:, :0], new)
    assert none.tolist() == torch.zeros(7, 3).tolist()


def test_rebase_is_what_the_coordinator_computes():
    """Without a tail, a worker that rebases its own task gets the coefficients that the merge rotated."""
    history = merge_in_sequence([random_factors(seed) for seed in range(4)], "delta", 6)
    before, tasks, outcome = history[-1]
    mine = rebase(tasks["task-000"].served(before), before, outcome.subspace)
    theirs = outcome.tasks["task-000"].served(outcome.subspace)
    for name, layer in theirs.layers.items():
        for side, coefficients in layer:
            assert torch.allclose(mine.layers[name][side], coefficients, atol=1e-10)


def test_an_adapter_as_an_update_is_whole():
    """Whatever the subspace can say of it, coefficients and temporary factors give its dW."""
    subspace = subspace_from_factors([random_factors(0), random_factors(1)], num_factors=5)
    adapter = random_factors(2)
    update = update_from_factors(subspace, adapter, "t")
    for name, layer in update.layers.items():
        again = LayerFactors(
            *(factor_of(subspace.layers[name][side].leading, part) for side, part in layer)
        )
        assert torch.allclose(again.delta_weight(), adapter[name].delta_weight(), atol=1e-10)


def test_layers_that_do_not_fit_are_named():
    """Projecting or reconstructing with another subspace's layers names the first that differs."""
    subspace = subspace_from_factors([random_factors(0)])
    fewer = {name: layer for name, layer in random_factors(1).items() if name != "out"}
    with pytest.raises(ShapeMismatch, match="'out' is absent in the adapter"):
        project(subspace, fewer)
    coefficients = project(subspace, random_factors(1))
    with pytest.raises(ShapeMismatch, match="4 rows of coefficients for 0 principal factors"):
        reconstruct(Subspace.empty(SHAPES), coefficients)
    with pytest.raises(ShapeMismatch, match="no layer"):
        reconstruct(Subspace.empty({}), coefficients)
    with pytest.raises(ShapeMismatch, match="at least one adapter"):
        subspace_from_factors([])
