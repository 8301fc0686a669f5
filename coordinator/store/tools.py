"""Looking after a catalog without owning it: what it holds, copies of it, and their way back."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from coordinator.store.base import Finding
from coordinator.store.blobs import Blobs, LocalBlobs, storage_errors
from coordinator.store.database import Database, sqlite_url
from coordinator.store.durable import INLINE_BYTES, open_catalog
from coordinator.store.migrations import migrate, require_known, schema_version
from coordinator.store.ownership import Owner, owner_of
from coordinator.store.payloads import Payloads, named, named_digests
from coordinator.store.place import Place
from coordinator.store.rows import batches, fact
from coordinator.store.tables import (
    SCHEMA_VERSION,
    audit,
    facts,
    refused_updates,
    small_blobs,
    subspaces,
    tasks,
    tokens,
    updates,
    versions,
    workers,
)
from coordinator.store.verify import findings
from share_dist.errors import ConfigError, StoreCorrupt, StoreUnavailable
from share_dist.files import make_folder, sync_folder

COPIED = (
    facts,
    subspaces,
    workers,
    updates,
    refused_updates,
    tasks,
    versions,
    small_blobs,
    tokens,
    audit,
)
"""Everything but the owner: a copy belongs to nobody yet."""

ATTEMPTS = 3
"""How often a backup begins again because of compactions meanwhile."""

Progress = Callable[[int, int], None]
"""Called with how many blobs were copied, and of how many."""


@dataclass(frozen=True, slots=True)
class SubspaceInfo:
    """One subspace of a catalog: versions, tasks, and updates by their state."""

    name: str
    current_version: int
    num_kept_versions: int
    num_tasks: int
    num_updates: dict[str, int]
    fingerprint_is_known: bool


@dataclass(frozen=True, slots=True)
class CatalogInfo:
    """A catalog as it is found, with whom it belongs to now."""

    database: str
    blobs: str
    store_id: str
    schema_version: int
    owner: Owner | None
    subspaces: tuple[SubspaceInfo, ...]
    num_tokens: int
    num_audit_lines: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What a backup or a restore came to."""

    place: str
    store_id: str
    num_files: int
    file_bytes: int


@dataclass(frozen=True)
class Reader:
    """A catalog that is read and not owned."""

    database: Database
    payloads: Payloads
    store_id: str


@contextmanager
def reading(place: Place) -> Iterator[Reader]:
    """
    Open a catalog to read it, whoever owns it.

    Raises:
        ConfigError: There is none, or one of an older release.
        StoreTooNew: A newer release wrote it.
    """
    database = Database(place.url, must_exist=True)
    try:
        found = database.read(schema_version)
        require_known(database.name, found)
        if found != SCHEMA_VERSION:
            raise ConfigError(_unready(database.name, found), key="store")
        store_id = database.read(lambda rows: fact(rows, "store_id"))
        payloads = Payloads(database, place.blobs(store_id), INLINE_BYTES)
        yield Reader(database, payloads, store_id)
    finally:
        database.close()


def _unready(name: str, found: int) -> str:
    if found == 0:
        return f"{name} holds no store: name the folder or the database of one"
    return (
        f"{name} has schema version {found}, this release reads {SCHEMA_VERSION}: run `share-dist "
        "store migrate` first"
    )


def verify(place: Place) -> Iterator[Finding]:
    """Walk over everything that a catalog keeps, and say what is broken."""
    with reading(place) as reader:
        yield from findings(reader.database, reader.payloads)


def info(place: Place) -> CatalogInfo:
    """Describe a catalog."""
    with reading(place) as reader, reader.database.snapshot() as rows:
        names = rows.execute(sa.select(subspaces).order_by(subspaces.c.name)).all()
        return CatalogInfo(
            database=reader.database.name,
            blobs=reader.payloads.blobs.place,
            store_id=reader.store_id,
            schema_version=SCHEMA_VERSION,
            owner=owner_of(reader.database, rows),
            subspaces=tuple(_subspace_info(rows, row) for row in names),
            num_tokens=_count(rows, tokens),
            num_audit_lines=_count(rows, audit),
        )


def bring_up_to_date(place: Place) -> tuple[int, int]:
    """
    Migrate a catalog of an older release.

    Returns:
        Its schema version before and now.

    Raises:
        ConfigError: There is no catalog.
        StoreLocked: A coordinator owns it.
        StoreTooNew: A newer release wrote it.
    """
    database = Database(place.url, must_exist=True)
    try:
        found = database.read(schema_version)
    finally:
        database.close()
    if found == 0:
        raise ConfigError(_unready(database.name, found), key="store")
    open_catalog(place.store, blobs=place.blobs_url).close()
    return found, SCHEMA_VERSION


def backup(place: Place, target: Path, progress: Progress) -> Copied:
    """
    Copy a catalog, whoever owns it and writes to it meanwhile, into a folder of its own.

    The folder is a whole store of one moment. It has another name until it is complete.

    Args:
        place: What to copy.
        target: The new folder.
        progress: Told of each file.

    Raises:
        ConfigError: The target is there, or there is nothing to copy.
        StoreCorrupt: Something is not what was written: a copy of it would be no backup.
        StoreFull: There is no room for the copy.
    """
    require_absent(target)
    with reading(place) as reader:
        for _ in range(ATTEMPTS):
            copied = _copy_into_folder(reader, target, progress)
            if copied is not None:
                return copied
    raise StoreUnavailable(
        f"versions were compacted during each of {ATTEMPTS} attempts to copy {place.store}: try "
        "again while nothing is compacted",
        path=place.store,
    )


