"""A version that is at hand: pulled once, taken once, never waited for."""

import threading

from share_dist.core.values import Subspace
from share_dist.errors import CoordinatorUnreachable
from tests.coordinator.support import wait_until
from worker.prefetch import Prefetch


class Source:
    """Gives the newest version, when let; counts."""

    def __init__(self):
        self.version = 5
        self.pulls = 0
        self.may_go = threading.Semaphore(0)
        self.error = None

    def pull(self):
        self.may_go.acquire()
        self.pulls += 1
        if self.error:
            raise self.error
        return Subspace({}, version=self.version)


def taken(prefetch, held):
    """Wait until something is at hand, and take it."""
    found = []
    wait_until(lambda: found.append(prefetch.take(held)) or found[-1] is not None)
    return found[-1].version


def test_nothing_is_pulled_until_a_version_is_told():
    """And who asks meanwhile gets nothing, at once."""
    source = Source()
    with Prefetch(source.pull, 4) as prefetch:
        assert prefetch.take(4) is None
        source.may_go.release()
        prefetch.tell(5)
        assert taken(prefetch, 4) == 5
        assert prefetch.take(5) is None
    assert source.pulls == 1


def test_one_waits_and_no_more_are_pulled_meanwhile():
    """Of many versions that came to be, one is pulled before it is taken, and the newest after."""
    source = Source()
    with Prefetch(source.pull, 4) as prefetch:
        prefetch.tell(5)
        source.may_go.release()
        wait_until(lambda: prefetch._ready is not None)
        for source.version in range(6, 20):
            prefetch.tell(source.version)
            source.may_go.release()
        assert source.pulls == 1
        assert taken(prefetch, 4) == 5
        assert taken(prefetch, 5) == 19
        assert source.pulls == 2


def test_what_the_worker_got_otherwise_is_not_given_again():
    """A version that is no newer than what is held is dropped, and the next one is pulled."""
    source = Source()
    with Prefetch(source.pull, 4) as prefetch:
        prefetch.tell(5)
        source.may_go.release()
        wait_until(lambda: prefetch._ready is not None)
        assert prefetch.take(6) is None
        source.version = 7
        prefetch.tell(7)
        source.may_go.release()
        assert taken(prefetch, 6) == 7


def test_a_version_that_cannot_be_pulled_is_left_out():
    """The worker goes on where it is, and the next version is another chance."""
    source = Source()
    source.error = CoordinatorUnreachable("gone", address="a:1")
    with Prefetch(source.pull, 4) as prefetch:
        prefetch.tell(5)
        source.may_go.release()
        wait_until(lambda: source.pulls == 1)
        assert prefetch.take(4) is None
        source.error, source.version = None, 6
        prefetch.tell(6)
        source.may_go.release()
        assert taken(prefetch, 4) == 6
