"""Memory for what is about to arrive."""

import mmap
import weakref
from collections import deque

import numpy as np

_LEAST_MAPPED_BYTES = 2**20
"""Below it memory from the heap is as fast."""

_spare: deque[mmap.mmap] = deque(maxlen=1)
_largest_spare_bytes = 0


def keep_a_spare(largest_bytes: int = 2**27) -> None:
    """
    Keep the last large buffer that was let go, for the next of about its length; by default none is kept.

    For a process that receives one large payload after another: a page that was used before costs
    nothing, and a fresh one more than writing it. ``drop_spare`` gives it back.

    Args:
        largest_bytes: One that is longer goes back to the system at once.
    """
    global _largest_spare_bytes  # noqa: PLW0603  a choice of the process, as those of its C library are
    _largest_spare_bytes = largest_bytes
    drop_spare()


def drop_spare() -> None:
    """Give back the buffer that nobody uses, if one is kept."""
    _spare.clear()


def room_for(num_bytes: int) -> memoryview:
    """
    Reserve memory that is given back as soon as nobody looks at it; what is in it before it is written to is not said.

    A large buffer is a mapping of its own in pages as large as the system gives: taking a fresh
    page costs more than writing it, and what came from the heap might stay there.

    Examples:
        >>> len(room_for(3)), room_for(3).readonly
        (3, False)
    """
    if num_bytes < _LEAST_MAPPED_BYTES:
        return memoryview(bytearray(num_bytes))
    mapped = _spare_for(num_bytes) or _mapped(num_bytes)
    room = np.frombuffer(mapped, np.uint8, num_bytes)
    # whoever looks at it, through whatever views, holds this array
    weakref.finalize(room, _let_go, mapped).atexit = False
    return room.data


def _mapped(num_bytes: int) -> mmap.mmap:
    mapped = mmap.mmap(-1, num_bytes, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def _spare_for(num_bytes: int) -> mmap.mmap | None:
    try:
        mapped = _spare.pop()
    except IndexError:
        return None
    if num_bytes <= len(mapped) <= 2 * num_bytes:
        return mapped
    _spare.append(mapped)
    return None


def _let_go(mapped: mmap.mmap) -> None:
    # from any thread, in the middle of anything: without a lock
    if len(mapped) <= _largest_spare_bytes:
        _spare.append(mapped)


def copy_into(room: memoryview, start: int, data: bytes | bytearray | memoryview) -> None:
    """
    Copy bytes to a place in a buffer, and let other threads go on meanwhile.

    Examples:
        >>> room = memoryview(bytearray(3))
        >>> copy_into(room, 1, b"ab")
        >>> bytes(room[1:])
        b'ab'
    """
    # to assign to a slice holds up every other thread
    place = np.frombuffer(room, np.uint8)[start : start + len(data)]
    place[:] = np.frombuffer(data, np.uint8)
