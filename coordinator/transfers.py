"""
Bytes on their way: how many payloads may be in flight, for each peer and in all.

Memory is promised before it is taken: a transfer reserves its bytes when its header
announces them, and who finds no room is sent away with a delay. What many read at once is
one payload in memory, and counts once in all, but for each reader by itself.

::

    at most 10 in all, 6 for each peer
    a pushes 4                          4 in all
    b pushes 4                          8 in all
    a pushes 3                          refused: a would have 7
    c pulls version 9 (2 bytes)        10 in all
    d pulls version 9                  10 in all: the same 2 bytes
    e pushes 1                          refused: 11 in all
"""

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TypeVar

from share_dist.errors import Overloaded

_KeyT = TypeVar("_KeyT", bound=Hashable)

RETRY_SECONDS = 1.0
"""When who found no room may come again."""


class ByteBudget:
    """
    Counts payload bytes in flight, and refuses those beyond its bounds.

    A payload that is alone passes whatever its size: a bound that is smaller than
    one payload would otherwise refuse it for ever. It is used from one event loop.

    Args:
        max_bytes: In all, at most.
        max_bytes_per_peer: For one peer, at most.
    """

    def __init__(self, max_bytes: int, max_bytes_per_peer: int) -> None:
        self._max_bytes = max_bytes
        self._max_bytes_per_peer = max_bytes_per_peer
        self._of_peer: Counter[str] = Counter()
        self._readers: Counter[Hashable] = Counter()
        self.bytes_in_flight = 0
        self.num_refused = 0

    @contextlib.contextmanager
    def reserve(self, peer: str, num_bytes: int, payload: Hashable | None = None) -> Iterator[None]:
        """
        Have room for a payload while this is entered.

        Args:
            peer: On whose behalf.
            num_bytes: Its length.
            payload: Names what others may read at the same time; None for what is one's own.

        Raises:
            Overloaded: There is no room now; says when to come again.
        """
        is_shared = payload is not None and self._readers[payload] > 0
        added = 0 if is_shared else num_bytes
        self._require_room(f"{peer} has", self._of_peer[peer], num_bytes, self._max_bytes_per_peer)
        self._require_room("there are", self.bytes_in_flight, added, self._max_bytes)
        self._count(peer, num_bytes, payload, 1)
        try:
            yield
        finally:
            self._count(peer, num_bytes, payload, -1)

    def _count(self, peer: str, num_bytes: int, payload: Hashable | None, sign: int) -> None:
        _add(self._of_peer, peer, sign * num_bytes)
        if payload is None:
            self.bytes_in_flight += sign * num_bytes
            return
        before = self._readers[payload]
        _add(self._readers, payload, sign)
        if not before or not self._readers[payload]:
            self.bytes_in_flight += sign * num_bytes

    def _require_room(self, whose: str, held: int, num_bytes: int, most: int) -> None:
        if not held or held + num_bytes <= most:
            return
        self.num_refused += 1
        raise Overloaded(
            f"{whose} {held} bytes of payloads in flight, at most {most} are taken, and this one "
            f"has {num_bytes}: try again in {RETRY_SECONDS:g} s",
            retry_after_seconds=RETRY_SECONDS,
        )


def _add(counter: "Counter[_KeyT]", key: _KeyT, amount: int) -> None:
    counter[key] += amount
    if not counter[key]:
        del counter[key]
