"""Every watcher sees every version once, in order, however slow it is."""

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.broadcast import Broadcast, Watcher, WatcherState
from share_dist.errors import Overloaded
from share_dist.wire.records import VersionEvent
from tests.coordinator.support import NOW


def event(version: int) -> VersionEvent:
    return VersionEvent(version, NOW, (), (), 1.0, 1.0, 0.0, 1, 10)


class Versions:
    """A history that a test adds to, with a broadcast over it."""

    def __init__(self, current: int = 0, batch: int = 2, **options):
        self.events = [event(version) for version in range(1, current + 1)]
        self.batch = batch
        self.reads = 0
        self.broadcast = Broadcast(current, self._read, **options)

    async def _read(self, after_version: int):
        self.reads += 1
        await asyncio.sleep(0)
        return tuple(self.events[after_version:][: self.batch])

    def commit(self):
        self.events.append(event(len(self.events) + 1))

    def publish(self):
        return self.broadcast.publish(self.events[self.broadcast.current_version])

    def make(self):
        self.commit()
        return self.publish()


async def take(stream, count):
    return [(await anext(stream)).version for _ in range(count)]


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_watcher_reads_history_then_follows():
    """What was before comes from the store in batches, what is new from the queue."""

    async def story():
        versions = Versions(current=5)
        stream = versions.broadcast.watch(1)
        assert await take(stream, 4) == [2, 3, 4, 5]
        waiting = asyncio.ensure_future(anext(stream))
        await settle()
        reads = versions.reads
        versions.make()
        assert (await waiting).version == 6
        assert versions.reads == reads, "a synced watcher does not read the store"
        await stream.aclose()

    asyncio.run(story())


def test_the_history_of_the_docstring():
    """A watcher that is busy too long becomes slow, catches up, and has missed nothing."""

    async def story():
        versions = Versions(current=3, queue_size=2)
        stream = versions.broadcast.watch(1)
        assert await take(stream, 2) == [2, 3]
        waiting = asyncio.ensure_future(anext(stream))
        await settle()
        versions.make()
        assert (await waiting).version == 4
        assert versions.make() == ()
        assert versions.make() == ()
        (slow,) = versions.make()
        assert (slow.state, slow.held_version) == (WatcherState.SLOW, 4)
        assert await take(stream, 3) == [5, 6, 7]
        assert slow.state is WatcherState.CATCHING_UP
        await stream.aclose()

    asyncio.run(story())


def test_a_full_queue_is_dropped():
    """A slow watcher holds no events at all."""
    watcher = Watcher(0, queue_size=1)
    watcher.state = WatcherState.SYNCED
    for version in (1, 2, 3):
        watcher.offer(event(version))
    assert watcher.state is WatcherState.SLOW
    assert watcher.take() is None


def test_nobody_hears_of_a_version_before_it_is_published():
    """What the store already knows is told only once it is published, and then once."""

    async def story():
        versions = Versions(current=1)
        stream = versions.broadcast.watch(0)
        versions.commit()
        assert await take(stream, 1) == [1]
        waiting = asyncio.ensure_future(anext(stream))
        await settle()
        assert not waiting.done()
        versions.publish()
        assert (await waiting).version == 2
        versions.make()
        assert await take(stream, 1) == [3]
        await stream.aclose()

    asyncio.run(story())


def test_closing_ends_every_watch_after_what_was_published():
    """A watcher that was caught up ends at once, one that was behind hears the rest first."""

    async def story():
        versions = Versions(current=4)
        behind = versions.broadcast.watch(0)
        assert await take(behind, 1) == [1]
        synced = versions.broadcast.watch(4)
        waiting = asyncio.ensure_future(anext(synced, None))
        await settle()
        versions.broadcast.close()
        assert await waiting is None
        assert [e.version async for e in behind] == [2, 3, 4]
        assert versions.broadcast.num_watchers == 0

    asyncio.run(story())


def test_a_watcher_that_leaves_is_forgotten():
    """A subscription that is closed or cancelled costs nothing any more."""

    async def story():
        versions = Versions()
        stream = versions.broadcast.watch(0)
        waiting = asyncio.ensure_future(anext(stream))
        await settle()
        assert versions.broadcast.num_watchers == 1
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert versions.broadcast.num_watchers == 0

    asyncio.run(story())


def test_too_many_watchers_are_refused():
    """The one above the limit is told to try again, the others go on."""

    async def story():
        versions = Versions(current=1, max_watchers=1)
        first = versions.broadcast.watch(0)
        assert await take(first, 1) == [1]
        with pytest.raises(Overloaded, match="1 watchers are as many") as caught:
            await anext(versions.broadcast.watch(0))
        assert caught.value.retry_after_seconds > 0
        await first.aclose()

    asyncio.run(story())


def test_one_peer_leaves_room_for_others():
    """A peer with as many watches as it may have is refused one more; another one is not."""

    async def story():
        versions = Versions(current=1, max_watchers_per_peer=1)
        first = versions.broadcast.watch(0, "north")
        assert await take(first, 1) == [1]
        with pytest.raises(Overloaded, match="as many as north here may have"):
            await anext(versions.broadcast.watch(0, "north"))
        other = versions.broadcast.watch(0, "south")
        assert await take(other, 1) == [1]
        await first.aclose()
        again = versions.broadcast.watch(0, "north")
        assert await take(again, 1) == [1]
        await again.aclose()
        await other.aclose()

    asyncio.run(story())


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.sampled_from(["make", "read", "settle"]), max_size=40),
    queue_size=st.integers(1, 3),
    after=st.integers(0, 3),
)
def test_nothing_is_missed_and_nothing_is_told_twice(steps, queue_size, after):
    """In any order of publishing and reading a watcher sees every version once, in order."""

    async def story():
        versions = Versions(current=3, queue_size=queue_size)
        seen = []
        may_read = asyncio.Semaphore(0)

        async def watch():
            async for found in versions.broadcast.watch(after):
                seen.append(found.version)
                await may_read.acquire()

        watching = asyncio.ensure_future(watch())
        for step in steps:
            if step == "make":
                versions.make()
            elif step == "read":
                may_read.release()
            else:
                await settle()
        for _ in range(100):
            may_read.release()
        versions.broadcast.close()
        await watching
        assert seen == list(range(after + 1, len(versions.events) + 1))

    asyncio.run(story())
