"""The merge against the slow obvious ways of doing the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.linalg import largest_angle
from share_dist.core.merge import merge
from share_dist.core.subspace import (
    project,
    reconstruct,
    subspace_from_factors,
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
    metric_columns,
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
@pytest.mark.parametrize(("num_factors", "oversample"), [(None, 0), (6, 0), (6, 5)])
def test_the_small_merge_is_the_big_svd(metric, spectrum, num_factors, oversample):
    """P7: at every merge of a sequence, the basis is that of the float64 SVD of everything kept."""
    adapters = [random_factors(seed, spectrum) for seed in range(7)]
    for before, tasks, outcome in merge_in_sequence(adapters, metric, num_factors, oversample):
        (new_task,) = outcome.report.task_ids
        incoming = adapters[int(new_task[-3:])]
        for name in SHAPES:
            for side in ("a", "b"):
                columns = [kept_columns(before, task, name, side) for task in tasks.values()]
                big = torch.cat([*columns, metric_columns(incoming[name], side, metric)], dim=1)
                U, sigma, _ = torch.linalg.svd(big, full_matrices=False)
                basis = outcome.subspace.layers[name][side]
                m = basis.num_columns
                captured = float((basis.vectors.mT @ big).square().sum())
                assert captured == pytest.approx(float(sigma[:m].square().sum()), rel=1e-10)
                assert torch.allclose(basis.energies, sigma[:m].square(), rtol=1e-6, atol=1e-10)
                gap = (sigma[m - 1] - sigma[m]) / sigma[0] if m < len(sigma) else sigma[m - 1]
                if gap > 1e-4:
                    assert (projector(basis.vectors) - projector(U[:, :m])).norm() < 1e-6


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
@all_spectra
def test_rotated_coefficients_are_those_of_reconstruct_then_project(metric, spectrum):
    """P7: rotating an old task is the same as forming its factors and projecting them."""
    adapters = [random_factors(seed, spectrum) for seed in range(5)]
    for before, tasks, outcome in merge_in_sequence(adapters, metric, num_factors=6):
        for task_id, task in tasks.items():
            slow = project(outcome.subspace, reconstruct(before, task.served(before)))
            fast = outcome.tasks[task_id].served(outcome.subspace)
            for name, layer in fast.layers.items():
                for side, coefficients in layer:
                    expected = slow.layers[name][side]
                    assert torch.allclose(
                        coefficients, expected, rtol=0, atol=1e-9 * expected.norm()
                    )


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_factors", [1, 5, 40])
def test_bases_are_orthonormal_at_every_k(metric, dtype, num_factors):
    """P1: also when k is beyond the rank of the data, where it is capped at the numerical rank."""
    adapters = [random_factors(seed, "rank-deficient", dtype=dtype) for seed in range(4)]
    *_, (_, _, outcome) = merge_in_sequence(adapters, metric, num_factors)
    for layer in outcome.subspace.layers.values():
        for _, basis in layer:
            assert basis.num_factors == min(num_factors, 8)
            identity = torch.eye(basis.num_columns, dtype=dtype)
            assert (basis.vectors.mT @ basis.vectors - identity).abs().max() < 1e-5


@everywhere
@all_spectra
def test_with_enough_factors_every_adapter_comes_back(metric, spectrum):
    """P2: k at least the rank loses nothing, of the first task or the last."""
    adapters = [random_factors(seed, spectrum) for seed in range(4)]
    *_, (_, _, outcome) = merge_in_sequence(adapters, metric)
    served = delta_weights(outcome.subspace, outcome.tasks)
    for adapter, weights in zip(adapters, served.values(), strict=True):
        assert distance(dense(adapter), weights) < 1e-12 * norm(dense(adapter))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_one_shot_error_is_the_tail_energy(k):
    """P3: with metric factors, the squared error over the stack is the energy beyond k."""
    adapters = [random_factors(seed) for seed in range(4)]
    subspace = subspace_from_factors(adapters, num_factors=k, metric="factors")
    for name in SHAPES:
        for side in ("a", "b"):
            stack = torch.cat(
                [metric_columns(adapter[name], side, "factors") for adapter in adapters], 1
            )
            V = subspace.layers[name][side].leading
            error = float((stack - V @ (V.mT @ stack)).square().sum())
            assert error == pytest.approx(float(torch.linalg.svdvals(stack)[k:].square().sum()))


@everywhere
def test_order_of_the_inputs_changes_nothing(metric):
    """P4: permuted adapters give the same spans, with truncation active."""
    adapters = [random_factors(seed) for seed in range(4)]
    one = subspace_from_factors(adapters, num_factors=6, metric=metric)
    other = subspace_from_factors(adapters[::-1], num_factors=6, metric=metric)
    for name, layer in one.layers.items():
        for side, basis in layer:
            there = other.layers[name][side].leading
            assert torch.allclose(projector(basis.leading), projector(there), atol=1e-9)


@everywhere
def test_what_lies_in_the_span_moves_nobody(metric):
    """P5: merging what the basis can already say leaves every task's dW as it was."""
    adapters = [random_factors(seed) for seed in range(3)]
    *_, (_, _, outcome) = merge_in_sequence(adapters, metric)
    inside = {
        name: LayerFactors(layer.a + adapters[1][name].a, layer.b - adapters[2][name].b)
        for name, layer in adapters[0].items()
    }
    update = update_from_factors(outcome.subspace, inside, "inside")
    after = merge(outcome.subspace, outcome.tasks, [update])
    assert after.subspace.num_factors == outcome.subspace.num_factors
    before = delta_weights(outcome.subspace, outcome.tasks)
    now = delta_weights(after.subspace, after.tasks)
    for task_id, weights in before.items():
        assert distance(weights, now[task_id]) < 1e-11 * norm(weights)
        assert after.report.drift[task_id] < 1e-11 * norm(weights)


