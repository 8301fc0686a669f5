import threading

import pytest

from share_dist.errors import CoordinatorUnreachable, LeaseExpired, VersionCompacted
from share_dist.wire.records import Lease
from worker.follower import Follower
from worker.heartbeat import Heartbeat

LEASE = Lease("north", 1, 0.03, 0, None)


class Scripted:
    """Answers heartbeats from a script, and says when it is used up."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.registered = 0
        self.done = threading.Event()

    def heartbeat(self):
        if not self.answers:
            self.done.set()
            return LEASE
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return LEASE

    def register(self):
        self.registered += 1
        return LEASE


def run(coordinator):
    heartbeat = Heartbeat(coordinator, LEASE)
    with heartbeat:
        coordinator.done.wait(timeout=20)
    return heartbeat


def test_a_lost_lease_is_taken_anew_once():
    """Leases that end with a good heartbeat in between are each taken anew."""
    coordinator = Scripted(LeaseExpired("ended"), None, LeaseExpired("ended"), None)
    run(coordinator).check()
    assert coordinator.registered == 2


def test_transport_errors_are_waited_out():
    """A coordinator that does not answer for a while does not end the heartbeat."""
    gone = CoordinatorUnreachable("nobody answers")
    coordinator = Scripted(gone, gone, None)
    run(coordinator).check()
    assert coordinator.done.is_set()


def test_two_workers_of_one_name_are_an_error():
    """A lease that ends twice in a row is not fought for: the check raises."""
    coordinator = Scripted(LeaseExpired("one"), LeaseExpired("two"))
    heartbeat = Heartbeat(coordinator, LEASE)
    heartbeat.beat()
    with pytest.raises(LeaseExpired, match="two"):
        heartbeat.beat()
    assert coordinator.registered == 1


def test_the_heartbeat_thread_hands_its_error_over():
    """What ended the thread is raised by check, in the thread that trains."""
    coordinator = Scripted(LeaseExpired("one"), LeaseExpired("two"))
    heartbeat = Heartbeat(coordinator, LEASE)
    with heartbeat:
        heartbeat._thread.join(timeout=20)
    with pytest.raises(LeaseExpired, match="two"):
        heartbeat.check()


class WatchesFail:
    """Watches that raise what they are told to, one after another."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.watched_after = []

    def watch(self, after_version):
        self.watched_after.append(after_version)
        return self

    def __iter__(self):
        raise self.errors.pop(0)

    def close(self):
        pass


def test_the_follower_watches_again_after_a_cut():
    """A watch that lost its coordinator is opened again; what cannot be waited out is raised."""
    coordinator = WatchesFail(
        CoordinatorUnreachable("gone"), VersionCompacted("no longer kept", current_version=9)
    )
    with Follower(coordinator, after_version=3) as follower:
        follower._thread.join(timeout=20)
        with pytest.raises(VersionCompacted):
            follower.wait_for("u1", seconds=20)
    assert coordinator.watched_after == [3, 3]
