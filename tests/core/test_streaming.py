"""A stream of truncated merges against the SVD of everything at once; `make bench` does it at full size."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.prepared import prepare_merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.truncation import Truncation
from share_dist.core.values import SIDES, LayerFactors, LayerShape, Subspace
from tests.core.adapters import metric_columns

SIZE, PSEUDO_RANK, K = 64, 4, 6
SHAPE = {"q": LayerShape(SIZE, SIZE)}


def arrivals(decay, count, seed):
    """Adapters drawn from one population, whose singular values decay as ``i ** -decay``."""
    generator = torch.Generator().manual_seed(seed)

    def factor():
        drawn = torch.randn(SIZE, PSEUDO_RANK, generator=generator, dtype=torch.float64)
        return drawn * torch.arange(1, SIZE + 1, dtype=torch.float64).unsqueeze(1) ** -decay

    return [{"q": LayerFactors(factor(), factor())} for _ in range(count)]


def by_theme(adapters, num_themes, seed):
    """The same adapters, each group with a strength of its own in every direction of both sides."""
    generator = torch.Generator().manual_seed(seed)
    themes = torch.randn(num_themes, 2, SIZE, 1, generator=generator, dtype=torch.float64).exp()
    return [
        {"q": LayerFactors(*(factor * themes[index * num_themes // len(adapters), at]
                             for at, (_, factor) in enumerate(adapter["q"])))}
        for index, adapter in enumerate(adapters)
    ]  # fmt: skip


def streamed(adapters, truncation, lags, **options):
    """Merge one after the other, each as trained so many versions ago."""
    versions = [Subspace.empty(SHAPE, dtype=torch.float64)]
    for index, (adapter, lag) in enumerate(zip(adapters, lags, strict=True)):
        base = versions[-1 - min(lag, len(versions) - 1)]
        update = update_from_factors(base, adapter, f"task-{index:03d}")
        bases = {version.version: version for version in versions[-8:]}
        prepared = prepare_merge(versions[-1], {}, [update], bases=bases, **options)
        versions.append(prepared.cut(truncation).subspace)
    return versions[-1]


def stack_of(adapters, side):
    return torch.cat([metric_columns(adapter["q"], side, "delta") for adapter in adapters], dim=1)


def captured(adapters, subspace, side):
    """Energy of the leading columns over that of the batch SVD's."""
    stack = stack_of(adapters, side)
    best = float(torch.linalg.svdvals(stack)[:K].square().sum())
    V = subspace.layers["q"][side].leading
    return float((V.mT @ stack).square().sum()) / best


@settings(max_examples=4, deadline=None)
@given(
    target=st.sampled_from([(0.25, 0.985), (0.5, 0.995), (1.0, 0.995)]),
    seed=st.integers(0, 1000),
    order=st.sampled_from(["as drawn", "weakest first", "strongest first"]),
)
def test_streaming_matches_batch(target, seed, order):
    """40 arrivals in any order, up to 7 versions late, with twice ``k`` extra columns in 64 features."""
    decay, least = target
    adapters = arrivals(decay, 40, seed)
    if order != "as drawn":
        U = torch.linalg.svd(stack_of(adapters, "a"), full_matrices=False).U[:, :K]
        strength = {
            id(each): float((U.mT @ metric_columns(each["q"], "a", "delta")).norm())
            for each in adapters
        }
        adapters.sort(key=lambda each: strength[id(each)], reverse=order == "strongest first")
    rng = random.Random(seed)
    lags = [rng.randint(0, 7) for _ in adapters]
    subspace = streamed(adapters, Truncation(K, oversample=2 * K), lags)
    for side in ("a", "b"):
        assert least < captured(adapters, subspace, side) < 1 + 1e-9


def test_more_extra_columns_come_nearer_to_batch():
    """None, half of k, and k: each at least as good as the one before, averaged over both sides."""
    adapters = arrivals(0.5, 40, 1)
    found = []
    for oversample in (0, K // 2, K):
        subspace = streamed(adapters, Truncation(K, oversample=oversample), [0] * 40)
        found.append(sum(captured(adapters, subspace, side) for side in ("a", "b")) / 2)
    assert found[0] < found[1] < found[2] < 1


def test_credit_lets_later_themes_in():
    """
    Where tasks come theme by theme, credit captures more of everything, in the mean of seeds and in the worst; what is
    credited is only moved, from what was cut to what is kept.
    """
    found = {True: [], False: []}
    for seed, gives_credit in itertools.product(range(2), found):
        adapters = by_theme(arrivals(0.25, 48, seed), 4, seed)
        subspace = streamed(adapters, Truncation(K, oversample=K), [0] * 48, gives_credit=gives_credit)  # fmt: skip
        found[gives_credit] += [captured(adapters, subspace, side) for side in SIDES]
        for side, basis in subspace.layers["q"]:
            everything = float(stack_of(adapters, side).square().sum())
            assert float(basis.energies.sum()) + basis.cut_energy == pytest.approx(everything)
    with_credit, without = (sorted(found[given]) for given in (True, False))
    print(with_credit, without)
    assert with_credit[0] > without[0]
    assert sum(with_credit) > sum(without)


def test_where_nothing_is_cut_there_is_nothing_to_credit():
    """Without truncation, bases and energies are those of a stream without credit."""
    adapters = arrivals(0.25, 12, 5)
    given, plain = (
        streamed(adapters, Truncation(), [0] * 12, gives_credit=gives_credit)
        for gives_credit in (True, False)
    )
    for side, basis in given.layers["q"]:
        other = plain.layers["q"][side]
        assert torch.allclose(basis.energies, other.energies, rtol=1e-9)
        assert torch.allclose(basis.vectors, other.vectors, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_shrinkage_keeps_its_proven_bound(decay):
    """
    What Frequent Directions loses of the energy in any direction is at least 0, at most what was
    cut in all over ``m + 1``, and at most the tail of the batch SVD over ``m - j + 1`` for every ``j``.
    """
    adapters = arrivals(decay, 40, 2)
    subspace = streamed(adapters, Truncation(K, oversample=K, shrink=True), [0] * 40)
    for side in ("a", "b"):
        basis, stack = subspace.layers["q"][side], stack_of(adapters, side)
        kept = basis.vectors * basis.energies @ basis.vectors.mT
        lost = torch.linalg.eigvalsh(stack @ stack.mT - kept)
        assert float(lost[0]) > -1e-9
        bound = basis.cut_energy / (basis.num_columns + 1)
        assert 0 < float(lost[-1]) <= bound * (1 + 1e-9)
        squares = torch.linalg.svdvals(stack).square()
        for j in range(basis.num_columns):
            tail = float(squares[j:].sum())
            assert bound <= tail / (basis.num_columns - j + 1) * (1 + 1e-9)
        everything = float(stack.square().sum())
        assert float(basis.energies.sum()) + basis.cut_energy == pytest.approx(everything)


def test_shrinkage_is_worse_in_practice():
    """Plain truncation, the default, captures more on a stream from one population."""
    adapters = arrivals(0.5, 40, 3)
    plain, shrunk = (
        streamed(adapters, Truncation(K, oversample=0, shrink=shrink), [0] * 40)
        for shrink in (False, True)
    )
    assert captured(adapters, shrunk, "a") < captured(adapters, plain, "a")
