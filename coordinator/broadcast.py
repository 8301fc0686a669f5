"""
Watchers from a version: each is told of every version after the one it holds, once and in order.

A watcher is in one of three states. *Catching up*, it reads the history from the
store; once it has seen all, it is *synced* and new events are put into its short
queue. If the queue is full it is *slow*: the queue is dropped and it catches up
from the store again. So a watcher costs a bounded amount of memory however slow
it is, and misses nothing, because the store forgets nothing.

::

    history 1 2 3, queues of 2            w watches after 1
    w reads 2 3                           w catching up, holds 3, queue -
    w reads nothing more                  w synced,      holds 3, queue -
    publish 4, publish 5 (w is busy)      w synced,      holds 3, queue 4 5
    publish 6                             w slow,        holds 3, queue -
    w reads 4 5 6                         w catching up, holds 6, queue -
    w reads nothing more                  w synced,      holds 6, queue -
"""

import asyncio
import enum
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias

from share_dist.errors import Overloaded
from share_dist.wire.records import VersionEvent

History: TypeAlias = Callable[[int], Awaitable[Sequence[VersionEvent]]]
"""Reads the next few events after a version, oldest first; none when there are no more."""


class WatcherState(enum.Enum):
    """How far a watcher is behind."""

    SYNCED = "synced"
    CATCHING_UP = "catching up"
    SLOW = "slow"


class Watcher:
    """One subscription; made by ``Broadcast.watch``."""

    def __init__(self, after_version: int, queue_size: int) -> None:
        self.held_version = after_version
        self.state = WatcherState.CATCHING_UP
        self._queue: deque[VersionEvent] = deque()
        self._queue_size = queue_size
        self._wake = asyncio.Event()

    def offer(self, event: VersionEvent) -> None:
        """Take an event without waiting; a full queue makes the watcher slow."""
        if self.state is WatcherState.SYNCED:
            if len(self._queue) < self._queue_size:
                self._queue.append(event)
            else:
                self._queue.clear()
                self.state = WatcherState.SLOW
        self.wake()

    def wake(self) -> None:
        """Let the watcher look again."""
        self._wake.set()

    def take(self) -> VersionEvent | None:
        """Return the next queued event, if there is one."""
        return self._queue.popleft() if self._queue else None

    async def wait(self) -> None:
        """Wait until there may be something new."""
        await self._wake.wait()
        self._wake.clear()


class Broadcast:
    """
    All watchers of one coordinator.

    Args:
        current_version: The newest version.
        history: Reads past events from the store.
        queue_size: Events that a synced watcher may be behind.
        max_watchers: More are refused.
        max_watchers_per_peer: More of one peer are refused.
    """

    def __init__(
        self,
        current_version: int,
        history: History,
        queue_size: int = 16,
        max_watchers: int = 1000,
        max_watchers_per_peer: int = 1000,
    ) -> None:
        self.current_version = current_version
        self._history = history
        self._queue_size = queue_size
        self._max_watchers = max_watchers
        self._max_watchers_per_peer = max_watchers_per_peer
        self._of_peer: Counter[str] = Counter()
        self._watchers: set[Watcher] = set()
        self._is_closed = False

    @property
    def num_watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    @property
    def held_versions(self) -> tuple[int, ...]:
        """What each watcher has seen; may be asked from any thread."""
        return tuple(watcher.held_version for watcher in tuple(self._watchers))

    def num_in(self, state: WatcherState) -> int:
        """How many watchers are in a state; may be asked from any thread."""
        return sum(watcher.state is state for watcher in tuple(self._watchers))

    def publish(self, event: VersionEvent) -> tuple[Watcher, ...]:
        """
        Tell every watcher of a version that is in the store.

        Returns:
            The watchers that this event made slow.
        """
        self.current_version = event.version
        synced = [w for w in self._watchers if w.state is WatcherState.SYNCED]
        for watcher in self._watchers:
            watcher.offer(event)
        return tuple(w for w in synced if w.state is WatcherState.SLOW)

    def close(self) -> None:
        """End every subscription once it has handed over what it holds."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.wake()

    async def watch(self, after_version: int, peer: str = "") -> AsyncIterator[VersionEvent]:
        """
        Yield every event after a version, for ever, until the broadcast is closed.

        Args:
            after_version: What the watcher holds.
            peer: On whose behalf it watches.

        Raises:
            Overloaded: There are too many watchers, or too many of this peer.
        """
        _require_room("this coordinator", len(self._watchers), self._max_watchers)
        _require_room(f"{peer} here", self._of_peer[peer], self._max_watchers_per_peer)
        watcher = Watcher(after_version, self._queue_size)
        self._watchers.add(watcher)
        self._of_peer[peer] += 1
        try:
            while True:
                for event in await self._next_events(watcher):
                    watcher.held_version = event.version
                    yield event
                if self._is_closed and watcher.held_version >= self.current_version:
                    return
        finally:
            self._watchers.discard(watcher)
            self._of_peer -= Counter([peer])

    async def _next_events(self, watcher: Watcher) -> Sequence[VersionEvent]:
        if watcher.state is WatcherState.SYNCED:
            event = watcher.take()
            if event is not None:
                return (event,)
            if not self._is_closed:
                await watcher.wait()
            return ()
        watcher.state = WatcherState.CATCHING_UP
        history = await self._history(watcher.held_version)
        # the store knows a version a moment before it is published: nobody hears of it earlier
        events = [event for event in history if event.version <= self.current_version]
        # a version may have come while the history was read: then this watcher is not synced yet
        if not events and watcher.held_version >= self.current_version:
            watcher.state = WatcherState.SYNCED
        return events


def _require_room(whose: str, num_watchers: int, limit: int) -> None:
    if num_watchers >= limit:
        raise Overloaded(
            f"{num_watchers} watchers are as many as {whose} may have: end one, or try again later",
            retry_after_seconds=10.0,
        )
