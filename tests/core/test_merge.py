"""The merge against the slow obvious ways of doing the same."""

from dataclasses import replace

import pytest
import torch

from share_dist.core.linalg import largest_angle
from share_dist.core.merge import merge
from share_dist.core.subspace import (
    update_from_factors,
)
from share_dist.core.values import (
    LayerFactors,
    LayerShape,
    LayerUpdate,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import (
    BaseVersionTooOld,
    ConfigError,
    ShapeMismatch,
    UpdateRefused,
    VersionInFuture,
)
from tests.core.adapters import (
    METRICS,
    SHAPES,
    SPECTRA,
    delta_weights,
    distance,
    kept_columns,
    merge_in_sequence,
    norm,
    projector,
    random_factors,
)

everywhere = pytest.mark.parametrize("metric", METRICS)
all_spectra = pytest.mark.parametrize("spectrum", SPECTRA)


def dense(factors):
    return {name: layer.delta_weight() for name, layer in factors.items()}


@everywhere
@all_spectra
def test_the_energies_are_the_second_moment_of_the_tasks(metric, spectrum):
    """``V diag(l) V.T`` stays the weighted sum over tasks through every truncated merge."""
    adapters = [random_factors(seed, spectrum) for seed in range(7)]
    for _, _, outcome in merge_in_sequence(adapters, metric, num_factors=5, oversample=2):
        for name in SHAPES:
            for side in ("a", "b"):
                basis = outcome.subspace.layers[name][side]
                stacked = torch.cat(
                    [kept_columns(outcome.subspace, task, name, side) for task in outcome.tasks.values()],
                    dim=1,
                )  # fmt: skip
                moment = basis.vectors * basis.energies @ basis.vectors.mT
                assert torch.allclose(moment, stacked @ stacked.mT, atol=1e-9)


@everywhere
@pytest.mark.parametrize("oversample", [0, 3])
@pytest.mark.parametrize("spectrum", ["random", "repeated"])
def test_the_drift_of_all_is_bounded_by_the_energies(metric, oversample, spectrum):
    """With truncation active, no truth exceeds the bound that looks at no task, and some is above a third of it."""
    adapters = [random_factors(seed, spectrum) for seed in range(7)]
    shares = []
    for before, tasks, outcome in merge_in_sequence(adapters, metric, 6, oversample)[1:]:
        was = delta_weights(before, tasks)
        now = delta_weights(outcome.subspace, outcome.tasks)
        squares = []
        for task_id, weights in was.items():
            trained = adapters[int(task_id[-3:])]
            for name, weight in weights.items():
                a, b = trained[name].a.norm(), trained[name].b.norm()
                whole = trained[name].delta_weight().norm() if metric == "delta" else a * b
                squares.append(float((now[task_id][name] - weight).norm() / whole) ** 2)
        truth, bound = (sum(squares) / len(squares)) ** 0.5, outcome.report.mean_drift
        assert truth <= bound * (1 + 1e-9) + 1e-9
        shares.append(truth / bound if bound > 1e-3 else 0.0)
    assert max(shares) > 1 / 3


@everywhere
def test_cumulative_drift_is_bounded_by_the_sum(metric):
    """The sum of a task's drifts bounds how far it is from where it was first served."""
    history = merge_in_sequence([random_factors(seed) for seed in range(6)], metric, 5)
    first = history[0][2]
    start = delta_weights(first.subspace, first.tasks)["task-000"]
    total = 0.0
    for _, _, outcome in history[1:]:
        total += outcome.report.drift["task-000"]
        now = delta_weights(outcome.subspace, outcome.tasks)["task-000"]
        assert distance(start, now) <= total * (1 + 1e-9)


def test_the_temporary_part_survives_the_merge():
    """P9: an update that is nothing but temporary factors comes back whole from version 0."""
    adapter = random_factors(0)
    empty = Subspace.empty(SHAPES, dtype=torch.float64)
    outcome = merge(empty, {}, [update_from_factors(empty, adapter, "only")])
    served = delta_weights(outcome.subspace, outcome.tasks)["only"]
    assert distance(served, dense(adapter)) < 1e-12 * norm(served)


@everywhere
def test_a_late_update_is_merged_exactly(metric):
    """An update trained on an old version arrives with its own dW, and its lag and angle are told."""
    adapters = [random_factors(seed, rank=2) for seed in range(4)]
    history = merge_in_sequence(adapters, metric)
    old, current = history[1][2].subspace, history[-1][2]
    late = random_factors(77, rank=3)
    update = update_from_factors(old, late, "late")
    with pytest.raises(BaseVersionTooOld) as caught:
        merge(current.subspace, current.tasks, [update])
    assert (caught.value.base_version, caught.value.current_version) == (2, 4)
    outcome = merge(current.subspace, current.tasks, [update], bases={2: old})
    assert outcome.report.lag == {"late": 2}
    angles = [
        largest_angle(old.layers[name][side].leading, current.subspace.layers[name][side].leading)
        for name in SHAPES
        for side in ("a", "b")
    ]
    assert outcome.report.base_angle["late"] == pytest.approx(max(angles))
    served = delta_weights(outcome.subspace, outcome.tasks)["late"]
    assert distance(served, dense(late)) < 1e-11 * norm(served)


@everywhere
def test_pushing_a_task_again_replaces_its_former_contribution(metric):
    """After a replacement the subspace is the one that was never fed the former update."""
    adapters = [random_factors(seed, rank=2) for seed in range(4)]
    fresh = random_factors(50, rank=2)
    outcome = merge_in_sequence(adapters, metric)[-1][2]
    update = replace(update_from_factors(outcome.subspace, fresh, "task-001"), update_id="again")
    replaced = merge(outcome.subspace, outcome.tasks, [update])
    never = merge_in_sequence([adapters[0], adapters[2], adapters[3], fresh], metric)[-1][2]
    assert len(replaced.tasks) == 4
    for name, layer in never.subspace.layers.items():
        for side, basis in layer:
            there = replaced.subspace.layers[name][side]
            assert there.num_factors == basis.num_factors
            assert torch.allclose(projector(basis.leading), projector(there.leading), atol=1e-6)
            assert torch.allclose(basis.energies, there.energies, atol=1e-6)
    served = delta_weights(replaced.subspace, replaced.tasks)["task-001"]
    assert distance(served, dense(fresh)) < 1e-9 * norm(served)


def test_a_replacement_in_float32_leaves_the_neighbours_alone():
    """One of many tasks is replaced: no direction of the others is lost, however small their weight."""
    shapes = {"q": LayerShape(160, 160)}
    adapters = [
        random_factors(seed, rank=2, shapes=shapes, dtype=torch.float32) for seed in range(41)
    ]
    subspace = Subspace.empty(shapes)
    updates = [
        replace(
            update_from_factors(subspace, adapter, f"task-{index:03d}"),
            weight=1e-3 if index == 0 else 1.0,
        )
        for index, adapter in enumerate(adapters[:40])
    ]
    outcome = merge(subspace, {}, updates)
    again = update_from_factors(outcome.subspace, adapters[40], "task-007", "again")
    replaced = merge(outcome.subspace, outcome.tasks, [again])
    assert replaced.subspace.num_factors == 80
    was = delta_weights(outcome.subspace, outcome.tasks)
    now = delta_weights(replaced.subspace, replaced.tasks)
    for task_id, weights in was.items():
        if task_id != "task-007":
            assert distance(weights, now[task_id]) < 1e-3 * norm(weights)


@everywhere
def test_factors_at_the_ends_of_float32_are_merged(metric):
    """A factor of 1e37 beside one of 1e-37 is an ordinary dW, and comes back as one."""
    plain = random_factors(0, dtype=torch.float32)
    parts = {
        name: LayerUpdate(
            SideUpdate(torch.zeros(0, 4), layer.a * 1e37, torch.eye(4)),
            SideUpdate(torch.zeros(0, 4), layer.b * 1e-37, torch.eye(4)),
        )
        for name, layer in plain.items()
    }
    outcome = merge(Subspace.empty(SHAPES, metric), {}, [TaskUpdate("u", "t", 0, parts)])
    served = delta_weights(outcome.subspace, outcome.tasks)["t"]
    assert distance(served, dense(plain)) < 1e-5 * norm(dense(plain))
    assert outcome.report.truncation["u"] < 1e-5


@everywhere
@pytest.mark.parametrize("seed", range(8))
def test_a_product_that_cancels_is_refused_not_amplified(metric, seed):
    """A dW that is rounding beside its factors is refused; no task is made of noise."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, 24, 1, generator=generator)
    a, b = 300 * u * torch.tensor([[1.1, 2.2, 4.4]]), 300 * v * torch.tensor([[2.0, 1.0, -1.0]])
    parts = {
        "q": LayerUpdate(*(SideUpdate(torch.zeros(0, 3), part, torch.eye(3)) for part in (a, b)))
    }
    empty = Subspace.empty({"q": LayerShape(24, 24)}, metric)
    with pytest.raises(UpdateRefused, match="where rounding alone is"):
        merge(empty, {}, [TaskUpdate("u", "t", 0, parts)])


@everywhere
def test_a_rotation_makes_the_next_version_out_of_the_old_one(metric):
    """``V_new = [V Q] U`` with orthonormal ``U``: what a broadcast may send instead of the basis."""
    adapters = [random_factors(seed) for seed in range(4)]
    for before, _, outcome in merge_in_sequence(adapters, metric, num_factors=6):
        for name, rotation in outcome.rotation.items():
            for side, turn in rotation:
                advanced = turn.advance(before.layers[name][side].vectors)
                assert torch.equal(advanced, outcome.subspace.layers[name][side].vectors) or (
                    torch.allclose(
                        advanced, outcome.subspace.layers[name][side].vectors, atol=1e-12
                    )
                )
                identity = torch.eye(turn.matrix.shape[1], dtype=torch.float64)
                assert torch.allclose(turn.matrix.mT @ turn.matrix, identity, atol=1e-12)


def test_many_float32_merges_stay_orthonormal_and_exact():
    """200 truncated merges in float32 leave the bases orthonormal to 1e-5."""
    shapes = {"q": SHAPES["attention.q"]}
    adapters = [
        random_factors(seed, rank=2, shapes=shapes, dtype=torch.float32) for seed in range(200)
    ]
    *_, (_, _, outcome) = merge_in_sequence(adapters, "delta", num_factors=8, oversample=4)
    for _, basis in outcome.subspace.layers["q"]:
        identity = torch.eye(basis.num_columns)
        assert (basis.vectors.mT @ basis.vectors - identity).abs().max() < 1e-5


def test_inputs_of_a_merge_are_left_as_they_were():
    """The old version is still there, bit for bit, for the watcher that is catching up."""
    history = merge_in_sequence([random_factors(seed) for seed in range(2)], "delta", 4)
    before, tasks, _ = history[1]
    copies = {name: (layer.a.vectors.clone(), layer.b.vectors.clone()) for name, layer in before.layers.items()}  # fmt: skip
    merge(before, tasks, [update_from_factors(before, random_factors(9), "x")], 4)
    for name, (a, b) in copies.items():
        assert torch.equal(before.layers[name].a.vectors, a)
        assert torch.equal(before.layers[name].b.vectors, b)


def test_arrival_order_gives_the_same_bits():
    """Updates are sorted by id, so equal sets of updates give equal versions."""
    empty = Subspace.empty(SHAPES)
    updates = [
        update_from_factors(empty, random_factors(seed, dtype=torch.float32), f"u{seed}")
        for seed in range(3)
    ]
    one, other = merge(empty, {}, updates, 5), merge(empty, {}, updates[::-1], 5)
    for name, layer in one.subspace.layers.items():
        for side, basis in layer:
            assert torch.equal(basis.vectors, other.subspace.layers[name][side].vectors)


class TestRefusals:
    """What cannot be merged is refused with its numbers, before anything is computed."""

    def start(self):
        outcome = merge_in_sequence([random_factors(0)], "delta")[-1][2]
        return outcome.subspace, outcome.tasks

    def test_zero_norm(self):
        """An update that changes nothing in some layer is refused with that layer's name."""
        subspace, tasks = self.start()
        adapter = random_factors(1)
        adapter["out"] = LayerFactors(adapter["out"].a, torch.zeros_like(adapter["out"].b))
        with pytest.raises(UpdateRefused, match="changes layer 'out' by a dW of norm 0"):
            merge(subspace, tasks, [update_from_factors(subspace, adapter, "zero")])

    def test_a_layer_too_few(self):
        """An update that lacks a layer is refused with that layer's name."""
        subspace, tasks = self.start()
        update = update_from_factors(subspace, random_factors(1), "short")
        layers = {name: layer for name, layer in update.layers.items() if name != "out"}
        with pytest.raises(ShapeMismatch, match="layer 'out' is only in the subspace"):
            merge(subspace, tasks, [replace(update, layers=layers)])

    def test_a_task_twice(self):
        """Two updates of one task in one merge are refused."""
        subspace, tasks = self.start()
        update = update_from_factors(subspace, random_factors(1), "t", "u1")
        with pytest.raises(ShapeMismatch, match="task_id 't' is in this merge 2 times"):
            merge(subspace, tasks, [update, replace(update, update_id="u2")])

    def test_a_version_that_does_not_exist(self):
        """An update from the future names both versions."""
        subspace, tasks = self.start()
        update = update_from_factors(subspace, random_factors(1), "t")
        with pytest.raises(VersionInFuture) as caught:
            merge(subspace, tasks, [replace(update, base_version=9)])
        assert (caught.value.version, caught.value.current_version) == (9, 1)

    def test_rows_of_another_version(self):
        """Coefficients with the wrong number of rows name the layer and both numbers."""
        subspace, tasks = self.start()
        empty = Subspace.empty(SHAPES, dtype=torch.float64)
        update = replace(update_from_factors(empty, random_factors(1), "t"), base_version=1)
        with pytest.raises(ShapeMismatch, match=r"coefficients of 0 rows .* basis of 4 factors"):
            merge(subspace, tasks, [update])

    @pytest.mark.parametrize("options", [{"num_factors": 0}, {"energy": 0.0}, {"energy": 1.5}, {"oversample": -1}])  # fmt: skip
    def test_options_out_of_range(self, options):
        """An impossible option is refused by name."""
        subspace, tasks = self.start()
        with pytest.raises(ConfigError) as caught:
            merge(subspace, tasks, [], **options)
        assert caught.value.key in options


@everywhere
@pytest.mark.parametrize("pseudo_rank", [5, 30])
def test_a_pseudo_rank_beyond_the_features_merges(metric, pseudo_rank):
    """More columns than a side has features, at once with others: all are merged, as they are."""
    shapes = {"q": LayerShape(6, 4)}
    subspace = Subspace.empty(shapes, metric)
    updates = [
        update_from_factors(
            subspace,
            {"q": LayerFactors(torch.randn(6, width), torch.randn(4, width))},
            f"t{width}",
        )
        for width in (pseudo_rank, 2)
    ]
    outcome = merge(subspace, {}, updates, num_factors=3)
    assert sorted(outcome.tasks) == sorted(update.task_id for update in updates)
    assert outcome.subspace.layers["q"].a.num_factors == 3
