"""The drift budget: columns grow before a task is moved too far, and who is to blame waits."""

import math
from dataclasses import replace

import pytest
import torch

from share_dist.core.budget import (
    DriftBudget,
    merge_within_budget,
    park_for_budget,
    task_norms,
)
from share_dist.core.merge import merge
from share_dist.core.removal import remove_tasks
from share_dist.core.staleness import staleness_factor
from share_dist.core.subspace import update_from_factors
from share_dist.core.truncation import Truncation
from share_dist.core.values import LayerShape, LayerUpdate, SideUpdate, Subspace, TaskUpdate
from share_dist.errors import ConfigError
from tests.core.adapters import METRICS, delta_weights, merge_in_sequence, norm, random_factors
from tests.equality import first_difference

SMALL = {"q": LayerShape(24, 18), "v": LayerShape(20, 24)}
K6 = Truncation(6, oversample=2)


def start(num_tasks=3, metric="delta"):
    """A version that is full: whatever comes next moves somebody."""
    adapters = [random_factors(seed, rank=2, shapes=SMALL) for seed in range(num_tasks)]
    outcome = merge_in_sequence(adapters, metric, 6, oversample=2)[-1][2]
    return outcome.subspace, outcome.tasks


def update_of(subspace, seed, task_id="new", weight=1.0, rank=3):
    adapter = random_factors(seed, rank=rank, shapes=SMALL)
    update = update_from_factors(subspace, adapter, task_id)
    return TaskUpdate(task_id, task_id, subspace.version, update.layers, weight=weight)


def inside(subspace, tasks, task_id, name):
    """An update that says again what a task says: it moves nobody far."""
    served = tasks[task_id].served(subspace)
    layers = {
        layer: LayerUpdate(*(
            SideUpdate(
                tensor,
                tensor.new_zeros(subspace.layers[layer][side].features, 0),
                tensor.new_zeros(0, tensor.shape[1]),
            )
            for side, tensor in coefficients
        ))
        for layer, coefficients in served.layers.items()
    }  # fmt: skip
    return TaskUpdate(name, name, subspace.version, layers)


def column_bytes(subspace):
    return sum(
        basis.vectors.numel() * basis.vectors.element_size()
        for layer in subspace.layers.values()
        for _, basis in layer
    )


@pytest.mark.parametrize("metric", METRICS)
def test_norms_of_tasks_are_those_of_their_dense_change(metric):
    """From coefficients alone, as served: the tail does not count."""
    subspace, tasks = start(4, metric)
    norms = task_norms(subspace, tasks)
    for task_id, weights in delta_weights(subspace, tasks).items():
        assert norms[task_id] == pytest.approx(norm(weights), rel=1e-9)


def test_within_the_budget_it_is_the_ordinary_merge():
    """Nothing grows where nobody is moved too far, and the version is the same to the bit."""
    subspace, tasks = start()
    update = update_of(subspace, 9)
    found = merge_within_budget(subspace, tasks, [update], DriftBudget(10.0), K6)
    plain = merge(subspace, tasks, [update], 6, oversample=2)
    assert (found.excess, found.least_factors) == ({}, 0)
    assert first_difference(found.outcome.subspace, plain.subspace) is None


def test_k_grows_to_the_least_that_keeps_everyone_within():
    """The k that is chosen keeps every task within, and one less does not."""
    subspace, tasks = start()
    update = update_of(subspace, 9)
    plain = merge_within_budget(subspace, tasks, [update], DriftBudget(10.0), K6)
    budget = DriftBudget(plain.furthest / 3)
    found = merge_within_budget(subspace, tasks, [update], budget, K6)
    assert found.excess == {}
    assert found.furthest <= budget.largest < plain.furthest
    assert found.outcome.subspace.num_factors == found.least_factors > 6
    less = merge(subspace, tasks, [update], found.least_factors - 1, oversample=2)
    norms = task_norms(subspace, tasks)
    worst = max(less.report.drift[task] / norms[task] for task in tasks)
    assert worst > budget.largest


def test_what_is_reported_is_the_drift_of_the_outcome():
    """Relative cumulative drift is so far plus this merge, over the norm before it."""
    subspace, tasks = start()
    norms = task_norms(subspace, tasks)
    so_far = {"task-000": 0.5 * norms["task-000"]}
    found = merge_within_budget(
        subspace, tasks, [update_of(subspace, 9)], DriftBudget(10.0, None, so_far), K6
    )
    for task_id, relative in found.relative_drift.items():
        moved = found.outcome.report.drift[task_id] / norms[task_id]
        assert relative == pytest.approx(moved + (0.5 if task_id == "task-000" else 0.0))


