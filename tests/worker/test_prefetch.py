"""A version that is at hand: pulled when it is due, taken when it suits, never waited for."""

import threading
from contextlib import contextmanager

import pytest

from share_dist.client import RetryPolicy
from share_dist.core.values import Subspace
from share_dist.errors import CoordinatorUnreachable, UnknownTask
from tests.coordinator.support import wait_until
from worker.contact import Contact
from worker.prefetch import Edition, Prefetch
from worker.progress import silent


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("worker.contact.POLICY", RetryPolicy(0.01, 0.02))


class Source:
    """Gives the newest version, when let; counts."""

    def __init__(self):
        self.version = 5
        self.pulls = 0
        self.may_go = threading.Semaphore(0)
        self.is_asked = threading.Event()
        self.errors = []

    def pull(self):
        self.is_asked.set()
        self.may_go.acquire()
        if self.errors:
            raise self.errors.pop(0)
        self.pulls += 1
        return Edition(Subspace({}, version=self.version))


@contextmanager
def prefetching(source, held=4):
    contact = Contact(silent)
    prefetch = Prefetch(contact, source.pull)
    prefetch.begin(Edition(Subspace({}, version=held)))
    thread = threading.Thread(target=prefetch.run)
    thread.start()
    yield prefetch
    contact.close()
    prefetch.close()
    source.may_go.release()
    thread.join()


def version_of(prefetch):
    return prefetch._edition.subspace.version


def test_nothing_is_pulled_until_a_version_is_told():
    """And who asks meanwhile gets what the worker began with, at once."""
    source = Source()
    with prefetching(source) as prefetch:
        prefetch.tell(4)
        assert prefetch.take().subspace.version == 4
        assert source.pulls == 0
        source.may_go.release()
        prefetch.tell(5)
        wait_until(lambda: version_of(prefetch) == 5)
        assert prefetch.take() is prefetch.take()
        prefetch.tell(5)
        assert source.pulls == 1
        assert prefetch.told_version == 5


def test_one_waits_and_no_more_are_pulled_meanwhile():
    """Of many versions that came to be, one is pulled before it is taken, and the newest after."""
    source = Source()
    with prefetching(source) as prefetch:
        prefetch.tell(5)
        source.may_go.release()
        wait_until(lambda: version_of(prefetch) == 5)
        for source.version in range(6, 20):
            prefetch.tell(source.version)
            source.may_go.release()
        assert source.pulls == 1
        assert prefetch.take().subspace.version == 5
        wait_until(lambda: version_of(prefetch) == 19)
        assert source.pulls == 2


def test_another_version_under_the_same_number_is_pulled_when_asked_for():
    """After a restore a number says nothing: who asks gets what is there now, also under a lower number."""
    source = Source()
    with prefetching(source, held=7) as prefetch:
        source.version = 6
        source.may_go.release()
        assert prefetch.fetch(lambda: None).subspace.version == 6


def test_what_cannot_be_pulled_now_is_pulled_later():
    """A coordinator that is away, or a task that is removed meanwhile, makes another try and no error."""
    source = Source()
    source.errors = [CoordinatorUnreachable("gone"), UnknownTask("removed")]
    with prefetching(source) as prefetch:
        source.may_go.release(3)
        assert prefetch.fetch(lambda: None).subspace.version == 5


def test_a_wait_can_be_ended():
    """What ``check`` raises ends the wait for the newest version."""
    with prefetching(Source()) as prefetch, pytest.raises(KeyError):
        prefetch.fetch(lambda: {}["stopped"])


def test_a_wish_in_the_middle_of_a_pull_is_another_pull():
    """Who asks while an older wish is being answered gets what was pulled after asking."""
    source = Source()
    with prefetching(source) as prefetch:
        prefetch.tell(5)
        assert source.is_asked.wait(20)
        wishing = threading.Thread(target=prefetch.fetch, args=(lambda: None,))
        wishing.start()
        wait_until(lambda: prefetch._wished == 2)
        source.version = 6
        source.may_go.release(2)
        wishing.join(20)
        assert not wishing.is_alive()
        assert source.pulls == 2
