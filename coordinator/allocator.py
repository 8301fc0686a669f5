"""
How the C library hands memory out to this process: from two heaps, and back to the system after use.

The GNU C library gives threads up to eight heaps for each core, and every heap keeps what was freed in
it. Seventy threads that hand tensors to each other so end with several times of what they hold.
Other C libraries have no such functions, and are left alone.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

_NUM_HEAPS: Final = 2
_M_ARENA_MAX: Final = -8
"""As ``malloc.h`` numbers it."""

_GIVE_BACK_SECONDS: Final = 10.0


def use_few_heaps(environment: Mapping[str, str] | None = None) -> bool:
    """
    Let all threads share a few heaps; to be called before there are threads.

    Args:
        environment: ``os.environ`` when absent; what it says of heaps stays.

    Returns:
        Whether it is so; not where the C library is another one.
    """
    environment = os.environ if environment is None else environment
    said = (environment.get("GLIBC_TUNABLES", ""), *environment)
    if any("arena_max" in each.lower() for each in said):
        return False
    mallopt = _function("mallopt")
    return mallopt is not None and mallopt(_M_ARENA_MAX, _NUM_HEAPS) == 1


def give_back() -> bool:
    """
    Give every page that is free to the system; takes milliseconds, and lets other threads go on.

    Returns:
        Whether there was anything to give; not where the C library is another one.
    """
    trim = _function("malloc_trim")
    return trim is not None and trim(0) == 1


async def keep_giving_back(every_seconds: float = _GIVE_BACK_SECONDS) -> None:
    """Give free pages back now and then, in a thread, until this is cancelled."""
    # not after each release, nor by lower thresholds: a merge that had to ask the system for all
    # its temporary matrices anew would take half as long again
    while True:
        await asyncio.sleep(every_seconds)
        await asyncio.to_thread(give_back)


def _function(name: str) -> Callable[..., Any] | None:
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return function
