"""Memory for what is about to arrive."""

import mmap

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
