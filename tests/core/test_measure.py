"""The one measure of an update, against the dense ``dW``."""

import math
from dataclasses import replace

import pytest
import torch

from share_dist.core.measure import measure_update
from share_dist.core.merge import merge
from share_dist.core.newcomers import newcomers_of
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import LayerShape, LayerUpdate, SideUpdate, Subspace, TaskUpdate
from share_dist.errors import ShapeMismatch, UpdateRefused
from tests.core.adapters import (
    METRICS,
    SHAPES,
    SPECTRA,
    merge_in_sequence,
    projector,
    random_factors,
)


def one_layer(a, b, metric="delta"):
    """An update of version 0 with these two factors, and that version."""
    rank = a.shape[1]
    parts = (
        SideUpdate(torch.zeros(0, rank).to(a), factor, torch.eye(rank).to(a)) for factor in (a, b)
    )
    empty = Subspace.empty({"q": LayerShape(len(a), len(b))}, metric)
    return TaskUpdate("u", "t", 0, {"q": LayerUpdate(*parts)}), empty


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_is_that_of_the_dense_change(spectrum, dtype):
    """Norm, singular values and energy outside equal those of ``dW`` itself."""
    history = merge_in_sequence([random_factors(s, dtype=dtype) for s in range(3)], "delta", 6, 2)
    current = history[-1][2].subspace
    adapter = random_factors(9, spectrum, dtype=torch.float64)
    update = update_from_factors(
        current, {n: type(x)(x.a.to(dtype), x.b.to(dtype)) for n, x in adapter.items()}, "t"
    )
    for name, found in measure_update(update, current, current).items():
        dense = adapter[name].delta_weight()
        singular = torch.linalg.svdvals(dense)
        bases = current.layers[name]
        inside = projector(bases.b.leading.double()) @ dense @ projector(bases.a.leading.double())
        rank = int((singular > 1e-6 * singular[0]).sum())
        assert found.norm == pytest.approx(float(dense.norm()), rel=1e-5)
        assert found.largest_singular == pytest.approx(float(singular[0]), rel=1e-5)
        assert found.smallest_singular == pytest.approx(float(singular[rank - 1]), rel=1e-4)
        outside = 1 - float(inside.square().sum() / dense.square().sum())
        assert found.energy_outside == pytest.approx(outside, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_late_update_is_formed_in_its_own_basis_and_compared_with_the_current_one(metric):
    """The norm is the trained one; what counts as outside is outside the current version."""
    history = merge_in_sequence([random_factors(seed) for seed in range(4)], metric, 8)
    old, current = history[0][2].subspace, history[-1][2].subspace
    adapter = random_factors(0)
    found = measure_update(update_from_factors(old, adapter, "t"), old, current)
    for name, measure in found.items():
        dense = adapter[name].delta_weight()
        bases = current.layers[name]
        inside = projector(bases.b.leading) @ dense @ projector(bases.a.leading)
        outside = 1 - float(inside.square().sum() / dense.square().sum())
        assert measure.norm == pytest.approx(float(dense.norm()))
        assert measure.energy_outside == pytest.approx(outside, abs=1e-9)


def test_all_is_outside_an_empty_subspace_and_nothing_outside_its_own():
    """Shares are 1 before the first merge, and 0 once the task itself is merged whole."""
    empty = Subspace.empty(SHAPES, dtype=torch.float64)
    update = update_from_factors(empty, random_factors(0), "t")
    merged = merge(empty, {}, [update]).subspace
    before, after = (measure_update(update, empty, current) for current in (empty, merged))
    assert {found.energy_outside for found in before.values()} == {1.0}
    assert max(found.energy_outside for found in after.values()) < 1e-12


def test_a_change_of_nothing_measures_nothing():
    """A zero factor gives zeros, not a division by zero."""
    update, empty = one_layer(torch.ones(4, 2), torch.zeros(3, 2))
    found = measure_update(update, empty, empty)["q"]
    assert (found.norm, found.largest_singular, found.smallest_singular) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("scale_a", "scale_b"),
    [
        (1e37, 1e-37),
        (1e-37, 1e37),
        (3e38, 3e38),
        (1e15, 1e-15),
        (1e16, 1e-16),
        (1e19, 1e-19),
        (1e-22, 1e22),
        (1e-23, 1e23),
    ],
)
def test_factors_at_the_ends_of_float32_are_measured(scale_a, scale_b):
    """What float32 can hold neither overflows nor vanishes on the way."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(size, 2, generator=generator) * 0.5 + 0.5 for size in (6, 5))
    update, empty = one_layer(a * scale_a, b * scale_b)
    found = measure_update(update, empty, empty)["q"]
    dense = (b * scale_b).double() @ (a * scale_a).double().mT
    assert found.norm == pytest.approx(float(dense.norm()), rel=1e-5)
    assert 0 < found.smallest_singular <= found.largest_singular <= found.norm * (1 + 1e-9)


def test_the_largest_products_that_can_be_sent_are_measured():
    """Coefficients, temporary factors and theirs all at the end of float32 give a finite norm."""
    largest = torch.finfo(torch.float32).max
    side = SideUpdate(torch.zeros(0, 2), torch.full((3, 2), largest), torch.full((2, 2), largest))
    update = TaskUpdate("u", "t", 0, {"q": LayerUpdate(side, side)})
    empty = Subspace.empty({"q": LayerShape(3, 3)})
    found = measure_update(update, empty, empty)["q"]
    assert math.isfinite(found.norm)
    assert found.norm > 1e150


def test_what_cannot_be_squared_has_infinite_norm():
    """Float64 entries near their end give infinity, which every bound refuses, and no exception."""
    update, empty = one_layer(
        torch.full((3, 2), 1e200, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    )
    found = measure_update(update, empty, empty)["q"]
    assert found.norm == math.inf


@pytest.mark.parametrize("seed", range(4))
def test_rounding_is_where_a_merge_refuses(seed):
    """A product that cancels measures below its rounding, exactly when a merge would refuse it."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, 24, 1, generator=generator)
    a, b = 300 * u * torch.tensor([[1.1, 2.2, 4.4]]), 300 * v * torch.tensor([[2.0, 1.0, -1.0]])
    update, empty = one_layer(a, b)
    found = measure_update(update, empty, empty)["q"]
    assert found.norm < found.rounding
    assert found.smallest_singular == 0.0
    with pytest.raises(UpdateRefused, match="where rounding alone is"):
        newcomers_of(empty, empty, update)
    sound, _ = one_layer(a, b.abs())
    found = measure_update(sound, empty, empty)["q"]
    assert found.norm > found.rounding
    newcomers_of(empty, empty, sound)


