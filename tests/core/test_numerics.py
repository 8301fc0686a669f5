"""Numbers that break float32: at the ends of its range, repeated, dependent, and after very many merges."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.linalg import left_svd, orthonormalise, tall_svd
from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.table import TaskTable
from share_dist.core.values import LayerFactors, LayerShape, LayerSubspace, Subspace
from tests.core.adapters import (
    METRICS,
    SPECTRA,
    delta_weights,
    distance,
    merge_in_sequence,
    norm,
    random_factors,
)

SMALL = {"q": LayerShape(40, 24)}


def crookedness(subspace):
    """The largest entry of ``|V.T V - I|`` of any side."""
    return max(
        float((basis.vectors.mT @ basis.vectors - torch.eye(basis.num_columns)).abs().max())
        for layer in subspace.layers.values()
        for _, basis in layer
        if basis.num_columns
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(METRICS),
    spectrum=st.sampled_from(SPECTRA),
    power=st.integers(-30, 30),
    num_factors=st.sampled_from([None, 3, 100]),
)
def test_float32_merges_whatever_the_numbers_are(seed, metric, spectrum, power, num_factors):
    """Bases stay orthonormal to 1e-5, the rank is that of the data, and nothing that is kept is distorted."""
    scale = 1.0 if spectrum == "ill-scaled" else 10.0**power
    adapters = [
        {
            name: LayerFactors(layer.a * scale, layer.b / scale)
            for name, layer in random_factors(seed + i, spectrum, shapes=SMALL, dtype=torch.float32).items()
        }
        for i in range(4)
    ]  # fmt: skip
    *_, (_, _, outcome) = merge_in_sequence(adapters, metric, num_factors)
    assert crookedness(outcome.subspace) < 1e-5
    rank = 4 * {"one-column": 1, "rank-deficient": 2}.get(spectrum, 4)
    for _, basis in outcome.subspace.layers["q"]:
        assert basis.num_factors == min(rank, num_factors or rank)
    if num_factors != 3:
        served = delta_weights(outcome.subspace, outcome.tasks)
        for adapter, weights in zip(adapters, served.values(), strict=True):
            trained = {"q": adapter["q"].delta_weight()}
            assert distance(trained, weights) < 2e-5 * norm(trained)


@given(seed=st.integers(0, 1000), spread=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_the_quick_routes_are_as_the_slow_ones(seed, spread):
    """Through Gram matrices in float64, a float32 matrix of condition up to 1e5 is known to its own rounding."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, 5, generator=generator, dtype=torch.float64)).Q for n in (60, 5))  # fmt: skip
    sigma = torch.logspace(0, -spread, 5, dtype=torch.float64)
    matrix = (left * sigma @ right.mT).float()
    U, found, Wt = tall_svd(matrix)
    exact = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(found, exact, rtol=1e-5, atol=1e-8)
    assert torch.allclose(U.double() * found @ Wt, matrix.double(), atol=1e-6)
    V = torch.linalg.qr(torch.randn(60, 7, generator=generator)).Q
    Q, _, _ = orthonormalise(matrix - V @ (V.mT @ matrix), V, torch.tensor(1e-6))
    joint = torch.cat([V, Q], dim=1)
    assert (joint.mT @ joint - torch.eye(12)).abs().max() < 1e-6
    square = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    U, found = left_svd(square, is_single=True)
    expected, exact, _ = torch.linalg.svd(square, full_matrices=False)
    assert torch.allclose(found, exact, rtol=1e-10)
    assert torch.allclose((U * expected).sum(0).abs(), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("tiny", [1e-9, 1e-20, 1e-30, 1e-40, 0.0])
def test_columns_that_are_nothing_beside_the_others_are_dropped(tiny):
    """However small they are: the inverse of their length does not overflow, and no entry becomes NaN."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 6, generator=generator)
    matrix[:12, 3:], matrix[12:, :3] = 0.0, 0.0
    matrix[12:, 3:] *= tiny
    Q, S, _ = orthonormalise(matrix, torch.zeros(24, 0), torch.tensor(1e-6))
    assert int((S != 0).any(dim=1).sum()) == 3
    assert torch.allclose(Q.double() @ S, matrix.double(), atol=1e-6)
    assert (Q[:, :3].mT @ Q[:, :3] - torch.eye(3)).abs().max() < 1e-6


def test_columns_that_rounding_has_turned_are_straightened():
    """Once in 64 merges crooked columns are made orthonormal again, and no task is moved by more than they were off."""
    adapters = [random_factors(seed, shapes=SMALL, dtype=torch.float32) for seed in range(3)]
    *_, (_, _, last) = merge_in_sequence(adapters[:2], "delta")
    noise = torch.Generator().manual_seed(0)
    bent = replace(
        last.subspace,
        version=63,
        layers={
            name: LayerSubspace(*(
                replace(basis, vectors=basis.vectors + 1e-4 * torch.randn(basis.vectors.shape, generator=noise))
                for _, basis in layer
            ))
            for name, layer in last.subspace.layers.items()
        },
    )  # fmt: skip
    assert crookedness(bent) > 1e-4
    update = update_from_factors(bent, adapters[2], "third")
    outcome = merge(bent, TaskTable.of(dict(last.tasks), 63), [update])
    assert crookedness(outcome.subspace) < 1e-6
    was, now = (delta_weights(*held) for held in ((bent, last.tasks), (outcome.subspace, outcome.tasks)))  # fmt: skip
    for task_id, weights in was.items():
        assert distance(weights, now[task_id]) < 1e-2 * norm(weights)


@pytest.mark.system
@pytest.mark.timeout(3600)
def test_ten_thousand_merges_stay_orthonormal():
    """After 10,000 truncated merges in float32 the bases are orthonormal to 1e-5."""
    subspace, tasks = Subspace.empty(SMALL), TaskTable(0)
    for index in range(10_000):
        adapter = random_factors(index, rank=2, shapes=SMALL, dtype=torch.float32)
        update = replace(update_from_factors(subspace, adapter, f"t{index % 50}"), update_id=f"u{index}")  # fmt: skip
        outcome = merge(subspace, tasks, [update], 8, oversample=4)
        subspace, tasks = outcome.subspace, outcome.tasks
    print(f"crooked by {crookedness(subspace):.1e}")
    assert crookedness(subspace) < 1e-5
