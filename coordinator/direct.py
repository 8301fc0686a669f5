"""
A file that is written past the page cache: what has come of a large push is on disk while the rest still comes.

Through the cache the same bytes are copied once more, and all of them wait for the end, when they are synced::

    through the cache     receive, hash, copy ........................ | sync 64 MiB |
    past it               receive, hash ... | sync |
                          write 8 MiB, write 8 MiB, ...

What is not aligned, or lies where a file system has no such way, is written as everything is; nobody who reads
the file can tell. Whoever reads it next reads it from the disk.

Source: open(2), O_DIRECT.
"""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np

_ALIGNMENT = 4096
"""Bytes of a page, and of a block of about every disk: of memory, of places in a file and of lengths."""

_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """
    A new file, or the end of one that is there.

    Args:
        path: Where; no link is followed.
        start: Length of what stays of it; writing begins there.
        is_direct: Whether to go past the page cache at all.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, start: int, *, is_direct: bool = True) -> None:
        self._place = start
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(self._descriptor, start)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            self.is_direct = is_direct and self._turn(on=True)
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """Its descriptor, to be synced by."""
        return self._descriptor

    def write(self, data: memoryview) -> None:
        """
        Write all of some bytes after those before.

        Raises:
            OSError: As any writing; part of the bytes may be there.
        """
        while data:
            data = data[self._write_some(data) :]

    def close(self) -> None:
        """Let go of it; it is not synced."""
        os.close(self._descriptor)

    def _write_some(self, data: memoryview) -> int:
        whole = len(data) // _ALIGNMENT * _ALIGNMENT
        is_aligned = not (self._place % _ALIGNMENT or _address(data) % _ALIGNMENT)
        if self.is_direct and not (whole and is_aligned):
            # for good: what comes after a piece that is not aligned is not aligned either
            self.is_direct = self._turn(on=False)
        try:
            num_bytes = os.write(self._descriptor, data[:whole] if self.is_direct else data)
        except OSError as error:
            if not self.is_direct or error.errno != errno.EINVAL:
                raise
            self.is_direct = self._turn(on=False)
            return 0
        self._place += num_bytes
        return num_bytes

    def _turn(self, *, on: bool) -> bool:
        """Go past the page cache from now on, or no longer; whether that is so."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(
                self._descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT
            )
        except OSError:
            return False  # a file system that has no such way
        return on and bool(_DIRECT)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
