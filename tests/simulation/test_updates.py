"""Recorded updates first, then synthetic ones with their spectra; and what bases hold of all."""

import pytest
import torch

from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import LayerFactors, Subspace
from share_dist.errors import ConfigError
from share_dist.simulation import updates as module
from share_dist.simulation.moments import Moments
from share_dist.simulation.recorded import Recording
from share_dist.simulation.updates import Updates, metric_columns
from tests.simulation.support import NUM_RECORDED, SHAPES, make_factors, recordings

LAYER = "deep.query"


def stack(drawn, side):
    return torch.cat([metric_columns(each.factors[LAYER])[side] for each in drawn], dim=1)


def cohort(updates, number):
    start = number * NUM_RECORDED
    return [updates.draw(index) for index in range(start, start + NUM_RECORDED)]


def test_recorded_updates_come_first_each_once():
    """What was recorded is pushed as it is, in an order that the seed decides; then all is labelled synthetic."""
    updates = Updates(recordings(), 0)
    first = cohort(updates, 0)
    assert sorted(each.recorded_as for each in first) == [each.name for each in recordings()]
    assert [each.is_synthetic for each in first] == [False] * NUM_RECORDED
    by_name = {each.name: each for each in recordings()}
    for each in first:
        assert torch.equal(each.factors[LAYER].a, by_name[each.recorded_as].factors[LAYER].a)
        assert each.origin == f"recorded: {each.recorded_as}"
    second = updates.draw(NUM_RECORDED)
    assert second.is_synthetic
    assert second.origin == f"synthetic 1: {first[0].recorded_as}"
    assert second.head is first[0].head


def test_a_synthetic_cohort_has_the_recorded_spectra():
    """Neither a task's own singular values nor those of the whole cohort differ from the recorded ones."""
    updates = Updates(recordings(shared=0.5), 0)
    recorded, synthetic = cohort(updates, 0), cohort(updates, 3)
    for side in "ab":
        expected, found = (
            torch.linalg.svdvals(stack(each, side).double()) for each in (recorded, synthetic)
        )
        assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(recorded, synthetic, strict=True):
        expected, found = (
            torch.linalg.svdvals(each.factors[LAYER].delta_weight()) for each in (one, other)
        )
        assert torch.allclose(found, expected, atol=1e-5)


def test_cohorts_share_what_recorded_updates_share_and_nothing_else():
    """A direction that all have in common stays; without any, each cohort is turned elsewhere."""
    shared = Updates(recordings(shared=1.0), 0)
    assert shared.num_common[LAYER].a >= 1
    leading = torch.linalg.svd(stack(cohort(shared, 0), "a")).U[:, 0]
    for number in (0, 1, 2):
        columns = stack(cohort(shared, number), "a")
        assert float((leading @ columns).square().sum() / columns.square().sum()) > 0.5
    apart = [
        Recording(f"{index}", {LAYER: LayerFactors(*(torch.eye(features)[:, 3 * index : 3 * index + 3] for features in SHAPES[LAYER]))})
        for index in range(NUM_RECORDED)
    ]  # fmt: skip
    turned = Updates(apart, 0)
    assert turned.num_common[LAYER] == type(turned.num_common[LAYER])(0, 0)
    one, other = (torch.linalg.qr(stack(cohort(turned, number), "a")).Q for number in (1, 2))
    assert float((one - other).abs().max()) > 0.1


def test_an_update_is_the_same_whenever_it_is_drawn():
    """Order of drawing decides nothing, the seed does."""
    forth, back = Updates(recordings(), 1), Updates(recordings(), 1)
    later = back.draw(17).factors[LAYER].a
    back.draw(9)
    for index in range(12):
        forth.draw(index)
    assert torch.equal(forth.draw(17).factors[LAYER].a, later)
    assert not torch.equal(Updates(recordings(), 2).draw(17).factors[LAYER].a, later)


def test_one_recording_is_enough():
    """With one alone nothing is in common, and what is synthetic has its singular values."""
    updates = Updates(recordings(1), 0)
    expected, found = (
        torch.linalg.svdvals(updates.draw(index).factors[LAYER].delta_weight()) for index in (0, 5)
    )
    assert updates.num_common[LAYER].a == 0
    assert torch.allclose(found, expected, atol=1e-5)


def test_layers_that_are_too_large_are_refused(monkeypatch):
    """The letter names how many layers can be simulated."""
    monkeypatch.setattr(module, "MOST_BYTES", 12 * (24**2 + 20**2))
    with pytest.raises(ConfigError, match="--layers 1"):
        Updates(recordings(), 0)


@pytest.fixture
def merged():
    """Five adapters merged without any cut, and their moments."""
    empty, moments = Subspace.empty(SHAPES), Moments()
    for each in recordings():
        moments.add(each.factors)
    pushed = [update_from_factors(empty, make_factors(seed), f"t{seed}") for seed in range(5)]
    return empty, pushed, moments


def test_the_batch_optimum_captures_all_that_can_be(merged):
    """One merge of everything holds as much as the best bases of as many columns, for any ``k``."""
    empty, pushed, moments = merged
    for k in (1, 4, 15):
        subspace = merge(empty, {}, pushed, num_factors=k).subspace
        assert moments.captured(subspace, k) == pytest.approx(1.0, abs=1e-4)


def test_less_is_captured_by_fewer_or_other_columns(merged):
    """Against the optimum of 8, four columns hold what the eigenvalues say, and none hold nothing."""
    empty, pushed, moments = merged
    four = merge(empty, {}, pushed, num_factors=4).subspace
    held = best = 0.0
    for name, layer in four.layers.items():
        for side in "ab":
            X = torch.cat([metric_columns(each.factors[name])[side] for each in recordings()], dim=1).double()  # fmt: skip
            energies = torch.linalg.svdvals(X).square()
            held += float(energies[: layer[side].num_factors].sum())
            best += float(energies[:8].sum())
    assert moments.captured(four, 8) == pytest.approx(held / best, rel=1e-4)
    assert moments.captured(empty, 8) == 0.0
    assert Moments().captured(four, 8) == 0.0


def test_moments_of_parts_add_up(merged):
    """What leaves have counted is what one coordinator would have."""
    empty, pushed, moments = merged
    parts = [Moments(), Moments()]
    for index, each in enumerate(recordings()):
        parts[index % 2].add(each.factors)
    together = Moments()
    for part in parts:
        together.add_all(part.sums)
    four = merge(empty, {}, pushed, num_factors=4).subspace
    assert together.captured(four, 8) == pytest.approx(moments.captured(four, 8), rel=1e-5)
