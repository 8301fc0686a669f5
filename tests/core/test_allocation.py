"""The allocation of one budget against trying out everything."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.allocation import Spectrum, allocate, within_bytes
from share_dist.core.merge import merge
from share_dist.core.prepared import prepare_merge
from share_dist.core.removal import remove_tasks
from share_dist.core.subspace import update_from_factors
from share_dist.core.truncation import Truncation
from share_dist.core.values import LayerFactors, LayerShape, Subspace
from share_dist.errors import ConfigError
from tests.core.adapters import (
    METRICS,
    SPECTRA,
    delta_weights,
    distance,
    merge_in_sequence,
    norm,
    random_factors,
)

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
    spectra = {i: Spectrum(each, 7, importance[i], least) for i, each in enumerate(energies)}
    max_bytes = 7 * max(columns, least * len(spectra))
    chosen = allocate(spectra, max_bytes)
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [3, 6])
def test_a_merge_spends_its_bytes_where_they_explain_most(metric, k):
    """
    Layers of very different spectra, at every merge of a sequence: never more bytes than allowed, no side without a
    factor, as many columns kept as without a budget, and a smaller error than one ``k`` everywhere.
    """
    adapters = [uneven_adapter(seed) for seed in range(6)]
    max_bytes = 8 * k * sum(sum(shape) for shape in UNEVEN.values())
    uniform = merge_in_sequence(adapters, metric, num_factors=k, oversample=24 - k)[-1][2]
    subspace, tasks = Subspace.empty(UNEVEN, metric, torch.float64), {}
    for index, adapter in enumerate(adapters):
        update = update_from_factors(subspace, adapter, f"task-{index:03d}")
        outcome = merge(subspace, tasks, [update], 16, oversample=8, max_bytes=max_bytes)
        plain = merge(subspace, tasks, [update], 16, oversample=8).subspace
        subspace, tasks = outcome.subspace, outcome.tasks
        ks = factors_of(subspace)
        assert sum(8 * subspace.layers[name][side].features * count for (name, side), count in ks.items()) <= max_bytes  # fmt: skip
        assert min(ks.values()) >= 1
        assert max(ks.values()) <= 16
        assert columns_of(subspace) == columns_of(plain)
    assert len(set(ks.values())) > 1
    lost = {
        name: mean_error(each.subspace, each.tasks, adapters)
        for name, each in (("allocated", outcome), ("uniform", uniform))
    }
    assert lost["allocated"] < lost["uniform"]


def test_in_the_same_bytes_the_error_is_no_worse_than_uniform_on_average():
    """Over spectra, metrics and seeds: one merge of all, told as the relative error of ``dW``."""
    ratios = []
    for spectrum, metric, seed in itertools.product(SPECTRA, METRICS, range(3)):
        adapters = [uneven_adapter(10 * seed + i, spectrum) for i in range(4)]
        empty = Subspace.empty(UNEVEN, metric, torch.float64)
        updates = [update_from_factors(empty, each, f"task-{i:03d}") for i, each in enumerate(adapters)]  # fmt: skip
        uniform = merge(empty, {}, updates, 3)
        max_bytes = sum(8 * empty.layers[name][side].features * k for (name, side), k in factors_of(uniform.subspace).items())  # fmt: skip
        found = merge(empty, {}, updates, max_bytes=max_bytes)
        errors = [mean_error(each.subspace, each.tasks, adapters) for each in (found, uniform)]
        ratios.append(errors[0] / errors[1] if errors[1] > 1e-9 else 1.0)
    print(f"error of allocated over uniform: mean {sum(ratios) / len(ratios):.3f}, worst {max(ratios):.3f}")  # fmt: skip
    assert sum(ratios) / len(ratios) <= 1.0


def test_layers_count_by_their_share_in_the_tasks():
    """Of two layers of equal spectra, the one with most of every ``dW`` gets most; a task that goes no longer counts."""
    shapes = {"large": LayerShape(40, 40), "small": LayerShape(40, 40)}

    def adapter(seed, large, small):
        drawn = random_factors(seed, shapes=shapes)
        return {
            name: LayerFactors(drawn[name].a * size, drawn[name].b)
            for name, size in (("large", large), ("small", small))
        }

    updates_of = lambda sizes: [  # noqa: E731
        update_from_factors(empty, adapter(seed, *each), f"t{seed}") for seed, each in enumerate(sizes)
    ]  # fmt: skip
    empty = Subspace.empty(shapes, dtype=torch.float64)
    outcome = merge(empty, {}, updates_of([(9, 1), (9, 1), (1, 30)]), max_bytes=8 * 40 * 16)
    ks = factors_of(outcome.subspace)
    assert ks["large", "a"] > ks["small", "a"]
    without = remove_tasks(outcome.subspace, outcome.tasks, ["t0", "t1"], max_bytes=8 * 40 * 8)
    ks = factors_of(without.subspace)
    assert ks["small", "a"] > ks["large", "a"]


def test_what_a_table_claims_is_what_its_tasks_claim():
    """Layer by layer, with tasks replaced and removed, and read without bringing anybody up to date."""
    shapes = {"q": LayerShape(20, 16), "v": LayerShape(16, 16)}
    subspace, tasks = Subspace.empty(shapes, dtype=torch.float64), {}
    for index in range(6):
        update = update_from_factors(subspace, random_factors(index, shapes=shapes), f"t{index % 4}", f"u{index}")  # fmt: skip
        outcome = merge(subspace, tasks, [replace(update, weight=1.0 + index)], 6)
        subspace, tasks = outcome.subspace, outcome.tasks
    claims = tasks.claims({"t1"})
    expected = dict.fromkeys(shapes, 0.0)
    for task_id, seed in (("t0", 4), ("t2", 2), ("t3", 3)):
        squares = {name: float(layer.delta_weight().square().sum()) for name, layer in random_factors(seed, shapes=shapes).items()}  # fmt: skip
        for name, square in squares.items():
            expected[name] += (1.0 + seed) * square / sum(squares.values())
        assert task_id in tasks
    assert claims == pytest.approx(expected)


@pytest.mark.parametrize("keeps", [True, False])
def test_what_a_side_has_it_keeps_only_while_that_fits(keeps):
    """With room, no side gets fewer than before; where the bytes were lowered they win."""
    adapters = [uneven_adapter(seed) for seed in range(4)]
    subspace = Subspace.empty(UNEVEN, dtype=torch.float64)
    outcome = merge(subspace, {}, [update_from_factors(subspace, each, f"t{i}") for i, each in enumerate(adapters[:3])], 6)  # fmt: skip
    had = factors_of(outcome.subspace)
    taken = sum(8 * outcome.subspace.layers[name][side].features * k for (name, side), k in had.items())  # fmt: skip
    update = update_from_factors(outcome.subspace, adapters[3], "new")
    prepared = prepare_merge(outcome.subspace, outcome.tasks, [update])
    for share in (1.0, 1.1, 0.5):
        cut = Truncation(8, keeps_factors=keeps, max_bytes=int(share * taken))
        found = prepared.cut(cut).subspace
        now = factors_of(found)
        assert sum(8 * found.layers[name][side].features * k for (name, side), k in now.items()) <= share * taken  # fmt: skip
        assert all(now[each] >= had[each] for each in had) == (keeps and share >= 1.0)


def test_a_merge_with_too_few_bytes_is_refused():
    """With what a factor of every side would take; nothing is merged."""
    subspace = Subspace.empty(UNEVEN, dtype=torch.float64)
    update = update_from_factors(subspace, uneven_adapter(0), "t")
    least = 8 * sum(sum(shape) for shape in UNEVEN.values())
    with pytest.raises(ConfigError, match=f"max_bytes is {least - 1}, .* which take {least}"):
        merge(subspace, {}, [update], max_bytes=least - 1)
    assert set(factors_of(merge(subspace, {}, [update], max_bytes=least).subspace).values()) == {1}
    with pytest.raises(ConfigError, match="max_bytes is 0"):
        Truncation(max_bytes=0)


UNEVEN = {"flat": LayerShape(40, 32), "steep": LayerShape(40, 48), "weak": LayerShape(32, 40)}


def uneven_adapter(seed, spectrum="random"):
    """Layers of different spectra and sizes: new directions in each task, shared ones, little of anything."""
    drawn = random_factors(seed, spectrum, shapes=UNEVEN)
    shared = random_factors(1000, spectrum, shapes=UNEVEN)["steep"]
    rank = drawn["steep"].a.shape[1]
    falling = torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=torch.float64)[:rank]
    steep = LayerFactors(shared.a * falling + 0.01 * drawn["steep"].a, shared.b)
    return {
        "flat": drawn["flat"],
        "steep": steep,
        "weak": LayerFactors(drawn["weak"].a * 0.05, drawn["weak"].b),
    }


def factors_of(subspace):
    return {(name, side): basis.num_factors for name, layer in subspace.layers.items() for side, basis in layer}  # fmt: skip


def columns_of(subspace):
    return [basis.num_columns for layer in subspace.layers.values() for _, basis in layer]


def mean_error(subspace, tasks, adapters):
    errors = []
    for task_id, weights in delta_weights(subspace, tasks).items():
        trained = {name: layer.delta_weight() for name, layer in adapters[int(task_id[-3:])].items()}  # fmt: skip
        errors.append(distance(trained, weights) / norm(trained))
    return sum(errors) / len(errors)