class TestRefusals:
    """What does not fit is refused by layer and side, as the merge would."""

    def test_a_layer_too_few(self):
        """A layer that is missing is named."""
        empty = Subspace.empty(SHAPES, dtype=torch.float64)
        update = update_from_factors(empty, random_factors(0), "t")
        layers = {name: layer for name, layer in update.layers.items() if name != "out"}
        with pytest.raises(ShapeMismatch, match="layer 'out' is only in the subspace"):
            measure_update(replace(update, layers=layers), empty, empty)

    def test_rows_of_another_version(self):
        """Coefficients of another version than the base are told apart by their rows."""
        empty = Subspace.empty(SHAPES, dtype=torch.float64)
        update = update_from_factors(empty, random_factors(0), "t")
        merged = merge(empty, {}, [update]).subspace
        with pytest.raises(ShapeMismatch, match=r"coefficients of 0 rows .* basis of 4 factors"):
            measure_update(update, merged, merged)

    def test_sides_of_different_pseudo_rank(self):
        """Both sides of a layer need the same p."""
        update, empty = one_layer(torch.ones(4, 2), torch.ones(3, 2))
        odd = SideUpdate(torch.zeros(0, 1), torch.ones(3, 1), torch.ones(1, 1))
        layers = {"q": LayerUpdate(update.layers["q"].a, odd)}
        with pytest.raises(ShapeMismatch, match="pseudo-rank 2 on side A and 1 on side B"):
            measure_update(replace(update, layers=layers), empty, empty)


@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4, 0.0])
def test_parts_that_nearly_cancel_keep_the_digits_of_their_sum(share):
    """What the temporary factors take back of the coefficients' part costs the norm no digits."""
    current = merge_in_sequence([random_factors(0, dtype=torch.float32)], "delta", 6)[-1][
        2
    ].subspace
    layers, dense = {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, bases in current.layers.items():
        sides = []
        for _, basis in bases:
            V = basis.leading
            E = torch.randn(V.shape[1], 3, generator=generator)
            own = torch.randn(V.shape[0], 3, generator=generator)
            T = share * own - V @ E
            sides.append(SideUpdate(E, T, torch.eye(3)))
        layers[name] = LayerUpdate(*sides)
        a, b = (
            bases[s].leading.double() @ p.coefficients.double() + p.temporary.double()
            for s, p in layers[name]
        )
        dense[name] = b @ a.mT
    found = measure_update(TaskUpdate("u", "t", 1, layers), current, current)
    for name, measure in found.items():
        norm = float(dense[name].norm())
        assert measure.norm == pytest.approx(norm, rel=1e-3, abs=measure.rounding)
        if share >= 1e-2:
            assert measure.norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scales_whose_squares_float32_cannot_hold_are_measured_as_well(scale):
    """The same adapter with one factor large and the other small has the same norm."""
    adapter = random_factors(3, dtype=torch.float32)
    empty = Subspace.empty(SHAPES)
    split = {name: type(x)(x.a * scale, x.b / scale) for name, x in adapter.items()}
    plain, odd = (
        measure_update(update_from_factors(empty, each, "t"), empty, empty)
        for each in (adapter, split)
    )
    for name, measure in odd.items():
        assert measure.norm == pytest.approx(plain[name].norm, rel=1e-5)
        assert measure.largest_singular == pytest.approx(plain[name].largest_singular, rel=1e-5)
