"""Memory for what is about to arrive."""

import mmap

import numpy as np

_LEAST_MAPPED_BYTES = 2**20
"""Below it memory from the heap is as fast."""


def room_for(num_bytes: int) -> memoryview:
    """
    Reserve memory that is taken as it is written to, and given back as soon as nobody looks at it.

    A large buffer is a mapping of its own in pages as large as the system gives: taking a fresh
    page costs more than writing it, and what came from the heap might stay there.

    Examples:
        >>> len(room_for(3)), any(room_for(3))
        (3, False)
    """
    if num_bytes < _LEAST_MAPPED_BYTES:
        return memoryview(bytearray(num_bytes))
    mapped = mmap.mmap(-1, num_bytes, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapped)


def copy_into(room: memoryview, start: int, data: bytes | bytearray | memoryview) -> None:
    """
    Copy bytes to a place in a buffer, and let other threads go on meanwhile.

    Examples:
        >>> room = room_for(3)
        >>> copy_into(room, 1, b"ab")
        >>> bytes(room[1:])
        b'ab'
    """
    # to assign to a slice holds up every other thread
    place = np.frombuffer(room, np.uint8)[start : start + len(data)]
    place[:] = np.frombuffer(data, np.uint8)
