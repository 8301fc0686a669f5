"""Refined bases against the leading columns of the merge, and against what can be computed by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.refinement import refine
from share_dist.core.subspace import reconstruct
from share_dist.core.values import LayerFactors, LayerShape, Pair, check_orthonormal
from share_dist.errors import ConfigError, ShapeMismatch
from tests.core.adapters import (
    METRICS,
    SHAPES,
    SPECTRA,
    delta_weights,
    distance,
    merge_in_sequence,
    norm,
    random_factors,
)

everywhere = pytest.mark.parametrize("metric", METRICS)


def merged(count=5, metric="delta", spectrum="random", **options):
    """Adapters, and the version that holds all of them."""
    adapters = [random_factors(seed, spectrum) for seed in range(count)]
    return adapters, merge_in_sequence(adapters, metric, **options)[-1][2]


def dense(factors):
    return {name: layer.delta_weight() for name, layer in factors.items()}


def errors(adapters, refined):
    """Relative error of every task, from dense changes."""
    served = {task_id: dense(reconstruct(refined.subspace, said)) for task_id, said in refined.tasks.items()}  # fmt: skip
    return {
        task_id: distance(dense(adapter), served[task_id]) / norm(dense(adapter))
        for task_id, adapter in zip(served, adapters, strict=True)
    }


@everywhere
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_it_never_holds_less(metric, spectrum):
    """``f`` rises with every half of a sweep, in every layer, to rounding."""
    _, outcome = merged(metric=metric, spectrum=spectrum)
    refined = refine(outcome.subspace, outcome.tasks, 4)
    check_orthonormal(refined.subspace)
    assert refined.history.keys() == SHAPES.keys()
    for history in refined.history.values():
        assert len(history) >= 3
        for before, after in itertools.pairwise(history):
            assert after >= before * (1 - 1e-12)


@everywhere
def test_it_loses_less_than_the_leading_columns_of_the_merge(metric):
    """Summed over unit-norm tasks, at the same k, and each task's loss is the one reported."""
    adapters, outcome = merged(8, metric)
    refined = refine(outcome.subspace, outcome.tasks, 6)
    found = errors(adapters, refined)
    assert found == pytest.approx(refined.lost, rel=1e-9)
    *_, (_, _, cut) = merge_in_sequence(adapters, metric, num_factors=6, oversample=50)
    served = delta_weights(cut.subspace, cut.tasks)
    plain = {
        task_id: distance(dense(adapter), served[task_id]) / norm(dense(adapter))
        for task_id, adapter in zip(served, adapters, strict=True)
    }
    assert sum(e**2 for e in found.values()) < sum(e**2 for e in plain.values())


def test_with_enough_columns_nothing_is_lost():
    """Every task comes back, whatever is asked for beyond what there is."""
    adapters, outcome = merged(3)
    refined = refine(outcome.subspace, outcome.tasks, 100)
    assert max(errors(adapters, refined).values()) < 1e-6
    assert refined.subspace.num_factors == outcome.subspace.num_factors


def test_one_task_is_cut_at_its_own_singular_values():
    """There both sides fit each other exactly: the truncated SVD of its ``dW``, the best there is."""
    adapters, outcome = merged(1)
    refined = refine(outcome.subspace, outcome.tasks, 2)
    squares = [torch.linalg.svdvals(weight).square() for weight in dense(adapters[0]).values()]
    lost = sum(float(each[2:].sum()) for each in squares) / sum(
        float(each.sum()) for each in squares
    )
    assert refined.lost["task-000"] == pytest.approx(lost**0.5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 4))
