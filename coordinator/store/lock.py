"""The lock that lets one coordinator at a time own a store; it ends with its process."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import TextIO

from share_dist.errors import StoreLocked


class StoreLock:
    """
    Owns a store from the moment it is made until it is released.

    Args:
        path: The lock file; it tells who owns the store.

    Raises:
        StoreLocked: Another process owns it.
    """

    def __init__(self, path: Path) -> None:
        # opened without truncation: the owner's name is in it
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            error = _locked(path, self._file)
            self._file.close()
            raise error from None
        self._file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Let others have the store."""
        self._file.close()


def _locked(path: Path, file: TextIO) -> StoreLocked:
    file.seek(0)
    try:
        owner = json.load(file)
    except ValueError:
        owner = {"pid": 0, "host": "(unknown)"}
    return StoreLocked(
        f"store {path.parent} is owned by process {owner['pid']} on {owner['host']}: stop that "
        "coordinator, or use another store",
        path=str(path.parent),
        pid=owner["pid"],
        host=owner["host"],
    )
