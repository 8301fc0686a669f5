"""What a correct merge satisfies, for both metrics and every spectrum, against the slow obvious ways of doing the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.merge import merge
from share_dist.core.metrics import basis_bytes, byte_account, coefficient_bytes, lora_bytes
from share_dist.core.subspace import (
    project,
    reconstruct,
    subspace_from_factors,
    update_from_factors,
)
from share_dist.core.values import SIDES, LayerFactors, Subspace
from tests.core.adapters import (
    METRICS,
    delta_weights,
    distance,
    kept_columns,
    merge_in_sequence,
    metric_columns,
    norm,
    projector,
    random_factors,
)
from tests.strategies import SMALL, SPECTRA, Adapters, adapters, seeds

properties = settings(max_examples=12, deadline=None)
PLACES = [(name, side) for name in SMALL for side in SIDES]
SEVERAL = st.sampled_from([each for each in SPECTRA if each != "rank one"])
"""Where adapters have more than one direction each."""


def dense(factors):
    return {name: layer.delta_weight() for name, layer in factors.items()}


def stack_of(drawn, name, side):
    """All weighted columns of one side, as they come."""
    return torch.cat([metric_columns(each[name], side, drawn.metric) for each in drawn.factors], 1)


def trained_as(drawn, task_id):
    return dense(drawn.factors[int(task_id[-3:])])


def assert_leading(vectors, stack, k):
    """Columns are the ``k`` leading ones of a stack: what they capture, and the span where there is a gap."""
    U, sigma, _ = torch.linalg.svd(stack, full_matrices=False)
    captured = float((vectors.mT @ stack).square().sum())
    assert captured == pytest.approx(float(sigma[:k].square().sum()), rel=1e-10)
    following = sigma[k] if k < len(sigma) else 0.0
    if (sigma[k - 1] - following) / sigma[0] > 1e-4:
        assert (projector(vectors) - projector(U[:, :k])).norm() < 1e-6


@properties
@given(drawn=adapters(dtype=torch.float32), k=st.integers(1, 30), oversample=st.integers(0, 5))
def test_p1_bases_are_orthonormal_at_every_k(drawn, k, oversample):
    """P1: to 1e-5 in float32, also beyond the rank of the data, where ``k`` is capped at it."""
    *_, (_, _, outcome) = merge_in_sequence(drawn.factors, drawn.metric, k, oversample)
    for name, side in PLACES:
        basis = outcome.subspace.layers[name][side]
        rank = int(torch.linalg.matrix_rank(stack_of(drawn, name, side), rtol=1e-9))
        assert basis.num_factors <= min(k, rank)
        identity = torch.eye(basis.num_columns)
        assert (basis.vectors.mT @ basis.vectors - identity).abs().max() < 1e-5


@properties
@given(drawn=adapters())
def test_p2_with_enough_factors_every_adapter_comes_back(drawn):
    """P2: ``k`` at least the rank loses nothing, of the first task or the last."""
    *_, (_, _, outcome) = merge_in_sequence(drawn.factors, drawn.metric)
    for task_id, weights in delta_weights(outcome.subspace, outcome.tasks).items():
        trained = trained_as(drawn, task_id)
        assert distance(trained, weights) < 1e-11 * norm(trained)


@properties
@given(drawn=adapters(), k=st.integers(1, 9))
def test_p3_one_shot_error_is_the_tail_energy(drawn, k):
    """P3: the squared error over the stack of the metric's columns is the energy beyond ``k``."""
    subspace = subspace_from_factors(drawn.factors, num_factors=k, metric=drawn.metric)
    for name, side in PLACES:
        stack = stack_of(drawn, name, side)
        V = subspace.layers[name][side].leading
        error = float((stack - V @ (V.mT @ stack)).square().sum())
        tail = float(torch.linalg.svdvals(stack)[V.shape[1] :].square().sum())
        assert error == pytest.approx(tail, rel=1e-6, abs=1e-12)


