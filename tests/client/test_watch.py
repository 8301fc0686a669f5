"""The versions of a subspace as they come to be, through cuts and restarts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import grpc
import pytest

from share_dist.client import ShareClient
from share_dist.errors import (
    CoordinatorUnreachable,
    MalformedMessage,
    Overloaded,
    UnexpectedStatus,
    VersionCompacted,
)
from tests.client.conftest import QUICK
from tests.fakes import Fail, event_of


def versions(watch, count: int) -> list[int]:
    return [event.version for event in islice(watch, count)]


def test_versions_come_in_order(client, coordinator):
    """A watch from a version tells every later one, and then waits."""
    coordinator.tell(*map(event_of, (1, 2, 3)))

    with client.watch(after_version=1) as watch:
        assert next(watch) == event_of(2)
        assert next(watch) == event_of(3)
        threading.Timer(0.1, coordinator.tell, [event_of(4)]).start()
        assert next(watch) == event_of(4)


def test_a_watch_begins_where_it_was_made(client, coordinator):
    """Without a version it tells what comes after the call, even before it is iterated."""
    with client.watch() as watch:
        coordinator.tell(event_of(3), event_of(4))

        assert versions(watch, 2) == [3, 4]


def test_a_cut_loses_and_repeats_nothing(client, coordinator):
    """What came to be during a cut is told after it, once."""
    coordinator.tell(event_of(1))
    with client.watch(after_version=0) as watch:
        assert versions(watch, 1) == [1]
        coordinator.fail_next("WatchVersions", Fail(grpc.StatusCode.UNAVAILABLE))
        coordinator.cut_watchers()
        coordinator.tell(event_of(2), event_of(3))

        assert versions(watch, 2) == [2, 3]
    assert coordinator.calls["WatchVersions"] >= 2


def test_a_restart_is_survived(server, client, coordinator):
    """A coordinator that was down and is up again at its address goes on telling."""
    coordinator.tell(event_of(1))
    with client.watch(after_version=0) as watch:
        assert versions(watch, 1) == [1]
        server.stop()
        coordinator.tell(event_of(2))
        threading.Timer(0.3, server.start).start()

        assert versions(watch, 1) == [2]


def test_a_coordinator_that_stays_away_is_told_when_patience_ends(server, client, coordinator):
    """The error comes, and the place to go on from is known."""
    coordinator.tell(event_of(1))
    watch = client.watch(after_version=0, patience_seconds=2.0)
    assert versions(watch, 1) == [1]
    server.stop()

    with pytest.raises(CoordinatorUnreachable):
        next(watch)
    assert watch.seen_version == 1


def test_an_overloaded_coordinator_is_watched_again(client, coordinator):
    """Being sent away for a while does not end a watch."""
    coordinator.tell(event_of(1))
    coordinator.fail_next("WatchVersions", Fail(Overloaded("busy", retry_after_seconds=0.01)))

    assert versions(client.watch(after_version=0), 1) == [1]


def test_a_coordinator_without_room_is_told_when_patience_ends(client, coordinator):
    """A watch that is turned away for good does not stay silent, though every probe succeeds."""
    busy = Fail(Overloaded("1000 watchers are enough", retry_after_seconds=0.3))
    coordinator.fail_next("WatchVersions", *[busy] * 100)
    watch = client.watch(after_version=2, patience_seconds=1.0)

    with pytest.raises(
        Overloaded, match=r"turned this watch away .* version 2.* 1000 watchers"
    ) as caught:
        next(watch)
    assert 2 <= coordinator.calls["WatchVersions"] <= 4
    assert caught.value.retry_after_seconds == 0.3


def test_patience_counts_from_the_last_open_stream(client, coordinator):
    """Being turned away before and after a stream was open is not counted together."""
    busy = Fail(Overloaded("busy", retry_after_seconds=0.6))
    coordinator.tell(event_of(1))
    coordinator.fail_next("WatchVersions", busy)
    with client.watch(after_version=0, patience_seconds=1.0) as watch:
        assert versions(watch, 1) == [1]
        coordinator.fail_next("WatchVersions", busy)
        coordinator.cut_watchers()
        coordinator.tell(event_of(2))

        assert versions(watch, 1) == [2]
    assert coordinator.calls["WatchVersions"] == 4


def test_a_version_that_is_no_longer_kept_ends_the_watch(client, coordinator):
    """A watcher that was away too long is told so."""
    coordinator.tell(event_of(5))

    with pytest.raises(VersionCompacted) as caught:
        next(client.watch(after_version=2))
    assert caught.value.first_version == 5


def test_an_unknown_failure_ends_the_watch(client, coordinator):
    """What no waiting cures is raised."""
    coordinator.fail_next("WatchVersions", Fail(grpc.StatusCode.INTERNAL))

    with pytest.raises(UnexpectedStatus, match="INTERNAL"):
        next(client.watch(after_version=0))


def test_a_version_that_is_left_out_is_noticed(client, coordinator):
    """A coordinator that skips a version is not believed."""
    coordinator.tell(event_of(1), event_of(3))
    watch = client.watch(after_version=0)
    assert versions(watch, 1) == [1]

    with pytest.raises(MalformedMessage, match="version 3 was told after version 1"):
        next(watch)


@pytest.mark.parametrize("whom", ["watch", "client"])
def test_closing_ends_a_waiting_watch(client, coordinator, whom):
    """Closing the watch, or its client, ends an iteration that waits in another thread."""
    watch = client.watch(after_version=2)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(list, watch)
        while coordinator.calls["WatchVersions"] == 0:
            time.sleep(0.01)
        (watch if whom == "watch" else client).close()

        assert told.result(timeout=60) == []
    assert list(watch) == []


def test_closing_ends_a_watch_that_looks_for_its_coordinator(server):
    """A watch that waits for a coordinator to come back ends as well, without an error."""
    with (
        ShareClient(server.address, timeout_seconds=600, retry=QUICK) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        watch = client.watch(after_version=2)
        told = pool.submit(list, watch)
        while server.servicer.calls["WatchVersions"] == 0:
            time.sleep(0.01)
        server.stop()
        watch.close()

        assert told.result(timeout=60) == []
