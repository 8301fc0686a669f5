"""The allocation of one budget against trying out everything."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.allocation import Spectrum, allocate, within_bytes
from share_dist.errors import ConfigError
from tests.core.adapters import merge_in_sequence, random_factors

sorted_energies = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


def explained(spectra, chosen):
    return sum(
        each.importance * float(each.energies[: chosen[name]].sum())
        for name, each in spectra.items()
    )


def cost(spectra, chosen):
    return sum(each.column_bytes * chosen[name] for name, each in spectra.items())


def affordable(spectra, max_bytes, least):
    """Everything that the budget could buy."""
    ranges = [
        range(min(least, len(each.energies)), len(each.energies) + 1) for each in spectra.values()
    ]
    for counts in itertools.product(*ranges):
        chosen = dict(zip(spectra, counts, strict=True))
        if cost(spectra, chosen) <= max_bytes:
            yield chosen


@settings(max_examples=60, deadline=None)
@given(
    energies=st.lists(sorted_energies, min_size=1, max_size=4),
    importance=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=4, max_size=4),
    columns=st.integers(0, 12),
    least=st.integers(0, 1),
)
def test_where_all_columns_cost_the_same_nothing_explains_more(
    energies, importance, columns, least
):
    """Against every allocation that the budget could buy."""
    spectra = {i: Spectrum(each, 7, importance[i]) for i, each in enumerate(energies)}
    max_bytes = 7 * max(columns, least * len(spectra))
    chosen = allocate(spectra, max_bytes, least=least)
    assert cost(spectra, chosen) <= max_bytes
    best = max(explained(spectra, other) for other in affordable(spectra, max_bytes, least))
    assert explained(spectra, chosen) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(
    energies=st.lists(sorted_energies, min_size=1, max_size=4),
    bytes_each=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    max_bytes=st.integers(36, 100),
)
def test_it_lacks_less_than_one_column_of_the_best(energies, bytes_each, max_bytes):
    """Columns of different size: within the largest column that was left out, as is promised."""
    spectra = {i: Spectrum(each, bytes_each[i]) for i, each in enumerate(energies)}
    chosen = allocate(spectra, max_bytes)
    assert cost(spectra, chosen) <= max_bytes
    assert all(count >= 1 for count in chosen.values())
    best = max(explained(spectra, other) for other in affordable(spectra, max_bytes, 1))
    left_out = [
        float(each.energies[chosen[name]])
        for name, each in spectra.items()
        if chosen[name] < len(each.energies)
    ]
    lacking = best - explained(spectra, chosen)
    assert lacking == 0 or lacking < max(left_out)


def test_the_water_line_is_the_same_for_all():
    """What is kept explains at least as much a byte as what is not."""
    decay = torch.arange(1, 33, dtype=torch.float64)
    spectra = {
        "steep": Spectrum(decay**-2.0, 384 * 4),
        "flat": Spectrum(decay**-0.5, 384 * 4),
        "middle": Spectrum(decay**-1.0, 384 * 4),
    }
    chosen = allocate(spectra, 40 * 384 * 4)
    worth = {name: each.energies / each.column_bytes for name, each in spectra.items()}
    line = min(float(worth[name][count - 1]) for name, count in chosen.items())
    for name, count in chosen.items():
        assert count == 32 or float(worth[name][count]) <= line * (1 + 1e-12)
    assert chosen["steep"] < chosen["middle"] < chosen["flat"]


def test_columns_that_explain_nothing_are_not_bought():
    """However much is left."""
    spectra = {"q": Spectrum(torch.tensor([2.0, 1.0, 0.0, 0.0]), 1)}
    assert allocate(spectra, 100) == {"q": 2}


def test_what_is_more_important_gets_more():
    """Two equal spectra; one counts four times."""
    spectrum = torch.arange(1, 21, dtype=torch.float64) ** -1.0
    chosen = allocate({"a": Spectrum(spectrum, 1), "b": Spectrum(spectrum, 1, 4.0)}, 20)
    assert chosen == {"a": 4, "b": 16}


def test_a_budget_that_is_too_small_is_refused():
    """With what it would take."""
    spectra = {name: Spectrum(torch.ones(3), 100) for name in "abc"}
    with pytest.raises(ConfigError, match="which take 300") as caught:
        allocate(spectra, 299)
    assert caught.value.key == "max_bytes"


def test_a_subspace_is_cut_to_its_budget():
    """Its bases stay as they are, and their leading factors explain more than as many everywhere."""
    adapters = [random_factors(seed, rank=2) for seed in range(6)]
    *_, (_, _, outcome) = merge_in_sequence(adapters, "delta", num_factors=4, oversample=8)
    sides = [basis for layer in outcome.subspace.layers.values() for _, basis in layer]
    allowed = sum(8 * basis.features * basis.num_factors for basis in sides)
    cut = within_bytes(outcome.subspace, allowed)
    found = [basis for layer in cut.layers.values() for _, basis in layer]
    for before, after in zip(sides, found, strict=True):
        assert torch.equal(before.vectors, after.vectors)
        assert after.num_factors >= 1
    assert sum(8 * basis.features * basis.num_factors for basis in found) <= allowed
    explained, uniform = (
        sum(float(basis.energies[: basis.num_factors].sum()) for basis in which)
        for which in (found, sides)
    )
    assert explained >= uniform
    with pytest.raises(ConfigError):
        within_bytes(outcome.subspace, 100)
