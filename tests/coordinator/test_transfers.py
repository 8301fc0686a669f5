"""Bytes in flight never pass their bounds, and what many read at once counts once."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.transfers import ByteBudget
from share_dist.errors import Overloaded


def test_the_story_of_the_module():
    """Each peer has its bound, all have one together, and readers of one payload share it."""
    budget = ByteBudget(10, 6)
    with contextlib.ExitStack() as held:
        held.enter_context(budget.reserve("a", 4))
        held.enter_context(budget.reserve("b", 4))
        with pytest.raises(Overloaded, match=r"a has 4 bytes .* at most 6"), budget.reserve("a", 3):
            pass
        held.enter_context(budget.reserve("c", 2, "version 9"))
        held.enter_context(budget.reserve("d", 2, "version 9"))
        assert budget.bytes_in_flight == 10
        with (
            pytest.raises(Overloaded, match="there are 10 bytes") as caught,
            budget.reserve("e", 1),
        ):
            pass
        assert caught.value.retry_after_seconds > 0
    assert budget.bytes_in_flight == 0
    assert budget.num_refused == 2


def test_a_payload_that_is_alone_passes():
    """A bound below the size of one payload does not refuse it for ever."""
    budget = ByteBudget(10, 6)
    with budget.reserve("a", 100), pytest.raises(Overloaded), budget.reserve("b", 1):
        pass


def test_room_comes_back_when_a_transfer_fails():
    """What raises lets go of its bytes."""
    budget = ByteBudget(10, 10)
    with pytest.raises(RuntimeError), budget.reserve("a", 9):
        raise RuntimeError
    with budget.reserve("a", 10):
        assert budget.bytes_in_flight == 10


transfers = st.tuples(
    st.sampled_from("abc"), st.integers(0, 8), st.none() | st.sampled_from(["v1", "v2"])
)


@given(st.lists(st.tuples(st.booleans(), transfers), max_size=40))
def test_the_account_is_that_of_what_is_open(steps):
    """After any openings and closings the bytes in flight are those of the open transfers."""
    sizes = {"v1": 5, "v2": 7}
    budget, open_now = ByteBudget(20, 12), []
    for closes, (peer, num_bytes, payload) in steps:
        if closes and open_now:
            open_now.pop(0)[0].close()
        else:
            size = sizes.get(payload, num_bytes)
            stack = contextlib.ExitStack()
            with contextlib.suppress(Overloaded):
                stack.enter_context(budget.reserve(peer, size, payload))
                open_now.append((stack, peer, size, payload))
        own = sum(size for _, _, size, payload in open_now if payload is None)
        shared = sum(sizes[name] for name in {payload for *_, payload in open_now} - {None})
        assert budget.bytes_in_flight == own + shared <= 20
        for name in "abc":
            assert sum(size for _, peer, size, _ in open_now if peer == name) <= 12