@properties
@given(drawn=adapters(), k=st.integers(1, 12), seed=seeds)
def test_p4_order_of_the_inputs_changes_nothing(drawn, k, seed):
    """P4: permuted adapters give the same spans and energies, with truncation active."""
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    permuted = [drawn.factors[index] for index in order]
    one = subspace_from_factors(drawn.factors, num_factors=k, metric=drawn.metric)
    other = subspace_from_factors(permuted, num_factors=k, metric=drawn.metric)
    for name, side in PLACES:
        here, there = one.layers[name][side], other.layers[name][side]
        assert torch.allclose(here.energies, there.energies, rtol=1e-6, atol=1e-12)
        for basis in (here, there):
            assert_leading(basis.leading, stack_of(drawn, name, side), basis.num_factors)


@properties
@given(drawn=adapters(count=3))
def test_p5_what_lies_in_the_span_moves_nobody(drawn):
    """P5: merging what the basis can already say leaves every task's dW, and ``k``, as they were."""
    *_, (_, _, outcome) = merge_in_sequence(drawn.factors, drawn.metric)
    first, second, third = drawn.factors
    inside = {
        name: LayerFactors(layer.a + second[name].a, layer.b - third[name].b)
        for name, layer in first.items()
    }
    update = update_from_factors(outcome.subspace, inside, "inside")
    after = merge(outcome.subspace, outcome.tasks, [update])
    before = delta_weights(outcome.subspace, outcome.tasks)
    now = delta_weights(after.subspace, after.tasks)
    for task_id, weights in before.items():
        assert distance(weights, now[task_id]) < 1e-10 * norm(weights)
        assert after.report.drift[task_id] < 1e-10 * norm(weights)
    for name, side in PLACES:
        was, becomes = outcome.subspace.layers[name][side], after.subspace.layers[name][side]
        assert becomes.num_factors == was.num_factors


@properties
@given(drawn=adapters(count=6), k=st.integers(1, 10))
def test_p6_sequential_error_lies_between_its_bounds(drawn, k):
    """P6: at least the one-shot optimum's, at most the sum of what each merge cut."""
    history = merge_in_sequence(drawn.factors, drawn.metric, k)
    final = history[-1][2]
    for name, side in PLACES:
        stack = stack_of(drawn, name, side)
        kept = [kept_columns(final.subspace, final.tasks[each], name, side) for each in final.tasks]
        # their squares: columns of a task may have been turned, their second moment tells them apart
        lost = float(stack.square().sum()) - float(torch.cat(kept, dim=1).square().sum())
        error = max(0.0, lost) ** 0.5
        lowest = float(torch.linalg.svdvals(stack)[k:].square().sum()) ** 0.5
        cuts = [outcome.report.layers[name][side].cut_energy ** 0.5 for _, _, outcome in history]
        print(f"{drawn.metric} {drawn.spectrum}: {lowest:.4f} <= {error:.4f} <= {sum(cuts):.4f}")
        assert lowest * (1 - 1e-6) - 1e-6 <= error <= sum(cuts) * (1 + 1e-6) + 1e-6


@properties
@given(drawn=adapters(), k=st.none() | st.integers(1, 10), oversample=st.integers(0, 5))
def test_p7_the_small_merge_is_the_big_svd(drawn, k, oversample):
    """P7: at every merge of a sequence, the basis is that of the float64 SVD of everything kept."""
    for before, tasks, outcome in merge_in_sequence(drawn.factors, drawn.metric, k, oversample):
        (new_task,) = outcome.report.task_ids
        incoming = drawn.factors[int(new_task[-3:])]
        for name, side in PLACES:
            columns = [kept_columns(before, task, name, side) for task in tasks.values()]
            big = torch.cat([*columns, metric_columns(incoming[name], side, drawn.metric)], dim=1)
            basis = outcome.subspace.layers[name][side]
            assert_leading(basis.vectors, big, basis.num_columns)
            sigma = torch.linalg.svdvals(big)[: basis.num_columns]
            assert torch.allclose(basis.energies, sigma.square(), rtol=1e-6, atol=1e-10)


