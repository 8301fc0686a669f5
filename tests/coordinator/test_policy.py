"""The policy decides by the clock it is given and says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy import MergePolicy, PendingUpdate, decide, require_fresh
from share_dist.errors import BaseVersionTooOld


def waiting(*updates: tuple[str, str, float]) -> list[PendingUpdate]:
    return [PendingUpdate(*update) for update in updates]


def test_nothing_pending_is_a_decision():
    """With nothing pending there is nothing to do, and no time at which to look again."""
    decision = decide(5.0, [], MergePolicy())
    assert (decision.merge, decision.which, decision.reason) == (False, (), "nothing is pending")
    assert decision.look_again_seconds is None


def test_by_default_all_that_is_pending_is_merged_at_once():
    """The default policy merges everything, sorted by id whatever the order of arrival."""
    decision = decide(9.0, waiting(("u2", "cats", 1.0), ("u1", "dogs", 2.0)), MergePolicy())
    assert decision.which == ("u1", "u2")
    assert decision.reason == "2 updates are in, 1 would do"


def test_of_one_task_the_first_update_goes_first():
    """Two updates of one task never meet in one merge: the later waits for the next."""
    pending = waiting(("u9", "cats", 1.0), ("u1", "cats", 2.0), ("u5", "dogs", 3.0))
    assert decide(4.0, pending, MergePolicy()).which == ("u5", "u9")


def test_waiting_ends_when_the_oldest_has_waited_long_enough():
    """A policy that waits for company says how long, and merges when the time is up."""
    policy = MergePolicy(min_updates=3, max_wait_seconds=10.0)
    pending = waiting(("u1", "cats", 100.0), ("u2", "dogs", 104.0))
    early = decide(106.5, pending, policy)
    assert not early.merge
    assert early.look_again_seconds == 3.5
    assert early.reason == "2 of 3 updates are in: waiting up to 3.5 s more"
    late = decide(110.0, pending, policy)
    assert late.which == ("u1", "u2")
    assert late.reason == "the oldest update has waited 10.0 s"


def test_a_merge_is_never_larger_than_the_policy_allows():
    """What is over the limit waits for the next merge, first come first served."""
    pending = waiting(*((f"u{i}", f"task-{i}", float(i)) for i in range(5)))
    assert decide(9.0, pending, MergePolicy(max_updates=2)).which == ("u0", "u1")


def test_a_limit_below_the_minimum_cannot_stop_merging():
    """A merge is due at the limit even when the policy would rather wait for more."""
    policy = MergePolicy(min_updates=5, max_updates=2, max_wait_seconds=1e9)
    assert decide(0.0, waiting(("a", "x", 0.0), ("b", "y", 0.0)), policy).merge


@given(
    tasks=st.lists(st.sampled_from("abc"), max_size=12),
    policy=st.builds(
        MergePolicy,
        min_updates=st.integers(1, 4),
        max_wait_seconds=st.floats(0, 20),
        max_updates=st.integers(1, 4),
    ),
    now=st.floats(0, 50),
)
def test_every_decision_can_be_carried_out(tasks, policy, now):
    """Whatever is pending, a decision names pending updates of distinct tasks, or when to look again."""
    pending = [PendingUpdate(f"u{i:02}", task, float(i)) for i, task in enumerate(tasks)]
    decision = decide(now, pending, policy)
    task_of = {update.update_id: update.task_id for update in pending}
    chosen = [task_of[update_id] for update_id in decision.which]
    assert len(set(chosen)) == len(chosen) <= policy.max_updates
    assert decision.merge == bool(chosen)
    if pending and not decision.merge:
        assert decision.look_again_seconds > 0


def test_an_update_from_the_future_waits_no_longer_than_others():
    """A clock that was set back cannot make an update wait for more than the policy says."""
    policy = MergePolicy(min_updates=2, max_wait_seconds=10.0)
    decision = decide(100.0, waiting(("u1", "cats", 3700.0)), policy)
    assert decision.look_again_seconds == 10.0


def test_a_refit_is_asked_for_beyond_either_bound():
    """The error says the measure that is beyond its bound, and from which version on it is not."""
    policy = MergePolicy(staleness="refit", max_lag=3, max_angle=0.5)
    require_fresh("update u1", 4, 7, 0.5, policy)
    with pytest.raises(BaseVersionTooOld, match="is 4 versions late, 3 are taken") as too_late:
        require_fresh("update u1", 3, 7, 0.0, policy)
    assert (too_late.value.first_version, too_late.value.current_version) == (4, 7)
    with pytest.raises(BaseVersionTooOld, match=r"turned by 0\.501 radians since, 0\.5 are taken"):
        require_fresh("update u1", 6, 7, 0.501, policy)


@pytest.mark.parametrize("staleness", ["transport", "down-weight"])
def test_whoever_merges_late_updates_asks_for_no_refit(staleness):
    """Bounds count under the policy "refit" only."""
    policy = MergePolicy(staleness=staleness, max_lag=0, max_angle=0.0)
    require_fresh("update u1", 0, 1000, 1.57, policy)
    assert not policy.needs_angle


def test_without_bounds_nothing_is_too_late():
    """A policy that asks for re-fits, and says no bound, takes everything."""
    require_fresh("update u1", 0, 1000, 1.57, MergePolicy(staleness="refit"))
