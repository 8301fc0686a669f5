"""Who is set aside for the sake of the others, by what measure, and that the others merge."""

from dataclasses import replace

import pytest
import torch

from coordinator.config import SubspaceConfig
from coordinator.screening import merge_of, screen
from coordinator.store.base import TaskEntry
from coordinator.versions import Snapshot
from share_dist.core.budget import task_norms
from share_dist.core.merge import merge
from share_dist.core.prepared import angle_between
from share_dist.core.staleness import staleness_factor
from share_dist.wire.records import UpdateState
from tests.coordinator.support import EMPTY, make_update

TIGHT = SubspaceConfig(num_factors=2, oversample=0)


def snapshot_of(*task_ids: str, num_factors: int = 2) -> Snapshot:
    """A version that holds a task of pseudo-rank 1 for each name, and has no room for another."""
    updates = [make_update(name, f"u-{name}", pseudo_rank=1) for name in task_ids]
    outcome = merge(EMPTY, {}, updates, num_factors)
    entries = {name: TaskEntry(f"u-{name}") for name in task_ids}
    return Snapshot(outcome.subspace, outcome.tasks, entries)


HELD = snapshot_of("ants", "bees")


def share_moved(current: Snapshot, update, config=TIGHT) -> float:
    drift = merge_of([update], current, {0: EMPTY}, config).report.drift
    norms = task_norms(current.subspace, current.tasks)
    return max(drift[task_id] / norms[task_id] for task_id in drift)


def lightly(task_id: str, weight: float = 1e-4):
    """An update that counts for so little that it moves nobody."""
    return make_update(task_id, f"u-{task_id}", pseudo_rank=1, weight=weight)


HEAVY = make_update("storm", "u-storm", pseudo_rank=1, weight=10.0)


def test_by_default_nobody_is_set_aside():
    """Without bounds every update merges, whatever it does to others."""
    screened = screen([HEAVY, lightly("cats")], HELD, {0: EMPTY}, set(), TIGHT)
    assert screened.set_aside == {}
    assert screened.outcome.report.update_ids == ("u-cats", "u-storm")


def test_who_alone_moves_another_too_far_is_quarantined_and_others_merge():
    """The reason says which task it would move, by how much, and what is allowed."""
    bound = share_moved(HELD, HEAVY) / 2
    assert share_moved(HELD, lightly("cats")) < bound
    config = TIGHT.model_copy(update={"max_influence": bound})
    screened = screen([HEAVY, lightly("cats")], HELD, {0: EMPTY}, set(), config)
    assert screened.outcome.report.update_ids == ("u-cats",)
    (aside,) = screened.set_aside.values()
    assert (aside.task_id, aside.state) == ("storm", UpdateState.QUARANTINED)
    assert f"by {2 * bound:.3g} of its norm, max_influence is {bound:g}" in aside.reason


def test_an_operators_consent_lets_it_in():
    """What was replayed by hand merges, whatever its influence."""
    config = TIGHT.model_copy(update={"max_influence": 1e-6})
    screened = screen([HEAVY], HELD, {0: EMPTY}, {"u-storm"}, config)
    assert screened.outcome.report.update_ids == ("u-storm",)
    refused = screen([HEAVY], HELD, {0: EMPTY}, set(), config)
    assert refused.outcome is None


def test_a_budget_grows_k_before_it_parks():
    """Where memory allows, more factors keep everyone in place, and stay in later merges."""
    config = TIGHT.model_copy(update={"drift_budget": 0.01})
    screened = screen([HEAVY], HELD, {0: EMPTY}, set(), config)
    assert screened.set_aside == {}
    assert screened.outcome.subspace.num_factors > 2
    grown = Snapshot(screened.outcome.subspace, screened.outcome.tasks, {})
    again = screen([replace(lightly("cats"), base_version=0)], grown, {0: EMPTY}, set(), config)
    assert again.outcome.subspace.num_factors >= screened.outcome.subspace.num_factors


