"""Where a catalog is: a folder, or a database and a place for large payloads."""

import contextlib
from pathlib import Path

import sqlalchemy as sa

from coordinator.store.blobs import Blobs, LocalBlobs, open_blobs
from coordinator.store.database import sqlite_url
from share_dist.errors import ConfigError


class Place:
    """
    Where a catalog is.

    Args:
        store: A folder, or a ``postgresql://`` URL.
        blobs: A folder or URL for large payloads, in which each catalog has a folder of its own;
            needed beside PostgreSQL. ``STORE/blobs`` where a folder is all that is given.

    Raises:
        ConfigError: No catalog can be there.
    """

    def __init__(self, store: str, blobs: str | None = None) -> None:
        self.store = store
        self.folder = None if "://" in store else Path(store).absolute()
        self.blobs_url = blobs or None
        try:
            self.url = sqlite_url(self.folder) if self.folder else sa.make_url(store)
        except (sa.exc.ArgumentError, ValueError) as error:
            raise ConfigError(f"store is no URL of a database: {error}", key="store") from error
        if self.folder and _is_file(self.folder):
            raise ConfigError(
                f"store is {self.folder}, which is a file: name a folder, or one that is still to be "
                "made",
                key="store",
            )
        if self.folder is None and self.blobs_url is None:
            raise ConfigError(
                "a store in PostgreSQL needs a place for large payloads: set blobs to a folder, or "
                "to a URL such as s3://bucket/folder",
                key="blobs",
            )

    def blobs(self, store_id: str) -> Blobs:
        """
        Return where a catalog's large payloads are.

        Raises:
            ConfigError: The URL names no file system that is installed.
        """
        if self.blobs_url is not None:
            return open_blobs(self.blobs_url, store_id)
        return LocalBlobs(Path(str(self.folder)) / "blobs")


def _is_file(path: Path) -> bool:
    # what may not be looked at is told of when it is opened
    with contextlib.suppress(OSError):
        return path.is_file()
    return False
