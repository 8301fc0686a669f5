"""Files of tensors, named by the digest of their bytes and never changed."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from coordinator import faults
from share_dist.errors import StoreCorrupt, StoreFull, StoreUnavailable
from share_dist.files import make_folder, sync_folder

Occasion: TypeAlias = Literal["update", "merge"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BlobFolder:
    """
    One folder of blobs.

    Args:
        path: The folder; made if it is not there. What a crash left half written is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path)
        for unfinished in path.glob("*.tmp"):
            unfinished.unlink()

    def write(self, payload: bytes, occasion: Occasion) -> str:
        """
        Keep bytes; when this returns they survive a loss of power.

        Args:
            payload: The bytes.
            occasion: Why: names the fault points that are passed.

        Returns:
            The digest that is their name.

        Raises:
            StoreFull: There is no room; nothing was kept.
            StoreUnavailable: The disk fails; nothing was kept.
        """
        digest = hashlib.sha256(payload).hexdigest()
        final = self.path_of(digest)
        # a name of its own: the same bytes may be written by two threads at once
        unfinished = self.path / f"{uuid.uuid4().hex}.tmp"
        with storage_errors(final, len(payload)):
            try:
                _write_through(unfinished, payload)
                faults.reach(f"before-{occasion}-blob-rename")
                unfinished.replace(final)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise
            sync_folder(self.path)
        faults.reach(f"after-{occasion}-blob-rename")
        return digest

    def read(self, digest: str) -> bytes:
        """
        Return the bytes of a digest.

        Raises:
            StoreCorrupt: They are gone, or are not what was written.
            StoreUnavailable: The disk fails.
        """
        path = self.path_of(digest)
        with storage_errors(path):
            try:
                payload = path.read_bytes()
            except FileNotFoundError as error:
                raise _corrupt(path, digest, "no file") from error
        found = hashlib.sha256(payload).hexdigest()
        if found != digest:
            raise _corrupt(path, digest, found)
        return payload

    def path_of(self, digest: str) -> Path:
        """Where the bytes of a digest lie."""
        return self.path / f"{digest}.safetensors"


@contextlib.contextmanager
def storage_errors(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """
    Say what the operating system says in the project's own errors.

    Raises:
        StoreFull: There is no room.
        StoreUnavailable: Anything else that the disk cannot do.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise full(path, needed_bytes) from error
        raise StoreUnavailable(
            f"{path}: {error.strerror}: check the disk and its permissions", path=str(path)
        ) from error


def full(path: Path, needed_bytes: int) -> StoreFull:
    """Make the error for a disk without room."""
    free = shutil.disk_usage(path.parent).free
    return StoreFull(
        f"no room for {needed_bytes} bytes at {path}, {free} bytes are free: nothing was "
        "acknowledged; make room, and the same push will succeed",
        path=str(path),
        needed_bytes=needed_bytes,
        free_bytes=free,
    )


def _write_through(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _corrupt(path: Path, expected: str, found: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"{path} should hold bytes with digest {expected[:12]}, found {found[:12]}: "
        "restore this file from a copy of the store",
        path=str(path),
        expected=expected,
        found=found,
    )