@properties
@given(drawn=adapters(), k=st.integers(1, 10))
def test_p7_rotated_coefficients_are_those_of_reconstruct_then_project(drawn, k):
    """P7: rotating an old task is the same as forming its factors and projecting them."""
    for before, tasks, outcome in merge_in_sequence(drawn.factors, drawn.metric, k):
        for task_id, task in tasks.items():
            slow = project(outcome.subspace, reconstruct(before, task.served(before)))
            fast = outcome.tasks[task_id].served(outcome.subspace)
            for name, side in PLACES:
                coefficients, expected = fast.layers[name][side], slow.layers[name][side]
                # what a task has there may be nothing beside what it had: rounding is relative to that
                whole = task.layers[name].coefficients[side].norm()
                assert torch.allclose(coefficients, expected, rtol=0, atol=1e-9 * whole)


@properties
@given(
    drawn=adapters(count=6),
    k=st.integers(1, 8),
    oversample=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_p8_drift_reported_is_drift_measured(drawn, k, oversample, dtype):
    """P8: with truncation active, the certificate equals the dense difference of what is served."""
    factors = [
        {name: LayerFactors(layer.a.to(dtype), layer.b.to(dtype)) for name, layer in each.items()}
        for each in drawn.factors
    ]
    rounding = 1e-5 if dtype == torch.float32 else 1e-10
    for before, tasks, outcome in merge_in_sequence(factors, drawn.metric, k, oversample):
        was = delta_weights(before, tasks)
        now = delta_weights(outcome.subspace, outcome.tasks)
        for task_id, weights in was.items():
            measured, whole = distance(weights, now[task_id]), norm(trained_as(drawn, task_id))
            assert outcome.report.drift[task_id] == pytest.approx(
                measured, rel=1e-4, abs=rounding * whole
            )


@properties
@given(drawn=adapters(of_spectra=st.sampled_from(["i^-0", "i^-0.25", "repeated"])), k=st.integers(4, 6))  # fmt: skip
def test_p8_and_p9_truncation_is_active(drawn, k):
    """Where spectra are flat some task is truly moved, and a newcomer truly loses: the properties are not idle."""
    history = merge_in_sequence(drawn.factors, drawn.metric, k)
    moved = max(
        drift / norm(trained_as(drawn, task_id))
        for *_, outcome in history
        for task_id, drift in outcome.report.drift.items()
    )
    lost = max(max(outcome.report.truncation.values()) for *_, outcome in history)
    assert min(moved, lost) > 1e-3


@properties
@given(drawn=adapters(), k=st.integers(1, 10))
def test_p9_a_new_task_loses_only_what_truncation_cuts(drawn, k):
    """P9: its dW after the merge is the trained one projected on both sides, and the error is the one reported."""
    for _, _, outcome in merge_in_sequence(drawn.factors, drawn.metric, k):
        (update_id,), (task_id,) = outcome.report.update_ids, outcome.report.task_ids
        trained = trained_as(drawn, task_id)
        served = delta_weights(outcome.subspace, outcome.tasks)[task_id]
        relative = distance(trained, served) / norm(trained)
        assert outcome.report.truncation[update_id] == pytest.approx(relative, rel=1e-6, abs=1e-9)
        for name, weight in trained.items():
            bases = outcome.subspace.layers[name]
            left = projector(bases.b.leading) @ weight @ projector(bases.a.leading)
            assert (served[name] - left).norm() < 1e-9 * weight.norm()


@properties
@given(drawn=adapters(), energy=st.sampled_from([0.3, 0.6, 0.9, 0.99, 1.0]))
def test_p14_energy_chooses_the_least_k(drawn, energy):
    """P14: per side and layer, ``k`` explains the share asked for and ``k - 1`` does not."""
    subspace = subspace_from_factors(drawn.factors, energy=energy, metric=drawn.metric)
    for name, side in PLACES:
        squares = torch.linalg.svdvals(stack_of(drawn, name, side)).square()
        k = subspace.layers[name][side].num_factors
        assert squares[:k].sum() / squares.sum() >= energy - 1e-9
        assert squares[: k - 1].sum() / squares.sum() < energy + 1e-9


@properties
@given(drawn=adapters(), k=st.integers(1, 10))
def test_p14_explained_energy_is_reported_from_the_singular_values(drawn, k):
    """P14: the report's share is that of the squared singular values of the stack."""
    empty = Subspace.empty(SMALL, drawn.metric, torch.float64)
    updates = [update_from_factors(empty, each, str(i)) for i, each in enumerate(drawn.factors)]
    report = merge(empty, {}, updates, num_factors=k).report
    shares = []
    for name, side in PLACES:
        squares = torch.linalg.svdvals(stack_of(drawn, name, side)).square()
        shares.append(float(squares[:k].sum() / squares.sum()))
        assert report.layers[name][side].explained_energy == pytest.approx(shares[-1])
    assert report.lowest_energy_kept == pytest.approx(min(shares))
    assert report.mean_energy_kept == pytest.approx(sum(shares) / len(shares))


@properties
@given(
    drawn=adapters(dtype=torch.float32),
    energy=st.sampled_from([0.5, 0.9]),
    num_tasks=st.integers(1, 1000),
    pseudo_rank=st.integers(1, 8),
    head_bytes=st.integers(0, 1000),
)
def test_p15_bytes_are_those_of_the_tensors(drawn, energy, num_tasks, pseudo_rank, head_bytes):
    """P15: bases, all coefficients and heads, with a ``k`` of each side; break-even is the first number that pays."""
    subspace = subspace_from_factors(drawn.factors, energy=energy, metric=drawn.metric)
    bases = [basis for layer in subspace.layers.values() for _, basis in layer]
    held = sum(basis.leading.contiguous().nbytes for basis in bases)
    said = sum(4 * basis.num_factors * pseudo_rank for basis in bases)
    assert (basis_bytes(subspace), coefficient_bytes(subspace, pseudo_rank)) == (held, said)
    account = byte_account(subspace, num_tasks, pseudo_rank, head_bytes=head_bytes)
    lora = lora_bytes(SMALL, 8)
    assert account.total == held + num_tasks * (said + head_bytes)
    assert account.lora_total == num_tasks * (lora + head_bytes)
    if said < lora:
        n = account.break_even
        assert held + n * said < n * lora
        assert n == 1 or held + (n - 1) * said >= (n - 1) * lora
    else:
        assert account.break_even is None


@properties
@given(drawn=adapters(count=6, rank=2), group=st.sampled_from([2, 3, 6]), seed=seeds)
def test_p17_any_order_and_grouping_gives_the_same_without_truncation(drawn, group, seed):
    """P17: one at a time or many at once, in whatever order, the spans, energies and every dW agree."""
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
    one = merge_in_sequence(drawn.factors, drawn.metric)[-1][2]
    permuted = [drawn.factors[index] for index in order]
    other = merge_in_sequence(permuted, drawn.metric, group=group)[-1][2]
    for name, side in PLACES:
        here, there = one.subspace.layers[name][side], other.subspace.layers[name][side]
        assert torch.allclose(here.energies, there.energies, rtol=1e-6, atol=1e-12)
        assert torch.allclose(projector(here.leading), projector(there.leading), atol=1e-6)
    mine = delta_weights(one.subspace, one.tasks)
    theirs = delta_weights(other.subspace, other.tasks)
    for place, index in enumerate(order):
        weights = mine[f"task-{index:03d}"]
        assert distance(weights, theirs[f"task-{place:03d}"]) < 1e-9 * norm(weights)


@properties
@given(drawn=adapters(count=8), seed=seeds)
def test_p17_the_order_effect_of_truncated_merges_is_small_and_measured(drawn, seed):
    """P17: with truncation, order changes what is captured by a share that is printed, below 10 %."""
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
    captured = []
    for arrivals in (drawn.factors, [drawn.factors[index] for index in order]):
        final = merge_in_sequence(arrivals, drawn.metric, num_factors=6, oversample=6)[-1][2].subspace  # fmt: skip
        captured.append([
            float((final.layers[name][side].leading.mT @ stack_of(drawn, name, side)).square().sum())
            for name, side in PLACES
        ])  # fmt: skip
    effect = max(abs(one - other) / one for one, other in zip(*captured, strict=True))
    print(f"{drawn.metric} {drawn.spectrum}: order effect {effect:.4f}")
    assert effect < 0.1


def resplit(drawn, mix):
    """The same dW, each as ``(B M, M^-1 A)``."""
    return [
        {
            name: LayerFactors(layer.a @ torch.linalg.inv(mix).mT, layer.b @ mix)
            for name, layer in each.items()
        }
        for each in drawn.factors
    ]


def assert_merge_alike(drawn, others, num_factors):
    """Two sets of adapters merge to the same dW of every task."""
    one, other = (
        merge_in_sequence(factors, drawn.metric, num_factors)[-1][2]
        for factors in (drawn.factors, others)
    )
    mine = delta_weights(one.subspace, one.tasks)
    theirs = delta_weights(other.subspace, other.tasks)
    for task_id, weights in mine.items():
        assert distance(weights, theirs[task_id]) < 1e-7 * norm(trained_as(drawn, task_id))


def general_mix(seed):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.eye(4, dtype=torch.float64) + torch.rand(4, 4, generator=generator).double()


@properties
@given(drawn=adapters(count=3), seed=seeds, k=st.none() | st.just(5))
def test_p18_the_split_between_the_factors_does_not_matter(drawn, seed, k):
    """
    P18: (B, A) and (B M, M^-1 A) merge to the same dW: of metric ``delta`` for any M, truncated or not; of ``factors``,
    which weighs the factors as they are split, for any M where nothing is truncated.
    """
    num_factors = None if drawn.metric == "factors" else k
    assert_merge_alike(drawn, resplit(drawn, general_mix(seed)), num_factors)


@properties
@given(drawn=adapters(count=3), seed=seeds)
def test_p18_a_turned_split_does_not_matter_to_either_metric(drawn, seed):
    """P18: truncated, for either metric, (B M, M^-1 A) with an orthogonal M merges to the same dW."""
    turn = torch.linalg.qr(general_mix(seed)).Q
    assert_merge_alike(drawn, resplit(drawn, turn), num_factors=5)


def test_p18_the_metric_factors_looks_at_the_split():
    """Why more is not promised of it: a factor of ten between the columns of one adapter moves the truncated merge."""
    factors = [random_factors(seed, shapes=SMALL) for seed in range(3)]
    mix = torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    moved = {}
    for metric in METRICS:
        drawn = Adapters(metric, "random", factors)
        finals = [
            merge_in_sequence(each, metric, 5)[-1][2] for each in (factors, resplit(drawn, mix))
        ]
        one, other = (delta_weights(final.subspace, final.tasks)["task-000"] for final in finals)
        moved[metric] = distance(one, other) / norm(dense(factors[0]))
    assert moved["delta"] < 1e-7
    assert moved["factors"] > 1e-2


@properties
@given(drawn=adapters(), k=st.none() | st.integers(1, 10))
def test_an_update_that_is_not_folded_merges_to_the_same(drawn, k):
    """An adapter as temporary factors alone gives the bases, energies and dW of the same one folded."""
    *_, (current, tasks, _) = merge_in_sequence(drawn.factors, drawn.metric, k)
    folded, raw = (
        merge(
            current, tasks, [update_from_factors(current, drawn.factors[-1], "new", folds=folds)], k
        )
        for folds in (True, False)
    )
    for name, side in PLACES:
        mine, theirs = (each.subspace.layers[name][side] for each in (raw, folded))
        assert torch.allclose(mine.energies, theirs.energies, rtol=1e-6, atol=1e-10)
    served = [
        delta_weights(each.subspace, {"new": each.tasks["new"]})["new"] for each in (raw, folded)
    ]
    assert distance(*served) < 1e-7 * norm(dense(drawn.factors[-1]))


@properties
@given(drawn=adapters(), late=st.integers(0, 3), k=st.none() | st.integers(1, 10))
def test_a_late_update_is_the_update_in_time_said_elsewhere(drawn, late, k):
    """What was trained on an old version is merged as the same dW said in the newest one is."""
    *history, (current, tasks, _) = merge_in_sequence(drawn.factors, drawn.metric, k)
    base = history[late][0]
    update = update_from_factors(base, drawn.factors[-1], "late")
    in_time = replace(update_from_factors(current, drawn.factors[-1], "late"))
    served = [
        delta_weights(outcome.subspace, {"late": outcome.tasks["late"]})["late"]
        for outcome in (
            merge(current, tasks, [update], k, bases={base.version: base}),
            merge(current, tasks, [in_time], k),
        )
    ]
    assert distance(*served) < 1e-7 * norm(dense(drawn.factors[-1]))
