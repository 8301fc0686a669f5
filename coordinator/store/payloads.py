"""Where a catalog's payloads are: small ones in the database, the others in blobs."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import sqlalchemy as sa

from coordinator import faults
from coordinator.store.base import ReadyFile
from coordinator.store.blobs import Blobs, Occasion, require_digest
from coordinator.store.database import Database
from coordinator.store.format import digest_of
from coordinator.store.rows import batches
from coordinator.store.tables import small_blobs, updates, versions
from share_dist.wire.tensors import Buffer


class Payload(NamedTuple):
    """Bytes and their SHA-256 (hex); in a file already, where there is one."""

    digest: str
    data: Buffer
    file: ReadyFile | None = None

    @classmethod
    def of(cls, data: Buffer) -> "Payload":
        """Make the digest of bytes."""
        return cls(digest_of(data), data)


class Payloads:
    """
    Keeps payloads by their digest, and lets go of those that no row names.

    Args:
        database: Holds those of at most ``inline_bytes``, and the rows that name any.
        blobs: Holds the others.
        inline_bytes: See above.
    """

    def __init__(self, database: Database, blobs: Blobs, inline_bytes: int) -> None:
        self.blobs = blobs
        self._database = database
        self._inline_bytes = inline_bytes
        self._lock = threading.Lock()
        self._arriving: Counter[str] = Counter()
        self.num_blobs = 0

    def is_large(self, payload: Payload) -> bool:
        """Whether a payload is kept in a file."""
        return len(payload.data) > self._inline_bytes

    @contextlib.contextmanager
    def keeping(
        self, occasion: Occasion, payloads: Collection[Payload]
    ) -> Iterator[Callable[[sa.Connection], None]]:
        """
        Keep payloads for rows that are about to name them.

        While this context lasts the blobs are not removed, though no row names them yet.

        Args:
            occasion: Why: names the fault points that are passed.
            payloads: What to keep.

        Yields:
            What must be run first in the transaction that writes the rows.
        """
        small = [payload for payload in payloads if not self.is_large(payload)]
        large = [payload for payload in payloads if self.is_large(payload)]
        with self._held([payload.digest for payload in large]):
            for payload in large:
                self.blobs.write(payload.digest, payload.data, occasion, payload.file)
            with self._lock:
                self.num_blobs += len(large)
            yield lambda rows: self._insert(rows, small, occasion)

    def read(self, digest: str) -> bytes:
        """
        Return the bytes of a digest.

        Raises:
            StoreCorrupt: They are gone, or are not what was written.
            StoreUnavailable: The disk fails.
        """
        select = sa.select(small_blobs.c.payload).where(small_blobs.c.digest == digest)
        found = self._database.read(lambda rows: rows.execute(select).scalar_one_or_none())
        if found is None:
            return self.blobs.read(digest)
        payload = bytes(found)
        require_digest(f"{self._database.name}, small blob {digest}", digest, payload)
        return payload

    def forget(self, rows: sa.Connection, digests: Collection[str]) -> tuple[set[str], set[str]]:
        """
        Delete the small payloads among these that no row names any more.

        Returns:
            All of these that no row names; those of them that are in files, which are to be
            removed after the commit.
        """
        gone = {*digests} - named(rows, digests)
        in_files = {*gone}
        for batch in batches(gone):
            one = small_blobs.c.digest
            deleted = sa.delete(small_blobs).where(one.in_(batch)).returning(one)
            in_files -= {*rows.execute(deleted).scalars()}
        return gone, in_files

    def remove(self, rows: sa.Connection, digests: Collection[str]) -> None:
        """
        Remove blobs that no row names and that nobody is about to name.

        To be run in a transaction that has checked the fence: then nobody else owns the
        catalog until the blobs are gone.
        """
        with self._lock:
            arriving = {*self._arriving}
            for digest in sorted({*digests} - arriving - named(rows, digests)):
                faults.reach("before-compaction-unlink")
                self.blobs.remove(digest)
                faults.reach("after-compaction-unlink")

    def remove_leftovers(self, rows: sa.Connection) -> None:
        """Remove what a crash left; to be run before anything is written."""
        self.blobs.remove_unfinished()
        kept = rows.execute(sa.select(small_blobs.c.digest)).scalars()
        self.forget(rows, {*kept})
        self.remove(rows, {*self.blobs.digests()})

    def leftovers(self, rows: sa.Connection) -> list[str]:
        """Digests of blobs that no row names."""
        found = {*self.blobs.digests()}
        with self._lock:
            return sorted(found - {*self._arriving} - named(rows, found))

    @contextlib.contextmanager
    def _held(self, digests: Collection[str]) -> Iterator[None]:
        with self._lock:
            self._arriving.update(digests)
        try:
            yield
        finally:
            with self._lock:
                self._arriving -= Counter(digests)

    def _insert(self, rows: sa.Connection, small: Iterable[Payload], occasion: Occasion) -> None:
        faults.reach(f"before-{occasion}-rows")
        for digest, data, _ in small:
            insert = self._database.upsert(small_blobs).values(digest=digest, payload=data)
            rows.execute(insert.on_conflict_do_nothing())
            faults.reach(f"after-{occasion}-small-blob")


def named(rows: sa.Connection, digests: Collection[str]) -> set[str]:
    """Those of some digests that a row names."""
    every = _namings().subquery()
    found: set[str] = set()
    for batch in batches(digests):
        select = sa.select(every.c.digest).where(every.c.digest.in_(batch))
        found |= {*rows.execute(select).scalars()}
    return found


def named_digests(rows: sa.Connection) -> set[str]:
    """Every digest that a row names."""
    return {*rows.execute(_namings()).scalars()} - {""}


def _namings() -> sa.CompoundSelect[tuple[str]]:
    """Every digest that a row names, with repetitions; empty where a version has no rotation."""
    columns = (versions.c.subspace_digest, versions.c.tasks_digest, versions.c.rotation_digest)
    return sa.union_all(
        sa.select(updates.c.payload_digest.label("digest")).where(updates.c.let_go_at.is_(None)),
        *(sa.select(column).where(versions.c.is_kept) for column in columns),
    )
