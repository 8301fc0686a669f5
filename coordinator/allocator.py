"""
How the C library hands memory out to this process: from two heaps, and back to the system after a while.

The GNU C library gives threads up to eight heaps for each core, and every heap keeps what was freed in
it. Seventy threads that hand tensors to each other so end with several times of what they hold.
It also asks the system anew for each chunk of a payload, and a page that is new costs more than
to write it: so what was freed is kept warm, for the next chunk and the next merge, and given back when it rests.
Other C libraries have no such functions, and are left alone. Intel's MKL, where torch multiplies with it,
has its own way to keep buffers, for each thread and each kind of product, and is told not to.
The buffers that pushes are gathered in are no part of the heap; the last of them is kept warm like it.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

_NUM_HEAPS: Final = 2
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""As ``malloc.h`` numbers them."""

_LARGEST_KEPT_BYTES: Final = 2**25
_MOST_KEPT_BYTES: Final = 2**27
"""A piece of memory that is larger comes from the system and goes back at once; and so does what is
free at the end of a heap beyond the second."""

_GIVE_BACK_SECONDS: Final = 10.0


def use_few_heaps(environment: Mapping[str, str] | None = None) -> bool:
    """
    Let all threads share a few heaps, and keep these warm; to be called before there are threads.

    Args:
        environment: ``os.environ`` when absent; what it says of heaps stays.

    Returns:
        Whether it is so; not where the C library is another one.
    """
    environment = os.environ if environment is None else environment
    said = "".join((environment.get("GLIBC_TUNABLES", ""), *environment)).lower()
    mallopt = _function("mallopt")
    if mallopt is None or any(name in said for name in ("arena_max", "_threshold")):
        return False
    wanted = {
        _M_ARENA_MAX: _NUM_HEAPS,
        _M_MMAP_THRESHOLD: _LARGEST_KEPT_BYTES,
        _M_TRIM_THRESHOLD: _MOST_KEPT_BYTES,
    }
    return all(mallopt(option, value) == 1 for option, value in wanted.items())


def keep_no_product_buffers(environment: MutableMapping[str, str] | None = None) -> None:
    """
    Have MKL take the buffers of a product from the C library each time; to be called before torch multiplies.

    Otherwise each of many threads ends with its own of every kind, a few hundred KiB each, for ever.

    Args:
        environment: ``os.environ`` when absent; what it says of them stays.
    """
    environment = os.environ if environment is None else environment
    environment.setdefault("MKL_DISABLE_FAST_MM", "1")


def keep_a_buffer() -> None:
    """Gather a large push in the memory that the one before it was gathered in; to be called after ``use_few_heaps``."""
    # numpy starts threads when it is imported
    from share_dist.wire import buffers

    buffers.keep_a_spare(_MOST_KEPT_BYTES)


def give_back() -> bool:
    """
    Give every page that is free to the system; takes milliseconds, and lets other threads go on.

    Returns:
        Whether the heap had anything to give; not where the C library is another one.
    """
    from share_dist.wire import buffers

    buffers.drop_spare()
    trim = _function("malloc_trim")
    return trim is not None and trim(0) == 1


async def keep_giving_back(every_seconds: float = _GIVE_BACK_SECONDS) -> None:
    """Give free pages back now and then, in a thread, until this is cancelled."""
    # not after each release: a merge that had to ask the system for all its temporary matrices anew
    # would take half as long again
    while True:
        await asyncio.sleep(every_seconds)
        await asyncio.to_thread(give_back)


def _function(name: str) -> Callable[..., Any] | None:
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return function
