"""Files of tensors, named by the digest of their bytes and never changed; local or anywhere."""

import abc
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from typing_extensions import override

from coordinator import faults
from coordinator.store.base import ReadyFile
from coordinator.store.format import digest_of
from share_dist.errors import ConfigError, ShareError, StoreCorrupt, StoreFull, StoreUnavailable
from share_dist.files import make_folder, sync_folder
from share_dist.wire.tensors import Buffer

Occasion: TypeAlias = Literal["update", "merge"]

SUFFIX = ".safetensors"
UNFINISHED = ".tmp"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Blobs(abc.ABC):
    """
    A place for blobs.

    Args:
        place: Where it is, as people are told.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    @abc.abstractmethod
    def write(
        self, digest: str, payload: Buffer, occasion: Occasion, file: ReadyFile | None = None
    ) -> None:
        """
        Keep bytes; when this returns they survive a loss of power.

        Args:
            digest: SHA-256 (hex) of the bytes.
            payload: The bytes.
            occasion: Why: names the fault points that are passed.
            file: Has the same bytes; taken from its place where that saves writing them.

        Raises:
            StoreFull: There is no room; nothing was kept.
            StoreUnavailable: The disk fails; nothing was kept.
        """

    def read(self, digest: str) -> bytes:
        """
        Return the bytes of a digest.

        Raises:
            StoreCorrupt: They are gone, or are not what was written.
            StoreUnavailable: The disk fails.
        """
        try:
            payload = self._fetch(digest)
        except FileNotFoundError as error:
            raise corrupt(self.name_of(digest), digest, "no file") from error
        require_digest(self.name_of(digest), digest, payload)
        return payload

    @abc.abstractmethod
    def digests(self) -> Iterator[str]:
        """Every digest that is here."""

    @abc.abstractmethod
    def remove(self, digest: str) -> None:
        """Remove the bytes of a digest, if they are here."""

    @abc.abstractmethod
    def remove_unfinished(self) -> None:
        """Remove what a crash left half written."""

    def name_of(self, digest: str) -> str:
        """Where the bytes of a digest lie, as people are told."""
        return f"{self.place}/{digest}{SUFFIX}"

    @abc.abstractmethod
    def _fetch(self, digest: str) -> bytes:
        """Return bytes as they are there; ``FileNotFoundError`` if they are not."""


class LocalBlobs(Blobs):
    """
    One folder of blobs.

    Args:
        path: The folder; made when the first blob is written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    @override
    def write(
        self, digest: str, payload: Buffer, occasion: Occasion, file: ReadyFile | None = None
    ) -> None:
        final = self.path / f"{digest}{SUFFIX}"
        with storage_errors(str(final), len(payload)):
            make_folder(self.path)
            if not (file and _take(file, final, occasion)):
                self._write_anew(final, payload, occasion)
            sync_folder(self.path)
        faults.reach(f"after-{occasion}-blob-folder-sync")

    def _write_anew(self, final: Path, payload: Buffer, occasion: Occasion) -> None:
        # a name of its own: the same bytes may be written by two threads at once
        unfinished = self.path / f"{uuid.uuid4().hex}{UNFINISHED}"
        try:
            _write_through(unfinished, payload, occasion)
            faults.reach(f"before-{occasion}-blob-rename")
            unfinished.replace(final)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        faults.reach(f"after-{occasion}-blob-rename")

    @override
    def digests(self) -> Iterator[str]:
        return (file.stem for file in self.path.glob(f"*{SUFFIX}"))

    @override
    def remove(self, digest: str) -> None:
        with storage_errors(self.name_of(digest)):
            (self.path / f"{digest}{SUFFIX}").unlink(missing_ok=True)

    @override
    def remove_unfinished(self) -> None:
        with storage_errors(self.place):
            for unfinished in self.path.glob(f"*{UNFINISHED}"):
                unfinished.unlink()

    @override
    def _fetch(self, digest: str) -> bytes:
        with storage_errors(self.name_of(digest)):
            return (self.path / f"{digest}{SUFFIX}").read_bytes()