def restore(source: Path, place: Place, progress: Progress) -> Copied:
    """
    Make a catalog from a backup, where there is none.

    Args:
        source: The folder that ``backup`` made.
        place: Where; a folder or a database that holds nothing yet.
        progress: Told of each file.

    Raises:
        ConfigError: The place holds something, or the source is no backup.
        StoreCorrupt: The backup is damaged.
        StoreFull: There is no room.
    """
    if place.folder is not None:
        require_absent(place.folder)
    with reading(Place(str(source))) as reader:
        blobs = place.blobs(reader.store_id)
        if next(blobs.digests(), None) is not None:
            raise ConfigError(
                f"{blobs.place} holds payloads of this store already: remove them, or name another "
                "place for the blobs",
                key="blobs",
            )
        if place.folder is not None:
            other = None if place.blobs_url is None else blobs
            copied = _copy_into_folder(reader, place.folder, progress, other)
        else:
            copied = _copy_into_database(reader, place, blobs, progress)
    assert copied is not None, "nobody compacts a backup"
    return copied


def require_absent(target: Path) -> None:
    """
    Raise if a folder is there and holds anything.

    Raises:
        ConfigError: It does.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already: name a folder that is not", key="target")


def _copy_into_folder(
    reader: Reader, target: Path, progress: Progress, blobs: Blobs | None = None
) -> Copied | None:
    target = target.absolute()
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    with storage_errors(str(target)):
        make_folder(unfinished)
    try:
        database = Database(sqlite_url(unfinished))
        try:
            copied = _copy(reader, database, blobs or LocalBlobs(unfinished / "blobs"), progress)
        finally:
            database.close()
        if copied is not None:
            with storage_errors(str(target)):
                unfinished.replace(target)
                sync_folder(target.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return None if copied is None else Copied(str(target), reader.store_id, *copied)


def _copy_into_database(
    reader: Reader, place: Place, blobs: Blobs, progress: Progress
) -> Copied | None:
    database = Database(place.url)
    try:
        copied = _copy(reader, database, blobs, progress)
    finally:
        database.close()
    return None if copied is None else Copied(database.name, reader.store_id, *copied)


def _copy(
    reader: Reader, target: Database, blobs: Blobs, progress: Progress
) -> tuple[int, int] | None:
    """Copy rows as they are at one moment, then the files that they name; None if some are gone."""
    with target.transaction() as written:
        found = schema_version(written)
        if found:
            raise ConfigError(
                f"{target.name} holds a store of schema version {found} already: name an empty database",
                key="store",
            )
        migrate(written, 0, None)
        written.execute(sa.delete(facts))
        with reader.database.snapshot() as rows:
            for table in COPIED:
                _copy_table(rows, written, table)
        copied = _copy_files(reader, written, blobs, progress)
        if copied is not None:
            written.commit()
    return copied


def _copy_table(rows: sa.Connection, written: sa.Connection, table: sa.Table) -> None:
    found = rows.execution_options(yield_per=100).execute(sa.select(table))
    for batch in batches(found.mappings()):
        written.execute(sa.insert(table), [dict(row) for row in batch])


def _copy_files(
    reader: Reader, written: sa.Connection, blobs: Blobs, progress: Progress
) -> tuple[int, int] | None:
    inside = {*written.execute(sa.select(small_blobs.c.digest)).scalars()}
    digests = sorted(named_digests(written) - inside)
    num_bytes = 0
    for index, digest in enumerate(digests):
        progress(index, len(digests))
        payload = _read_unless_gone(reader, digest)
        if payload is None:
            return None
        blobs.write(digest, payload, "update")
        num_bytes += len(payload)
    progress(len(digests), len(digests))
    return len(digests), num_bytes


def _read_unless_gone(reader: Reader, digest: str) -> bytes | None:
    """Return a payload; None if a compaction has let go of it meanwhile."""
    try:
        return reader.payloads.read(digest)
    except StoreCorrupt:
        if reader.database.read(lambda rows: named(rows, [digest])):
            raise
        return None


def _subspace_info(rows: sa.Connection, row: "sa.Row[tuple[str, str | None]]") -> SubspaceInfo:
    mine = versions.c.subspace == row.name
    newest = sa.select(sa.func.max(versions.c.version)).where(mine)
    kept = sa.select(sa.func.count()).select_from(versions).where(mine, versions.c.is_kept)
    known = sa.select(sa.func.count()).select_from(tasks).where(tasks.c.subspace == row.name)
    states = sa.select(updates.c.state, sa.func.count().label("num_updates")).where(
        updates.c.subspace == row.name
    )
    counted = rows.execute(states.group_by(updates.c.state).order_by(updates.c.state))
    return SubspaceInfo(
        name=row.name,
        current_version=rows.execute(newest).scalar() or 0,
        num_kept_versions=rows.execute(kept).scalar_one(),
        num_tasks=rows.execute(known).scalar_one(),
        num_updates={row.state: row.num_updates for row in counted},
        fingerprint_is_known=row.fingerprint is not None,
    )


def _count(rows: sa.Connection, table: sa.Table) -> int:
    return int(rows.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
