"""What works beside the loop: the lease that is kept, the versions that are heard of, and what ends a thread."""

import threading

import pytest

from share_dist.client import RetryPolicy
from share_dist.core.values import Subspace
from share_dist.errors import CoordinatorUnreachable, LeaseExpired, NotPermitted, VersionMismatch
from share_dist.wire.records import Lease
from worker.contact import Contact
from worker.crew import Crew
from worker.follower import Follower
from worker.heartbeat import Heartbeat
from worker.progress import WorkerEvent, silent

GONE = CoordinatorUnreachable("nobody answers")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("worker.contact.POLICY", RetryPolicy(0.01, 0.02))


class Scripted:
    """Answers heartbeats from a script, and closes the contact when it is used up."""

    def __init__(self, contact, *answers):
        self.contact = contact
        self.answers = list(answers)
        self.lease_epoch = 0

    def heartbeat(self):
        if not self.answers:
            self.contact.close()
            return self.lease()
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return self.lease()

    def register(self, worker_id, fingerprint):
        self.lease_epoch += 1
        return self.lease()

    def lease(self):
        return Lease("north", self.lease_epoch, 0.03, 7, None)


def beating(*answers, emit=silent):
    contact, versions = Contact(silent), []
    coordinator = Scripted(contact, *answers)
    heartbeat = Heartbeat(contact, coordinator, "north", None, emit, versions.append)
    return heartbeat, coordinator, versions


def test_a_lost_lease_is_taken_anew_once():
    """Leases that end with a good heartbeat in between are each taken anew, and told."""
    told = []
    heartbeat, coordinator, _ = beating(
        LeaseExpired("ended"), None, LeaseExpired("ended"), None,
        emit=lambda event, **fields: told.append((event, fields["lease_epoch"])),
    )  # fmt: skip
    heartbeat.run()
    assert coordinator.lease_epoch == 3
    assert told == [(WorkerEvent.LEASE_RENEWED, 2), (WorkerEvent.LEASE_RENEWED, 3)]


def test_a_coordinator_that_is_away_is_waited_for():
    """Heartbeats that nobody answers end nothing, and each answer tells the newest version."""
    heartbeat, coordinator, versions = beating(GONE, GONE, None)
    heartbeat.run()
    assert coordinator.lease_epoch == 1
    assert versions == [7, 7]


def test_two_workers_of_one_name_are_an_error():
    """A lease that is taken over twice in a row is not fought for."""
    taken = [LeaseExpired(each, lease_epoch=1, current_epoch=2) for each in ("one", "two")]
    heartbeat, coordinator, _ = beating(*taken)
    with pytest.raises(LeaseExpired, match="two"):
        heartbeat.run()
    assert coordinator.lease_epoch == 2


def test_a_machine_may_sleep_as_often_as_it_likes():
    """A lease that ran out is taken anew each time, also with no heartbeat in between, and counts as no fight."""
    slept = [LeaseExpired("ran out", lease_epoch=each, current_epoch=each) for each in (1, 2, 3)]
    taken = LeaseExpired("taken over", lease_epoch=4, current_epoch=5)
    heartbeat, coordinator, _ = beating(*slept, taken, LeaseExpired("not known", lease_epoch=5))
    heartbeat.run()
    assert coordinator.lease_epoch == 6


def test_a_lease_that_another_thread_took_anew_is_not_taken_again():
    """A call that was refused under an older lease than the present one needs no other."""
    heartbeat, coordinator, _ = beating()
    heartbeat.register()
    heartbeat.renew(LeaseExpired("ended", lease_epoch=1))
    heartbeat.renew(LeaseExpired("ended", lease_epoch=1))
    assert coordinator.lease_epoch == 2


def test_what_ends_a_thread_is_raised_in_the_loop():
    """The crew's check raises it as itself; a thread that goes on is not waited for beyond its time."""
    stop = threading.Event()

    def fails():
        raise NotPermitted("not yours")

    crew = Crew(fails=fails, goes_on=stop.wait)
    crew.check()
    crew.start()
    crew.join(0.1)
    with pytest.raises(NotPermitted):
        crew.check()
    stop.set()


class Watches:
    """Watches that end as they are told to, one after another; then the contact is closed."""

    def __init__(self, contact, *ends):
        self.contact = contact
        self.ends = list(ends)
        self.watched_after = []

    def watch(self, after_version=None, *, after_digest=""):
        self.watched_after.append((after_version, after_digest))
        return self

    def __iter__(self):
        if not self.ends:
            self.contact.close()
            return iter(())
        raise self.ends.pop(0)

    def close(self):
        pass


def test_the_follower_outlasts_cuts_and_other_versions():
    """A watch that was cut is gone on with; where versions are other ones it begins at the current, and says so."""
    contact, others = Contact(silent), []
    coordinator = Watches(contact, GONE, VersionMismatch("another 3"), GONE)
    follower = Follower(contact, coordinator, lambda _: None, lambda: others.append(1))
    follower.run(Subspace({}, version=3, digest="d3"))
    assert coordinator.watched_after == [(3, "d3"), (None, "")]
    assert others == [1]


def test_what_is_not_outlasted_ends_the_follower():
    """A token that was revoked is raised."""
    contact = Contact(silent)
    follower = Follower(contact, Watches(contact, NotPermitted("revoked")), print, print)
    with pytest.raises(NotPermitted):
        follower.run(Subspace({}, version=3))