class RemoteBlobs(Blobs):
    """
    Blobs behind any URL that fsspec knows, such as ``s3://bucket/folder``.

    An object store makes an object visible whole or not at all, so there is no renaming.

    Args:
        url: Where; each file system takes its credentials from where it always does.

    Raises:
        ConfigError: There is no such file system, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        super().__init__(url.rstrip("/"))
        self._files: Any
        try:
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"blobs is {url}: {error}; install the package of that file system, or name a folder",
                key="blobs",
            ) from error
        self._root = root.rstrip("/")

    @override
    def write(
        self, digest: str, payload: Buffer, occasion: Occasion, file: ReadyFile | None = None
    ) -> None:
        faults.reach(f"before-{occasion}-blob-write")
        with self._errors(self.name_of(digest), len(payload)):
            self._files.pipe_file(self._path(digest), bytes(payload))
        faults.reach(f"after-{occasion}-blob-write")

    @override
    def digests(self) -> Iterator[str]:
        with self._errors(self.place):
            found = self._files.find(self._root)
        names = (str(path).rpartition("/")[2] for path in found)
        return (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))

    @override
    def remove(self, digest: str) -> None:
        with (
            contextlib.suppress(FileNotFoundError),
            self._errors(self.name_of(digest), may_lack=True),
        ):
            self._files.rm_file(self._path(digest))

    @override
    def remove_unfinished(self) -> None:
        """Nothing is ever there by half."""

    @override
    def _fetch(self, digest: str) -> bytes:
        with self._errors(self.name_of(digest), may_lack=True):
            payload: bytes = self._files.cat_file(self._path(digest))
            return payload

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest}{SUFFIX}"

    @contextlib.contextmanager
    def _errors(
        self, name: str, needed_bytes: int = 0, *, may_lack: bool = False
    ) -> Iterator[None]:
        """Say what a file system raises in the project's own errors; many have errors that are no ``OSError``."""
        try:
            with storage_errors(name, needed_bytes):
                yield
        except ShareError:
            raise
        except Exception as error:
            if may_lack and isinstance(error, FileNotFoundError):
                raise
            raise StoreUnavailable(
                f"{name}: {error}: check the object store, the way there and the credentials",
                path=name,
            ) from error


def open_blobs(url: str, store_id: str) -> Blobs:
    """
    Open the place for a catalog's blobs below a folder or URL that others may use as well.

    Args:
        url: A folder, ``file://...``, or what fsspec knows.
        store_id: Of the catalog: each has a folder of its own, so that none removes another's.

    Raises:
        ConfigError: There is no such file system, or its package is not installed.
    """
    if "://" not in url:
        return LocalBlobs(Path(url).absolute() / store_id)
    if url.startswith("file://"):
        return LocalBlobs(Path(url.removeprefix("file://")).absolute() / store_id)
    return RemoteBlobs(f"{url.rstrip('/')}/{store_id}")


def require_digest(name: str, digest: str, payload: Buffer) -> None:
    """
    Raise unless bytes are those of a digest.

    Raises:
        StoreCorrupt: They are not.
    """
    found = digest_of(payload)
    if found != digest:
        raise corrupt(name, digest, found)


def corrupt(name: str, expected: str, found: str) -> StoreCorrupt:
    """Make the error for bytes that are not what was written."""
    return StoreCorrupt(
        f"{name} should hold bytes with digest {expected[:12]}, found {found[:12]}: "
        "restore it from a backup of the store",
        path=name,
        expected=expected,
        found=found,
    )


@contextlib.contextmanager
def storage_errors(name: str, needed_bytes: int = 0) -> Iterator[None]:
    """
    Say what the operating system says in the project's own errors; a missing file stays one.

    Raises:
        StoreFull: There is no room.
        StoreUnavailable: Anything else that the disk cannot do.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise full(name, needed_bytes) from error
        raise StoreUnavailable(
            f"{name}: {error.strerror or error}: check the disk and its permissions", path=name
        ) from error


def full(name: str, needed_bytes: int) -> StoreFull:
    """Make the error for a disk without room."""
    folder = Path(name).parent
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return StoreFull(
        f"no room for {needed_bytes} bytes at {name}, {free} bytes are free: nothing was "
        "acknowledged; make room, and the same push will succeed",
        path=name,
        needed_bytes=needed_bytes,
        free_bytes=free,
    )


def _take(file: ReadyFile, final: Path, occasion: Occasion) -> bool:
    """Rename a file that has the bytes already; whether that can be done."""
    faults.reach(f"before-{occasion}-blob-write")
    if not file.sync():
        return False
    faults.reach(f"after-{occasion}-blob-write")
    faults.reach(f"before-{occasion}-blob-rename")
    try:
        file.path.replace(final)
    except OSError:
        # it lies on another disk, for one: written anew, the disk says what is wrong if anything is
        return False
    faults.reach(f"after-{occasion}-blob-rename")
    return True


def _write_through(path: Path, payload: Buffer, occasion: Occasion) -> None:
    faults.reach(f"before-{occasion}-blob-write")
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        faults.reach(f"after-{occasion}-blob-write")
        os.fsync(file.fileno())