def test_what_was_used_up_before_counts():
    """A budget that one merge keeps within is passed by the next, once the first is counted."""
    subspace, tasks = start()
    update = update_of(subspace, 9)
    moved = merge_within_budget(subspace, tasks, [update], DriftBudget(10.0), K6).furthest
    budget = DriftBudget(1.1 * moved)
    assert merge_within_budget(subspace, tasks, [update], budget, K6).least_factors == 0
    norms = task_norms(subspace, tasks)
    spent = {task: 1.0 * moved * norms[task] for task in tasks}
    later = merge_within_budget(
        subspace, tasks, [update], DriftBudget(1.1 * moved, None, spent), K6
    )
    assert later.least_factors > 6 or later.excess


def test_what_grew_stays_grown():
    """The next merge and the next removal begin with the k of the current version."""
    subspace, tasks = start()
    plain = merge_within_budget(subspace, tasks, [update_of(subspace, 9)], DriftBudget(10.0), K6)
    tight = DriftBudget(plain.furthest / 3)
    grown = merge_within_budget(subspace, tasks, [update_of(subspace, 9)], tight, K6).outcome
    k = grown.subspace.num_factors
    again = inside(grown.subspace, grown.tasks, "task-000", "again")
    after = merge_within_budget(grown.subspace, grown.tasks, [again], tight, K6)
    assert (after.outcome.subspace.num_factors, after.least_factors) == (k, 0)
    removed = remove_tasks(
        grown.subspace, grown.tasks, ["task-001"], 6, oversample=2, keeps_factors=True
    )
    assert removed.subspace.num_factors == k or removed.subspace.num_factors == max(
        basis.num_columns for layer in removed.subspace.layers.values() for _, basis in layer
    )


def test_memory_bounds_the_growth():
    """With room for one column more it grows by one; the best attempt says who exceeds, and how far."""
    subspace, tasks = start()
    update = update_of(subspace, 9, rank=8)
    plain = merge_within_budget(subspace, tasks, [update], DriftBudget(10.0), K6)
    room = column_bytes(plain.outcome.subspace)
    row = sum(sum(shape) for shape in SMALL.values()) * 8
    for columns in (0, 1, 2):
        budget = DriftBudget(plain.furthest / 100, room + columns * row)
        found = merge_within_budget(subspace, tasks, [update], budget, K6)
        assert column_bytes(found.outcome.subspace) <= budget.max_basis_bytes
        assert found.furthest <= plain.furthest
        assert list(found.excess.values()) == sorted(found.excess.values(), reverse=True)
        assert next(iter(found.excess.values())) == found.furthest > budget.largest


def test_a_bound_below_what_there_is_grows_nothing():
    """A memory bound that is passed already takes nothing away, and lets nothing grow."""
    subspace, tasks = start()
    found = merge_within_budget(subspace, tasks, [update_of(subspace, 9)], DriftBudget(1e-9, 1), K6)
    assert found.least_factors == 0
    assert found.excess


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("room", [1.0, 1.3, 2.0])
def test_bytes_that_are_shared_out_bound_all_growth(metric, room):
    """
    Whatever the drift budget asks for, the factors stay within the bytes, and no more columns are kept than ``o`` beyond
    the larger of ``num_factors`` and what a side got; with twice the room somebody is kept in place.
    """
    subspace, tasks = start(metric=metric)
    update = update_of(subspace, 9)
    max_bytes = int(room * served_bytes(subspace))
    truncation = replace(K6, max_bytes=max_bytes)
    plain = merge_within_budget(subspace, tasks, [update], DriftBudget(10.0), truncation)
    found = merge_within_budget(subspace, tasks, [update], DriftBudget(plain.furthest / 2), truncation)  # fmt: skip
    for merged in (plain, found):
        assert served_bytes(merged.outcome.subspace) <= max_bytes
        for layer in merged.outcome.subspace.layers.values():
            for _, basis in layer:
                assert basis.num_columns <= max(6, basis.num_factors) + 2
    assert found.furthest <= plain.furthest
    if room == 2.0:
        assert found.excess == {}
        assert found.least_factors > 6
    if room == 1.0:
        assert found.excess


def served_bytes(subspace):
    return sum(
        basis.leading.numel() * basis.vectors.element_size()
        for layer in subspace.layers.values()
        for _, basis in layer
    )


def test_an_energy_target_grows_too():
    """Under an energy target, sides with fewer factors grow first, none beyond its rank."""
    subspace, tasks = start()
    truncation = Truncation(energy=0.6, oversample=2)
    update = update_of(subspace, 9)
    plain = merge_within_budget(subspace, tasks, [update], DriftBudget(10.0), truncation)
    found = merge_within_budget(
        subspace, tasks, [update], DriftBudget(plain.furthest / 3), truncation
    )
    assert found.excess == {} or found.furthest < plain.furthest
    for name, layer in found.outcome.subspace.layers.items():
        for side, basis in layer:
            assert basis.num_factors >= subspace.layers[name][side].num_factors