def test_without_memory_the_culprit_is_parked_with_the_numbers():
    """Which task it would carry how far, and the budget; the others merge without it."""
    bytes_now = sum(
        basis.vectors.nbytes for layer in HELD.subspace.layers.values() for _, basis in layer
    )
    bound = share_moved(HELD, HEAVY) / 2
    config = TIGHT.model_copy(update={"drift_budget": bound, "max_subspace_bytes": bytes_now})
    screened = screen([HEAVY, lightly("cats")], HELD, {0: EMPTY}, set(), config)
    assert screened.outcome.report.update_ids == ("u-cats",)
    (aside,) = screened.set_aside.values()
    assert (aside.task_id, aside.state) == ("storm", UpdateState.PARKED)
    assert "to a cumulative drift of" in aside.reason
    assert f"drift_budget is {bound:g}" in aside.reason


def test_what_was_moved_before_counts():
    """A task whose budget is used up is not moved any more, not even by a little."""
    bound = share_moved(HELD, HEAVY) * 2
    norms = task_norms(HELD.subspace, HELD.tasks)
    bytes_now = sum(
        basis.vectors.nbytes for layer in HELD.subspace.layers.values() for _, basis in layer
    )
    config = TIGHT.model_copy(update={"drift_budget": bound, "max_subspace_bytes": bytes_now})
    assert screen([HEAVY], HELD, {0: EMPTY}, set(), config).outcome is not None
    entries = {name: TaskEntry(f"u-{name}", bound * norms[name]) for name in HELD.tasks}
    used_up = replace(HELD, entries=entries)
    assert screen([HEAVY], used_up, {0: EMPTY}, set(), config).outcome is None


@pytest.mark.parametrize("staleness", ["transport", "down-weight"])
def test_late_updates_count_as_the_policy_says(staleness):
    """Transported as trained, or with the weight that the turn since leaves of them."""
    base = HELD.subspace
    moved = merge_of([HEAVY], HELD, {0: EMPTY}, TIGHT)
    current = Snapshot(moved.subspace, moved.tasks, {})
    late = make_update("cats", "u-cats", base=base, pseudo_rank=1)
    config = TIGHT.model_copy(update={"staleness": staleness})
    screened = screen([late], current, {1: base}, set(), config)
    (weight,) = {layer.weights.a * _square(late, base, name) for name, layer in screened.outcome.tasks["cats"].layers.items() if name == "encoder.query"}  # fmt: skip
    angle = angle_between(base, current.subspace)
    assert angle > 0.1
    wanted = 1.0 if staleness == "transport" else staleness_factor(1, angle)
    assert weight == pytest.approx(wanted, rel=1e-5)


def _square(update, base, name) -> float:
    """||dW||_F^2 of one layer, formed densely."""
    a, b = (
        base.layers[name][side].leading @ learnt.coefficients
        + learnt.temporary @ learnt.temporary_coefficients
        for side, learnt in update.layers[name]
    )
    return float((b @ a.mT).square().sum())


@pytest.mark.parametrize("drift_budget", [None, 10.0])
def test_credit_is_given_where_the_configuration_says_so(drift_budget):
    """With and without a drift budget a merge is that of the core with credit, once something was cut."""
    truncated = Snapshot(*_two_cut_to_one(), {})
    for gives_credit in (True, False):
        config = SubspaceConfig(
            num_factors=1, oversample=0, drift_budget=drift_budget, gives_credit=gives_credit
        )
        found = screen([lightly("cats", 1.0)], truncated, {0: EMPTY}, set(), config).outcome
        expected = merge(
            truncated.subspace,
            truncated.tasks,
            [lightly("cats", 1.0)],
            1,
            bases={0: EMPTY},
            gives_credit=gives_credit,
        )
        for name, layer in expected.subspace.layers.items():
            for side, basis in layer:
                assert torch.equal(basis.energies, found.subspace.layers[name][side].energies)
    credited, plain = (
        merge(truncated.subspace, truncated.tasks, [lightly("cats", 1.0)], 1, bases={0: EMPTY}, gives_credit=each)
        for each in (True, False)
    )  # fmt: skip
    assert any(
        not torch.equal(basis.energies, plain.subspace.layers[name][side].energies)
        for name, layer in credited.subspace.layers.items()
        for side, basis in layer
    )


def _two_cut_to_one():
    updates = [make_update(name, f"u-{name}", pseudo_rank=1) for name in ("ants", "bees")]
    outcome = merge(EMPTY, {}, updates, 1)
    return outcome.subspace, outcome.tasks
