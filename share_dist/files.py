"""Files that are whole or not there: written beside the place, synced, then renamed there."""

import os
import uuid
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """
    Write a file so that no reader, crash or loss of power sees half of it.

    When this returns, the file and the folders made for it are on disk. When it
    raises, what was there before is there still, and nothing else is left behind.

    Args:
        path: Where; folders that are missing are made.
        data: All of it.

    Raises:
        OSError: The disk is full, or may not be written to.
    """
    make_folder(path.parent)
    # a name of its own: two writers of one file must not write into each other's
    unfinished = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to disk: without it, a loss of power may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that they are still there after a loss of power."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)