def test_at_rest_no_side_alone_can_do_better(seed, k):
    """Neither random nor slightly turned columns of one side hold more beside the other's."""
    shapes = {"q": LayerShape(10, 9)}
    adapters = [random_factors(seed + i, rank=3, shapes=shapes) for i in range(4)]
    outcome = merge_in_sequence(adapters, "delta")[-1][2]
    refined = refine(outcome.subspace, outcome.tasks, k, sweeps=300)
    scaled = [layer["q"].delta_weight() / layer["q"].delta_weight().norm() for layer in adapters]
    bases = refined.subspace.layers["q"]

    def held(a, b):
        return sum(float((b.mT @ weight @ a).square().sum()) for weight in scaled)

    best = held(bases.a.leading, bases.b.leading)
    assert best == pytest.approx(refined.history["q"][-1], rel=1e-9)
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-2, 1.0):
        a, b = (
            torch.linalg.qr(
                basis.leading
                + size * torch.randn(basis.leading.shape, generator=generator, dtype=torch.float64)
            ).Q
            for _, basis in bases
        )
        assert held(a, bases.b.leading) <= best * (1 + 1e-4)
        assert held(bases.a.leading, b) <= best * (1 + 1e-4)


def test_a_task_that_counts_more_loses_less():
    """Weights turn the bases towards a task, at the cost of the others."""
    _, outcome = merged(6)
    plain = refine(outcome.subspace, outcome.tasks, 5).lost
    turned = refine(outcome.subspace, outcome.tasks, 5, weights={"task-002": 20.0}).lost
    assert turned["task-002"] < 0.8 * plain["task-002"]
    assert sum(turned.values()) > sum(plain.values())


def test_every_side_can_have_its_own_number():
    """As an allocation gives them."""
    _, outcome = merged(4)
    wanted = {name: Pair(index + 1, index + 3) for index, name in enumerate(SHAPES)}
    refined = refine(outcome.subspace, outcome.tasks, wanted)
    for name, ks in wanted.items():
        layer = refined.subspace.layers[name]
        assert (layer.a.num_factors, layer.b.num_factors) == (ks.a, ks.b)


def test_tasks_of_different_pseudo_rank_are_refined_together():
    """The narrower one is as if it had columns of zeros."""
    adapters = [random_factors(0, rank=2), random_factors(1, rank=5)]
    outcome = merge_in_sequence(adapters, "delta")[-1][2]
    refined = refine(outcome.subspace, outcome.tasks, 4)
    assert errors(adapters, refined) == pytest.approx(refined.lost, rel=1e-9)
    first = refined.tasks["task-000"].layers["attention.q"]
    assert (first.pseudo_rank, refined.tasks["task-001"].layers["attention.q"].pseudo_rank) == (
        2,
        5,
    )


def test_the_split_between_the_factors_does_not_matter():
    """``(B M, M^-1 A)`` loses what ``(B, A)`` loses."""
    adapters, outcome = merged(4)
    mixed = []
    for seed, adapter in enumerate(adapters):
        M = torch.eye(4, dtype=torch.float64) + 0.3 * torch.randn(
            4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        mixed.append(
            {
                name: LayerFactors(layer.a @ torch.linalg.inv(M).mT, layer.b @ M)
                for name, layer in adapter.items()
            }
        )
    again = merge_in_sequence(mixed, "delta")[-1][2]
    one, other = (refine(each.subspace, each.tasks, 5).lost for each in (outcome, again))
    assert one == pytest.approx(other, rel=1e-6)


class TestRefused:
    """Before anything is computed."""

    def test_no_task(self):
        """There is nothing to choose for."""
        _, outcome = merged(1)
        with pytest.raises(ShapeMismatch, match="no task"):
            refine(outcome.subspace, {}, 4)

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"num_factors": 0}, "num_factors"),
            ({"num_factors": {"q": Pair(3, 0)}}, "num_factors"),
            ({"num_factors": 3, "sweeps": 0}, "sweeps"),
        ],
    )
    def test_options_out_of_range(self, options, key):
        """Named."""
        _, outcome = merged(1)
        with pytest.raises(ConfigError) as caught:
            refine(outcome.subspace, outcome.tasks, **options)
        assert caught.value.key == key
