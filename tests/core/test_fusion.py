"""Sketches of several coordinators merge into one, against the coordinator that saw everything itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.fusion import Sketch, merge_subspaces
from share_dist.core.merge import merge
from share_dist.core.removal import remove_tasks
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import Fingerprint, LayerFactors, LayerShape, Subspace
from share_dist.errors import ConfigError, FingerprintMismatch, ShapeMismatch
from tests.core.adapters import (
    METRICS,
    SPECTRA,
    delta_weights,
    distance,
    kept_columns,
    metric_columns,
    norm,
    projector,
    random_factors,
)

SMALL = {"q": LayerShape(24, 18), "v": LayerShape(24, 24)}
SIDES = [(name, side) for name in SMALL for side in ("a", "b")]
everywhere = pytest.mark.parametrize("metric", METRICS)


def sketch_of(adapters, metric="delta", num_factors=None, oversample=0):
    """What a coordinator has after these tasks came one by one; their names are the keys."""
    first = next(iter(next(iter(adapters.values())).values()))
    subspace, tasks = Subspace.empty(SMALL, metric, first.a.dtype), {}
    for task_id, adapter in adapters.items():
        update = update_from_factors(subspace, adapter, task_id)
        outcome = merge(subspace, tasks, [update], num_factors, oversample=oversample)
        subspace, tasks = outcome.subspace, outcome.tasks
    return Sketch(subspace, tasks, Fingerprint("0" * 64, SMALL, metric))


def adapters_of(first, count, **options):
    return {
        f"task-{index:03d}": random_factors(index, shapes=SMALL, rank=2, **options)
        for index in range(first, first + count)
    }


def moment(subspace, name, side):
    basis = subspace.layers[name][side]
    return basis.vectors.double() * basis.energies @ basis.vectors.double().mT


@everywhere
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_truncation_two_are_as_one_that_saw_everything(metric, spectrum, dtype):
    """Bases, energies and every task's dW; no task moves."""
    left, right = (adapters_of(i, 2, spectrum=spectrum, dtype=dtype) for i in (0, 2))
    fusion = merge_subspaces([sketch_of(left, metric), sketch_of(right, metric)])
    whole = sketch_of(left | right, metric)
    rounding = 1e-9 if dtype == torch.float64 else 1e-5
    for name, side in SIDES:
        mine, theirs = (each.subspace.layers[name][side] for each in (fusion.sketch, whole))
        assert mine.num_factors == theirs.num_factors
        assert mine.vectors.dtype == dtype
        assert mine.cut_energy == 0.0
        difference = moment(fusion.sketch.subspace, name, side) - moment(whole.subspace, name, side)
        assert float(difference.norm()) < rounding * float(theirs.energies.sum())
    here, there = (delta_weights(each.subspace, each.tasks) for each in (fusion.sketch, whole))
    assert here.keys() == there.keys()
    for task_id, weights in there.items():
        assert distance(here[task_id], weights) < rounding * norm(weights)
        assert fusion.drift[task_id] < rounding * norm(weights)


@everywhere
def test_energies_add_up(metric):
    """What is kept, with all that was ever cut, is the energy of both; the moment is that of the tasks."""
    sketches = [sketch_of(adapters_of(first, 5), metric, 4, 2) for first in (0, 5)]
    fusion = merge_subspaces(sketches, 5, oversample=3)
    for name, side in SIDES:
        basis = fusion.sketch.subspace.layers[name][side]
        parts = [each.subspace.layers[name][side] for each in sketches]
        came = sum(float(part.energies.sum()) + part.cut_energy for part in parts)
        assert float(basis.energies.sum()) + basis.cut_energy == pytest.approx(came, rel=1e-9)
        assert (basis.num_factors, basis.num_columns) == (5, 8)
        columns = [
            kept_columns(fusion.sketch.subspace, task, name, side)
            for task in fusion.sketch.tasks.values()
        ]
        stack = torch.cat(columns, dim=1)
        kept = moment(fusion.sketch.subspace, name, side)
        assert torch.allclose(kept, stack @ stack.mT, atol=1e-9)
        own = sum(task.layers[name].cut_energy[side] for task in fusion.sketch.tasks.values())
        assert own == pytest.approx(basis.cut_energy, rel=1e-9)


