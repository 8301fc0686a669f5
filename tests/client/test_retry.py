"""Calls that are tried again until one deadline."""

import threading

import pytest

from share_dist.client.retry import RetryPolicy, call_with_retries
from share_dist.errors import CoordinatorUnreachable, Overloaded, UnknownTask

QUICK = RetryPolicy(first_wait_seconds=0.001, longest_wait_seconds=0.002)


class Script:
    """Raises what it is told to, then returns how often it was called."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.remaining: list[float] = []

    def __call__(self, seconds: float) -> int:
        self.remaining.append(seconds)
        if self._failures:
            raise self._failures.pop(0)
        return len(self.remaining)


def run(script: Script, timeout_seconds: float = 60.0, policy: RetryPolicy = QUICK, **options):
    return call_with_retries(
        script, address="host:1", timeout_seconds=timeout_seconds, policy=policy, **options
    )


def test_what_may_pass_is_tried_again():
    """An absent and an overloaded coordinator are asked again."""
    assert run(Script(CoordinatorUnreachable("gone"), Overloaded("busy"))) == 3


def test_what_will_not_pass_is_raised_at_once():
    """An answer is an answer."""
    script = Script(UnknownTask("no such task"))

    with pytest.raises(UnknownTask):
        run(script)
    assert len(script.remaining) == 1


def test_all_attempts_share_one_deadline():
    """Every attempt is given what remains, which only shrinks."""
    script = Script(*[CoordinatorUnreachable("gone")] * 3)
    run(script, timeout_seconds=50.0)

    assert script.remaining[0] <= 50.0
    assert script.remaining == sorted(script.remaining, reverse=True)


def test_no_wait_goes_past_the_deadline():
    """When the next wait would pass the deadline, the last error is raised instead."""
    script = Script(*[CoordinatorUnreachable("gone")] * 3)

    with pytest.raises(CoordinatorUnreachable):
        run(script, timeout_seconds=5.0, policy=RetryPolicy(1000.0, 1000.0))
    assert len(script.remaining) == 1


def test_an_overloaded_coordinator_is_given_the_time_it_asks_for():
    """A delay that does not fit before the deadline ends the attempts."""
    script = Script(Overloaded("busy", retry_after_seconds=1000.0))

    with pytest.raises(Overloaded):
        run(script)
    assert QUICK.wait_seconds(0, Overloaded("busy", retry_after_seconds=3.0)) == 3.0


def test_waits_grow_are_jittered_and_bounded():
    """The bound doubles up to the longest wait; at least half of it is waited."""
    policy = RetryPolicy(first_wait_seconds=1.0, longest_wait_seconds=5.0)
    for attempt, bound in enumerate([1.0, 2.0, 4.0, 5.0, 5.0]):
        waits = {policy.wait_seconds(attempt) for _ in range(50)}
        assert all(bound / 2 <= wait <= bound for wait in waits)
        assert len(waits) > 1
    assert policy.wait_seconds(10_000) <= 5.0


def test_cancelling_ends_the_waiting():
    """Once the event is set there is no further attempt."""
    cancelled = threading.Event()
    cancelled.set()

    with pytest.raises(CoordinatorUnreachable):
        run(Script(CoordinatorUnreachable("gone")), cancelled=cancelled)