def test_rounding_does_not_use_up_a_budget():
    """A task that is beyond its budget already does not stop merges that leave it where it is."""
    adapters = [
        random_factors(seed, rank=2, shapes=SMALL, dtype=torch.float32) for seed in range(2)
    ]
    outcome = merge_in_sequence(adapters, "delta")[-1][2]
    spent = dict.fromkeys(outcome.tasks, 100.0)
    update = update_from_factors(
        outcome.subspace, random_factors(9, rank=2, shapes=SMALL, dtype=torch.float32), "new"
    )
    found = merge_within_budget(
        outcome.subspace, outcome.tasks, [update], DriftBudget(0.1, None, spent), Truncation()
    )
    assert found.excess == {}


def test_only_the_culprit_waits():
    """Of three updates the one that turns everything is parked; the others merge, within the budget."""
    subspace, tasks = start()
    harmless = [inside(subspace, tasks, f"task-00{index}", f"echo-{index}") for index in range(2)]
    heavy = update_of(subspace, 9, "heavy", weight=50.0)
    room = column_bytes(subspace)
    quiet = merge_within_budget(subspace, tasks, harmless, DriftBudget(10.0, room), K6).furthest
    budget = DriftBudget(max(2 * quiet, 1e-3), room)
    assert merge_within_budget(subspace, tasks, [*harmless, heavy], budget, K6).excess
    found = park_for_budget(subspace, tasks, [*harmless, heavy], budget, K6)
    assert found.parked.keys() == {"heavy"}
    assert found.parked["heavy"]
    assert min(found.parked["heavy"].values()) > budget.largest
    assert found.merge.outcome.report.update_ids == ("echo-0", "echo-1")
    assert found.merge.excess == {}


def test_all_wait_where_each_is_a_culprit():
    """There is no merge then, and every update has its reason."""
    subspace, tasks = start()
    updates = [update_of(subspace, 9 + index, f"heavy-{index}", weight=50.0) for index in range(3)]
    found = park_for_budget(subspace, tasks, updates, DriftBudget(1e-4, 1), K6)
    assert found.merge is None
    assert all(found.parked[update.update_id] for update in updates)


def test_nobody_waits_within_the_budget():
    """What keeps within is merged whole."""
    subspace, tasks = start()
    updates = [update_of(subspace, 9, "one"), update_of(subspace, 10, "two")]
    found = park_for_budget(subspace, tasks, updates, DriftBudget(10.0), K6)
    assert found.parked == {}
    assert found.merge.outcome.report.update_ids == ("one", "two")


def test_a_replaced_task_does_not_count_as_moved():
    """Who is pushed again begins a new account: its old one is not held against the merge."""
    subspace, tasks = start()
    update = update_of(subspace, 9, "task-001")
    found = merge_within_budget(
        subspace, tasks, [update], DriftBudget(10.0, None, {"task-001": 1e9}), K6
    )
    assert "task-001" not in found.relative_drift
    assert found.excess == {}


def test_the_first_merge_has_nobody_to_move():
    """From version 0 there is no excess."""
    empty = Subspace.empty(SMALL, dtype=torch.float64)
    found = merge_within_budget(empty, {}, [update_of(empty, 1)], DriftBudget(1e-9), K6)
    assert (found.furthest, found.excess) == (0.0, {})


@pytest.mark.parametrize("largest", [0.0, -1.0, math.nan])
def test_a_budget_that_allows_nothing_is_refused(largest):
    """A budget is a positive share."""
    with pytest.raises(ConfigError, match="above 0"):
        DriftBudget(largest)


def test_staleness_counts_geometry_not_versions():
    """No lag or no angle counts in full; the factor falls with the angle, to its least."""
    assert staleness_factor(0, 1.0) == 1.0
    assert staleness_factor(100, 0.0) == 1.0
    angles = [0.1, 0.4, 0.9, 1.4, math.pi / 2]
    factors = [staleness_factor(1, angle) for angle in angles]
    assert factors == sorted(factors, reverse=True)
    assert factors[:4] == pytest.approx([math.cos(angle) ** 2 for angle in angles[:4]])
    assert factors[-1] == 0.01
    assert staleness_factor(1, 0.9, power=0.0) == 1.0
    assert staleness_factor(1, 0.9, power=2.0) == pytest.approx(math.cos(0.9) ** 4)
    assert staleness_factor(1, 1.5, least=0.2) == 0.2


@pytest.mark.parametrize(
    ("angle", "options", "key"),
    [
        (-0.1, {}, "angle"),
        (2.0, {}, "angle"),
        (math.nan, {}, "angle"),
        (0.1, {"power": -1.0}, "power"),
        (0.1, {"power": math.inf}, "power"),
        (0.1, {"least": 0.0}, "least"),
        (0.1, {"least": 1.1}, "least"),
    ],
)
def test_staleness_out_of_range_is_refused(angle, options, key):
    """An angle that is none, or an option out of range, is refused by name."""
    with pytest.raises(ConfigError) as caught:
        staleness_factor(1, angle, **options)
    assert caught.value.key == key