@everywhere
def test_a_tree_of_eight_stays_near_the_batch_svd(metric):
    """Two levels, eight coordinators: captured energy is at least 0.97 of the optimum with a tail."""
    leaves = [sketch_of(adapters_of(4 * leaf, 4), metric, 8, 8) for leaf in range(8)]
    root = merge_subspaces(leaves, 8, oversample=8).sketch
    assert len(root.tasks) == 32
    for name, side in SIDES:
        stack = torch.cat(
            [metric_columns(random_factors(i, shapes=SMALL, rank=2)[name], side, metric) for i in range(32)],
            dim=1,
        )  # fmt: skip
        best = float(torch.linalg.svdvals(stack)[:8].square().sum())
        V = root.subspace.layers[name][side].leading
        assert 0.97 * best < float((V.mT @ stack).square().sum()) < best * (1 + 1e-9)


def test_any_shape_of_the_tree_gives_the_same_without_truncation():
    """Four at once, in pairs, or one after the other: the same spans."""
    leaves = [sketch_of(adapters_of(2 * leaf, 2)) for leaf in range(4)]
    at_once = merge_subspaces(leaves).sketch
    in_pairs = merge_subspaces(
        [merge_subspaces(leaves[:2]).sketch, merge_subspaces(leaves[2:]).sketch]
    ).sketch
    chain = leaves[0]
    for leaf in leaves[:0:-1]:
        chain = merge_subspaces([leaf, chain]).sketch
    for name, side in SIDES:
        expected = projector(at_once.subspace.layers[name][side].vectors)
        for other in (in_pairs, chain):
            found = projector(other.subspace.layers[name][side].vectors)
            assert torch.allclose(found, expected, atol=1e-9)


@everywhere
def test_drift_reported_is_drift_measured(metric):
    """With truncation active, each task has moved exactly as far as is said."""
    sketches = [sketch_of(adapters_of(first, 3), metric, 4, 1) for first in (0, 3)]
    before = {
        task_id: weights
        for each in sketches
        for task_id, weights in delta_weights(each.subspace, each.tasks).items()
    }
    fusion = merge_subspaces(sketches, 4, oversample=1)
    after = delta_weights(fusion.sketch.subspace, fusion.sketch.tasks)
    for task_id, moved in fusion.drift.items():
        assert moved > 1e-3
        assert moved == pytest.approx(distance(before[task_id], after[task_id]), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    metric=st.sampled_from(METRICS),
    k=st.integers(1, 8),
    oversample=st.integers(0, 3),
    gone=st.sets(st.sampled_from([1, 2, 4, 5]), max_size=3).map(lambda others: others | {0, 3}),
    late=st.booleans(),
)
def test_what_a_removal_leaves_behind_is_within_its_bound(metric, k, oversample, gone, late):
    """Also of tasks of both sketches together, and after the fused lineage has gone on."""
    adapters = adapters_of(0, 6) | (adapters_of(6, 1) if late else {})
    names = list(adapters)
    halves = [{name: adapters[name] for name in names[i : i + 3]} for i in (0, 3)]
    fused = merge_subspaces([sketch_of(half, metric, k, oversample) for half in halves], k).sketch
    subspace, tasks = fused.subspace, fused.tasks
    if late:
        update = update_from_factors(subspace, adapters[names[6]], names[6])
        outcome = merge(subspace, tasks, [update], k, oversample=oversample)
        subspace, tasks = outcome.subspace, outcome.tasks
    leaving = [names[index] for index in sorted(gone)]
    after = remove_tasks(subspace, tasks, leaving)
    for name, side in SIDES:
        # the first of both halves go, so nothing was cut before: the others count as they came
        stack = torch.cat(
            [metric_columns(adapters[each][name], side, metric) for each in names if each not in leaving],
            dim=1,
        )  # fmt: skip
        whole = sum(
            float(metric_columns(adapters[each][name], side, metric).square().sum())
            for each in leaving
        )
        difference = stack @ stack.mT - moment(after.subspace, name, side)
        bound = after.report.layers[name][side].residue_bound * whole
        assert float(torch.linalg.matrix_norm(difference)) <= bound * (1 + 1e-9) + 1e-9


def test_the_fused_lineage_goes_on():
    """A merge after the fusion is as exact as any: a late task comes back whole."""
    fused = merge_subspaces([sketch_of(adapters_of(first, 2)) for first in (0, 2)]).sketch
    late = random_factors(9, shapes=SMALL, rank=2)
    update = update_from_factors(fused.subspace, late, "late")
    outcome = merge(fused.subspace, fused.tasks, [update])
    served = delta_weights(outcome.subspace, {"late": outcome.tasks["late"]})["late"]
    exact = {name: layer.delta_weight() for name, layer in late.items()}
    assert distance(served, exact) < 1e-9 * norm(exact)
    assert outcome.subspace.version == fused.subspace.version + 1 == 4


