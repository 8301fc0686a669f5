"""Leases end by silence or by being taken over; the clock is an argument."""

import pytest

from coordinator.leases import Leases
from share_dist.errors import LeaseExpired


def test_the_history_of_the_docstring():
    """A heartbeat renews, a registration takes over, silence ends."""
    leases = Leases(60.0)
    leases.grant("w", 1, 0.0)
    leases.renew("w", 1, 50.0)
    leases.grant("w", 2, 60.0)
    with pytest.raises(LeaseExpired, match="was taken over by epoch 2: register again") as caught:
        leases.require("w", 1, 61.0)
    assert (caught.value.lease_epoch, caught.value.current_epoch) == (1, 2)
    with pytest.raises(LeaseExpired, match="70 s without a heartbeat, 60 s are allowed"):
        leases.require("w", 2, 130.0)


def test_an_unknown_worker_has_no_lease():
    """Nobody pushes without having registered."""
    with pytest.raises(LeaseExpired, match="'x' with epoch 1 is not known here"):
        Leases(60.0).require("x", 1, 0.0)


def test_an_epoch_that_was_never_granted_is_refused():
    """A number above the current one is no lease either."""
    leases = Leases(60.0)
    leases.grant("w", 1, 0.0)
    with pytest.raises(LeaseExpired):
        leases.require("w", 2, 0.0)


def test_a_restart_gives_every_known_worker_time_to_be_heard():
    """Epochs are as before, and each lease begins anew at the restart."""
    leases = Leases(60.0, {"w": 4}, now_seconds=1000.0)
    leases.renew("w", 4, 1059.0)
    assert leases.num_live(1100.0) == 1
    with pytest.raises(LeaseExpired):
        leases.require("w", 3, 1001.0)


def test_grants_that_overtake_each_other_leave_the_newer():
    """Two registrations at once may be noted in any order."""
    leases = Leases(60.0)
    leases.grant("w", 2, 0.0)
    leases.grant("w", 1, 0.0)
    assert leases.require("w", 2, 1.0).lease_epoch == 2


def test_a_pull_or_a_push_says_what_a_worker_trains_on():
    """The version that was named last counts; a heartbeat names none and changes nothing."""
    leases = Leases(60.0)
    leases.grant("w", 1, 0.0, base_version=3)
    leases.renew("w", 1, 1.0, base_version=5)
    leases.renew("w", 1, 2.0)
    assert leases.require("w", 1, 2.0).base_version == 5
    leases.renew("w", 1, 3.0, base_version=4)
    assert leases.require("w", 1, 3.0).base_version == 4


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (["pull 5"], (5, None)),
        (["pull 5", "pull 6"], (6, 5)),
        (["pull 5", "pull 6", "pull 6"], (6, 5)),
        (["pull 5", "pull 6", "pull 7"], (7, 6)),
        (["pull 5", "pull 6", "push 5"], (5, 6)),
        (["pull 5", "push 5", "pull 6"], (6, None)),
        (["pull 5", "pull 6", "push 5", "pull 7"], (7, None)),
    ],
)
def test_a_version_that_was_pulled_stays_known_until_it_was_pushed_on(calls, expected):
    """A worker pulls a version while it still trains on another; those two are what it may push on."""
    leases = Leases(60.0)
    leases.grant("w", 1, 0.0, base_version=3)
    for call in calls:
        kind, version = call.split()
        leases.renew("w", 1, 1.0, base_version=int(version), is_push=kind == "push")
    lease = leases.require("w", 1, 1.0)
    assert (lease.base_version, lease.other_version) == expected


def test_live_workers_are_counted_by_the_clock():
    """A silent worker stays known for a while and is not live."""
    leases = Leases(60.0)
    leases.grant("a", 1, 0.0)
    leases.grant("b", 1, 30.0)
    assert [leases.num_live(now) for now in (0.0, 60.0, 61.0, 91.0)] == [2, 2, 1, 0]
    assert [lease.worker_id for lease in leases.all(91.0)] == ["a", "b"]


def test_workers_that_are_long_gone_are_forgotten():
    """What is kept in memory does not grow with all workers that ever were."""
    leases = Leases(60.0, {"restored": 7})
    leases.grant("a", 1, 0.0)
    leases.grant("b", 1, 30.0)
    assert [lease.worker_id for lease in leases.all(6010.0)] == ["b"]
    leases.grant("c", 1, 6100.0)
    assert [lease.worker_id for lease in leases.all(6100.0)] == ["c"]
