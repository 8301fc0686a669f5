"""Many adapters, one after the other, make the subspace that all of them at once would make."""

import weakref

import pytest
import torch

from share_dist.core.many import subspace_from_many
from share_dist.core.subspace import subspace_from_factors
from share_dist.core.values import LayerFactors
from share_dist.errors import ConfigError, ShapeMismatch, UpdateRefused
from tests.core.adapters import METRICS, random_factors


def named(adapters):
    return ((f"adapter {index}", factors) for index, factors in enumerate(adapters))


def projector(basis):
    return basis.leading @ basis.leading.mT


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("columns_at_once", [1, 5, 100])
def test_without_a_cut_it_is_the_merge_of_all_at_once(metric, columns_at_once):
    """However arrivals are grouped, bases and energies are those of one merge of all adapters."""
    adapters = [random_factors(seed, rank=2 + seed % 2) for seed in range(5)]
    streamed = subspace_from_many(named(adapters), 24, metric=metric, columns_at_once=columns_at_once)  # fmt: skip
    whole = subspace_from_factors(adapters, metric=metric)
    assert streamed.version == whole.version == 1
    for name, layer in whole.layers.items():
        for side, basis in layer:
            found = streamed.layers[name][side]
            assert found.num_factors == basis.num_factors
            torch.testing.assert_close(projector(found), projector(basis))
            torch.testing.assert_close(found.energies, basis.energies)


def decaying(count, features=96, rank=4):
    """Adapters whose second moments fall as ``1 / i``, their singular values as ``i ** -0.5``."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, features + 1, dtype=torch.float64).pow(-0.5).unsqueeze(1)
    for _ in range(count):
        a, b = torch.randn(2, features, rank, generator=generator, dtype=torch.float64)
        yield {"q": LayerFactors(a * scale, b * scale)}


def test_a_stream_that_is_cut_stays_near_the_batch():
    """The leading directions hold at least 0.995 of the energy that the best directions hold."""
    k = 16
    adapters = list(decaying(120))
    streamed = subspace_from_many(named(adapters), k).layers["q"]
    whole = subspace_from_factors(adapters).layers["q"]
    for side, basis in whole:
        moment = basis.vectors @ torch.diag(basis.energies) @ basis.vectors.mT
        held = float(torch.trace(streamed[side].leading.mT @ moment @ streamed[side].leading))
        assert 0.995 <= held / float(basis.energies[:k].sum()) <= 1 + 1e-9


def test_energy_chooses_the_columns_at_the_end():
    """With an energy, each side serves the least ``k`` that explains it; the tail stays."""
    layer = subspace_from_many(named(decaying(30)), 32, energy=0.5).layers["q"]
    for _, basis in layer:
        everything = float(basis.energies.sum()) + basis.cut_energy
        shares = basis.energies.cumsum(0) / everything
        assert shares[basis.num_factors - 1] >= 0.5 > shares[basis.num_factors - 2]


def test_adapters_that_were_merged_are_let_go():
    """While a stream is read, no more adapters are held than one group and the next arrival."""
    alive = []

    def counted():
        for index, factors in enumerate(decaying(12)):
            held = sum(reference() is not None for reference in alive)
            assert held <= 3, f"{held} adapters are held before the {index}. is read"
            alive.append(weakref.ref(factors["q"].a))
            yield f"{index}", factors
            del factors

    subspace_from_many(counted(), 4, columns_at_once=8)
    assert len(alive) == 12


def test_no_adapter_is_an_error():
    """An empty stream is refused, and says what is missing."""
    with pytest.raises(ShapeMismatch, match="at least one adapter"):
        subspace_from_many([], 4)


def test_an_adapter_of_other_layers_is_named():
    """An adapter over other layers than the first is refused by its name, with the layer."""
    odd = {name: layer for name, layer in random_factors(1).items() if name != "out"}
    with pytest.raises(ShapeMismatch, match=r"^odd: layer 'out'"):
        subspace_from_many([("even", random_factors(0)), ("odd", odd)], 4)


def test_an_adapter_that_changes_nothing_is_named():
    """An adapter whose ``dW`` is zero is refused by its name."""
    nothing = {
        name: LayerFactors(layer.a, torch.zeros_like(layer.b))
        for name, layer in random_factors(1).items()
    }
    with pytest.raises(UpdateRefused, match="task 'nothing'"):
        subspace_from_many([("nothing", nothing)], 4)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_factors": 0}, "num_factors"),
        ({"num_factors": 4, "energy": 1.5}, "energy"),
        ({"num_factors": 4, "oversample": -1}, "oversample"),
        ({"num_factors": 4, "columns_at_once": 0}, "columns_at_once"),
    ],
)
def test_a_number_out_of_range_is_named(options, key):
    """Counts and shares that cannot be are refused under their own name, before any adapter is read."""

    def unread():
        raise AssertionError("an adapter was read")
        yield

    with pytest.raises(ConfigError) as caught:
        subspace_from_many(unread(), **options)
    assert caught.value.key == key