def test_an_empty_coordinator_brings_nothing():
    """One that has merged no task yet changes nothing but the version."""
    empty = Sketch(Subspace.empty(SMALL, dtype=torch.float64), {}, Fingerprint("0" * 64, SMALL))
    full = sketch_of(adapters_of(0, 3))
    fused = merge_subspaces([empty, full]).sketch
    assert fused.tasks.keys() == full.tasks.keys()
    for name, side in SIDES:
        difference = moment(fused.subspace, name, side) - moment(full.subspace, name, side)
        assert float(difference.norm()) < 1e-9


class TestRefused:
    """Before anything is computed."""

    def test_the_same_task_in_two(self):
        """Its energy would count twice: named, with what to do."""
        sketches = [sketch_of(adapters_of(0, 3)), sketch_of(adapters_of(2, 3))]
        with pytest.raises(ShapeMismatch, match="task 'task-002' is in 2 of the sketches"):
            merge_subspaces(sketches)

    @pytest.mark.parametrize(
        ("change", "field"), [({"base_model": "1" * 64}, "base_model"), ({"wire_version": 2}, "wire_version")]
    )  # fmt: skip
    def test_another_model(self, change, field):
        """With the field that differs and both values."""
        left, right = sketch_of(adapters_of(0, 1)), sketch_of(adapters_of(1, 1))
        right = replace(right, fingerprint=replace(right.fingerprint, **change))
        with pytest.raises(FingerprintMismatch, match="sketches 0 and 1") as caught:
            merge_subspaces([left, right])
        assert caught.value.field == field

    def test_another_metric(self):
        """Energies of different metrics do not add."""
        with pytest.raises(FingerprintMismatch, match="metric differs: delta and factors"):
            merge_subspaces([sketch_of(adapters_of(0, 1)), sketch_of(adapters_of(1, 1), "factors")])

    def test_a_fingerprint_of_another_subspace(self):
        """A sketch whose fingerprint is not its own is named by its place."""
        sketch = sketch_of(adapters_of(0, 1))
        wrong = replace(sketch, fingerprint=replace(sketch.fingerprint, layers={"q": SMALL["q"]}))
        with pytest.raises(ShapeMismatch, match=r"fingerprint of sketch 0 says .* 1 layers"):
            merge_subspaces([wrong])

    def test_none_at_all(self):
        """There is nothing to merge."""
        with pytest.raises(ShapeMismatch, match="no sketch"):
            merge_subspaces([])

    def test_options_out_of_range(self):
        """As a merge refuses them."""
        with pytest.raises(ConfigError):
            merge_subspaces([sketch_of(adapters_of(0, 1))], num_factors=0)


@everywhere
def test_a_byte_budget_is_shared_out_as_one_merge_of_everything_does(metric):
    """The same ``k`` for every side, in no more bytes than allowed; a budget without room for all sides is refused."""
    left, right = adapters_of(0, 3), adapters_of(3, 3)
    # of one layer the tasks have a tenth: it counts less, and by how much only the tasks tell
    for adapter in (left | right).values():
        adapter["q"] = LayerFactors(adapter["q"].a * 0.1, adapter["q"].b)
    max_bytes = 8 * 4 * sum(sum(shape) for shape in SMALL.values())
    sketches = [sketch_of(each, metric) for each in (left, right)]
    fused = merge_subspaces(sketches, oversample=2, max_bytes=max_bytes).sketch.subspace
    empty = Subspace.empty(SMALL, metric, torch.float64)
    updates = [update_from_factors(empty, each, name) for name, each in (left | right).items()]
    at_once = merge(empty, {}, updates, oversample=2, max_bytes=max_bytes).subspace
    ks = {place: fused.layers[place[0]][place[1]].num_factors for place in SIDES}
    assert ks == {place: at_once.layers[place[0]][place[1]].num_factors for place in SIDES}
    assert len(set(ks.values())) > 1
    spent = sum(8 * SMALL[name].features(side) * k for (name, side), k in ks.items())
    assert spent <= max_bytes
    with pytest.raises(ConfigError, match="max_bytes is 100"):
        merge_subspaces(sketches, max_bytes=100)