@pytest.mark.parametrize("seed", range(3))
def test_sequential_error_lies_between_its_bounds(seed):
    """P6: at least the one-shot optimum's, at most the sum of what each merge cut."""
    adapters = [random_factors(100 * seed + index) for index in range(8)]
    history = merge_in_sequence(adapters, "factors", num_factors=7)
    final = history[-1][2]
    for name in SHAPES:
        for side in ("a", "b"):
            stack = torch.cat(
                [metric_columns(adapter[name], side, "factors") for adapter in adapters], 1
            )
            said = torch.cat(
                [kept_columns(final.subspace, task, name, side) for task in final.tasks.values()], dim=1
            )  # fmt: skip
            error = float((stack - said).norm())
            lowest = float(torch.linalg.svdvals(stack)[7:].square().sum()) ** 0.5
            highest = sum(
                outcome.report.layers[name][side].cut_energy ** 0.5 for _, _, outcome in history
            )
            print(f"{name} {side}: {lowest:.4f} <= {error:.4f} <= {highest:.4f}")
            assert lowest * (1 - 1e-9) <= error <= highest * (1 + 1e-9)


@everywhere
@pytest.mark.parametrize("oversample", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drift_reported_is_drift_measured(metric, oversample, dtype):
    """P8: with truncation active, the certificate equals the dense difference of what is served."""
    adapters = [random_factors(seed, dtype=dtype) for seed in range(6)]
    largest = 0.0
    for before, tasks, outcome in merge_in_sequence(adapters, metric, 5, oversample):
        was = delta_weights(before, tasks)
        now = delta_weights(outcome.subspace, outcome.tasks)
        for task_id, weights in was.items():
            measured = distance(weights, now[task_id])
            largest = max(largest, measured / norm(weights))
            assert outcome.report.drift[task_id] == pytest.approx(measured, rel=1e-4, abs=1e-5)
    assert largest > 1e-3


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


@everywhere
def test_a_new_task_loses_only_what_truncation_cuts(metric):
    """P9: its dW after the merge differs from the trained one by the reported truncation alone."""
    adapters = [random_factors(seed) for seed in range(6)]
    largest = 0.0
    for _, _, outcome in merge_in_sequence(adapters, metric, num_factors=8):
        (update_id,), (task_id,) = outcome.report.update_ids, outcome.report.task_ids
        trained = dense(adapters[int(task_id[-3:])])
        served = delta_weights(outcome.subspace, outcome.tasks)[task_id]
        relative = distance(trained, served) / norm(trained)
        assert outcome.report.truncation[update_id] == pytest.approx(relative, rel=1e-6, abs=1e-9)
        largest = max(largest, relative)
        for name, layer in adapters[int(task_id[-3:])].items():
            bases = outcome.subspace.layers[name]
            left = projector(bases.b.leading) @ layer.delta_weight() @ projector(bases.a.leading)
            assert torch.allclose(served[name], left, atol=1e-9)
    assert largest > 1e-3


def test_the_temporary_part_survives_the_merge():
    """P9: an update that is nothing but temporary factors comes back whole from version 0."""
    adapter = random_factors(0)
    empty = Subspace.empty(SHAPES, dtype=torch.float64)
    outcome = merge(empty, {}, [update_from_factors(empty, adapter, "only")])
    served = delta_weights(outcome.subspace, outcome.tasks)["only"]
    assert distance(served, dense(adapter)) < 1e-12 * norm(served)


@everywhere
@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_energy_chooses_the_least_k(metric, energy):
    """P14: per side and layer, k explains the share asked for and k - 1 does not."""
    adapters = [random_factors(seed) for seed in range(4)]
    subspace = subspace_from_factors(adapters, energy=energy, metric=metric)
    for name in SHAPES:
        for side in ("a", "b"):
            stack = torch.cat(
                [metric_columns(adapter[name], side, metric) for adapter in adapters], 1
            )
            squares = torch.linalg.svdvals(stack).square()
            k = subspace.layers[name][side].num_factors
            assert squares[:k].sum() / squares.sum() >= energy - 1e-9
            assert squares[: k - 1].sum() / squares.sum() < energy


@everywhere
def test_explained_energy_is_reported_from_the_singular_values(metric):
    """P14: the report's share is that of the squared singular values of the stack."""
    adapters = [random_factors(seed) for seed in range(4)]
    empty = Subspace.empty(SHAPES, metric, torch.float64)
    updates = [update_from_factors(empty, adapter, str(i)) for i, adapter in enumerate(adapters)]
    outcome = merge(empty, {}, updates, num_factors=6)
    shares = []
    for name in SHAPES:
        for side in ("a", "b"):
            stack = torch.cat(
                [metric_columns(adapter[name], side, metric) for adapter in adapters], 1
            )
            squares = torch.linalg.svdvals(stack).square()
            shares.append(float(squares[:6].sum() / squares.sum()))
            assert outcome.report.layers[name][side].explained_energy == pytest.approx(shares[-1])
    assert outcome.report.lowest_energy_kept == pytest.approx(min(shares))
    assert outcome.report.mean_energy_kept == pytest.approx(sum(shares) / len(shares))


@everywhere
@pytest.mark.parametrize("group", [2, 3, 6])
def test_any_grouping_gives_the_same_result_without_truncation(metric, group):
    """P17: one at a time or many at once, the spans, energies and every dW agree."""
    adapters = [random_factors(seed, rank=2) for seed in range(6)]
    one = merge_in_sequence(adapters, metric)[-1][2]
    other = merge_in_sequence(adapters, metric, group=group)[-1][2]
    for name, layer in one.subspace.layers.items():
        for side, basis in layer:
            there = other.subspace.layers[name][side]
            assert torch.allclose(basis.energies, there.energies, atol=1e-10)
            assert torch.allclose(projector(basis.leading), projector(there.leading), atol=1e-8)
    mine = delta_weights(one.subspace, one.tasks)
    theirs = delta_weights(other.subspace, other.tasks)
    for task_id, weights in mine.items():
        assert distance(weights, theirs[task_id]) < 1e-10 * norm(weights)


@everywhere
def test_the_order_effect_of_truncated_merges_is_small_and_measured(metric):
    """P17: with truncation, order changes what is captured by a share that is printed, below 10 %."""
    adapters = [random_factors(seed) for seed in range(8)]
    stacks = {
        (name, side): torch.cat([metric_columns(a[name], side, metric) for a in adapters], dim=1)
        for name in SHAPES
        for side in ("a", "b")
    }
    captured = []
    for order in (adapters, adapters[::-1]):
        final = merge_in_sequence(order, metric, num_factors=8, oversample=8)[-1][2].subspace
        captured.append({
            key: float((final.layers[key[0]][key[1]].leading.mT @ stack).square().sum())
            for key, stack in stacks.items()
        })  # fmt: skip
    for key in stacks:
        effect = abs(captured[0][key] - captured[1][key]) / captured[0][key]
        print(f"{metric} {key}: order effect {effect:.4f}")
        assert effect < 0.1


@all_spectra
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_split_between_the_factors_does_not_matter(spectrum, seed):
    """P18: (B, A) and (B M, M^-1 A) merge to the same dW under metric delta, truncated."""
    adapters = [random_factors(seed + index, spectrum) for index in range(3)]
    rank = next(iter(adapters[0].values())).a.shape[1]
    mix = torch.eye(rank, dtype=torch.float64) * 3 + random_square(rank, seed)
    resplit = [
        {
            name: LayerFactors(layer.a @ torch.linalg.inv(mix).mT, layer.b @ mix)
            for name, layer in adapter.items()
        }
        for adapter in adapters
    ]
    one = merge_in_sequence(adapters, "delta", num_factors=5)[-1][2]
    other = merge_in_sequence(resplit, "delta", num_factors=5)[-1][2]
    mine = delta_weights(one.subspace, one.tasks)
    theirs = delta_weights(other.subspace, other.tasks)
    for task_id, weights in mine.items():
        assert distance(weights, theirs[task_id]) < 1e-7 * norm(dense(adapters[int(task_id[-3:])]))


def random_square(size, seed):
    return torch.rand(
        size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


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
