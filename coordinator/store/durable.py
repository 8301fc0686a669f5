"""
The catalog that survives: rows in SQLite or PostgreSQL, large payloads in blobs, one writer.

What a call did is on disk when it returns: payloads before the rows that name them, all rows of
one step in one transaction, which checks that this process owns the catalog still.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timezone
from typing import TypeVar

import sqlalchemy as sa
from typing_extensions import override

from coordinator import faults
from coordinator.store.base import Catalog, Finding, Store, StoreCounts, TokenRecord
from coordinator.store.blobs import Occasion as BlobOccasion
from coordinator.store.blobs import storage_errors
from coordinator.store.database import Database
from coordinator.store.durable_store import DurableStore
from coordinator.store.group import GroupWriter, Occasion
from coordinator.store.migrations import migrate, require_known, schema_version
from coordinator.store.ownership import Ownership
from coordinator.store.payloads import Payload, Payloads
from coordinator.store.place import Place
from coordinator.store.rows import add_audit, fact, note_seen_seconds, seen_seconds_in
from coordinator.store.tables import (
    audit,
    audit_from_row,
    subspaces,
    token_from_row,
    token_to_row,
    tokens,
)
from coordinator.store.verify import findings
from share_dist.errors import ConfigError, ShareError, StoreError, UnknownSubspace, UnknownToken
from share_dist.files import make_folder
from share_dist.wire.records import AuditEntry, Token

ResultT = TypeVar("ResultT")

INLINE_BYTES = 2**18
LEASE_SECONDS = 30.0

_OPENING = 7358104021
"""PostgreSQL's advisory lock for the time in which tables may be made."""


def open_catalog(
    store: str,
    *,
    blobs: str | None = None,
    owner_lease_seconds: float = LEASE_SECONDS,
    inline_bytes: int = INLINE_BYTES,
) -> "DurableCatalog":
    """
    Open a catalog and own it; it is made if there is none, and migrated if it is older.

    Args:
        store: A folder, or a ``postgresql://`` URL.
        blobs: A folder or URL for large payloads; beside PostgreSQL it is needed.
        owner_lease_seconds: After so long without ``renew`` another process may take it over.
        inline_bytes: Payloads of at most so many bytes are kept inside the database.

    Raises:
        ConfigError: The place, or a number, cannot be used.
        StoreLocked: Another process owns it.
        StoreTooNew: A newer release wrote it.
        StoreCorrupt: It cannot be read.
        StoreFull: There is no room for it.
        StoreUnavailable: The disk or the database does not answer.
    """
    if not owner_lease_seconds > 0:
        raise ConfigError(
            f"owner_lease_seconds is {owner_lease_seconds}: needed is more than 0",
            key="owner_lease_seconds",
        )
    if inline_bytes < 0:
        raise ConfigError(
            f"inline_bytes is {inline_bytes}: needed is 0 or more", key="inline_bytes"
        )
    return DurableCatalog(Place(store, blobs), owner_lease_seconds, inline_bytes)


class DurableCatalog(Catalog):
    """A catalog that this process owns; made by ``open_catalog``, where the errors are told."""

    def __init__(self, place: Place, owner_lease_seconds: float, inline_bytes: int) -> None:
        if place.folder:
            with storage_errors(str(place.folder)):
                make_folder(place.folder)
        self.database = Database(place.url, lease_seconds=owner_lease_seconds)
        self._ownership = Ownership(self.database, owner_lease_seconds)
        self._stores: dict[str, DurableStore] = {}
        self._lock = threading.Lock()
        try:
            self._take(place)
            self._store_id = self.database.read(lambda rows: fact(rows, "store_id"))
            blobs = place.blobs(self._store_id)
        except BaseException:
            self.database.close()
            raise
        self.payloads = Payloads(self.database, blobs, inline_bytes)
        self._writer = GroupWriter(self.database, self._ownership.require)
        try:
            self.write("owner", self.payloads.remove_leftovers)
        except BaseException:
            self.close()
            raise

    def _take(self, place: Place) -> None:
        """Become the owner and bring the tables up to date, in one transaction."""
        with self.database.transaction() as rows:
            if not self.database.is_sqlite:
                rows.execute(sa.select(sa.func.pg_advisory_xact_lock(_OPENING)))
            found = schema_version(rows)
            require_known(self.database.name, found)
            # the first release had no table of owners
            refusal = self._ownership.take(rows) if found > 1 else None
            if refusal is None:
                migrate(rows, found, place.folder)
            if found <= 1:
                self._ownership.take(rows)
            faults.reach("before-owner-commit")
            rows.commit()
            faults.reach("after-owner-commit")
        if refusal is not None:
            raise refusal

    @property
    @override
    def store_id(self) -> str:
        return self._store_id

    @property
    @override
    def counts(self) -> StoreCounts:
        return StoreCounts(
            self._writer.num_commits, self._writer.num_writes, self.payloads.num_blobs
        )

    # --- subspaces --------------------------------------------------------------------------

    @override
    def names(self) -> tuple[str, ...]:
        select = sa.select(subspaces.c.name).order_by(subspaces.c.name)
        return tuple(self.database.read(lambda rows: rows.execute(select).scalars().all()))

    @override
    def store(self, name: str) -> Store:
        with self._lock:
            if name not in self._stores:
                if name not in self.names():
                    raise UnknownSubspace(f"there is no subspace {name!r}", subspace=name)
                self._stores[name] = DurableStore(self, name)
            return self._stores[name]

    @override
    def create(self, name: str, *, by: str) -> Store:
        insert = self.database.upsert(subspaces).values(name=name).on_conflict_do_nothing()
        made = insert.returning(subspaces.c.name)

        def write(rows: sa.Connection) -> None:
            if rows.execute(made).first() is not None:
                self.audit_in(rows, by, "subspace_created", subspace=name)

        self.write("change", write)
        return self.store(name)

    # --- ownership --------------------------------------------------------------------------

    @override
    def renew(self, seen_seconds: float = 0.0) -> None:
        def write(rows: sa.Connection) -> None:
            self._ownership.renew(rows)
            if seen_seconds > seen_seconds_in(rows):
                note_seen_seconds(rows, seen_seconds)

        self.write("owner", write)

    @override
    def seen_seconds(self) -> float:
        return self.database.read(seen_seconds_in)

    @override
    def close(self) -> None:
        with contextlib.suppress(StoreError):
            self.write("owner", self._ownership.give_up)
        self._writer.close()
        self.database.close()

    # --- tokens -----------------------------------------------------------------------------

    @override
    def add_token(self, record: TokenRecord, *, by: str) -> None:
        def write(rows: sa.Connection) -> None:
            last = rows.execute(sa.select(sa.func.max(tokens.c.number))).scalar() or 0
            rows.execute(sa.insert(tokens).values(token_to_row(record) | {"number": last + 1}))
            self.audit_in(rows, by, "token_created", subject=record.token.token_id)

        self.write("change", write)

    @override
    def tokens(self) -> tuple[Token, ...]:
        select = sa.select(tokens).order_by(tokens.c.number)
        return tuple(
            map(token_from_row, self.database.read(lambda rows: rows.execute(select).all()))
        )

    @override
    def find_token(self, secret_digest: str) -> Token | None:
        select = sa.select(tokens).where(tokens.c.secret_digest == secret_digest)
        row = self.database.read(lambda rows: rows.execute(select).one_or_none())
        return None if row is None else token_from_row(row)

    @override
    def revoke_token(self, token_id: str, *, at: datetime, by: str) -> Token:
        is_it = tokens.c.token_id == token_id

        def write(rows: sa.Connection) -> Token:
            live = is_it & tokens.c.revoked_at.is_(None)
            revoked = sa.update(tokens).where(live).values(revoked_at=at.timestamp())
            if rows.execute(revoked).rowcount:
                self.audit_in(rows, by, "token_revoked", subject=token_id)
            row = rows.execute(sa.select(tokens).where(is_it)).one_or_none()
            if row is None:
                raise UnknownToken(f"there is no token {token_id}", token_id=token_id)
            return token_from_row(row)

        return self.write("change", write)

    # --- audit log --------------------------------------------------------------------------

    @override
    def note(self, entries: Sequence[AuditEntry]) -> None:
        self.write("change", lambda rows: add_audit(rows, entries))

    @override
    def audit(
        self, after_sequence: int, limit: int, *, before_sequence: int | None = None
    ) -> tuple[AuditEntry, ...]:
        sequence = audit.c.sequence
        asked = sa.select(audit).where(sequence > after_sequence).limit(limit)
        if before_sequence:
            asked = asked.where(sequence < before_sequence)
        is_from_end = before_sequence is not None
        select = asked.order_by(sequence.desc() if is_from_end else sequence)
        found = self.database.read(lambda rows: rows.execute(select).all())
        return tuple(map(audit_from_row, reversed(found) if is_from_end else found))

    @staticmethod
    def audit_in(rows: sa.Connection, by: str, action: str, **fields: str) -> None:
        """Write a line into the audit log, in the transaction of what it tells."""
        add_audit(rows, [AuditEntry(0, datetime.now(timezone.utc), by, action, **fields)])

    # --- writing ----------------------------------------------------------------------------

    @override
    def verify(self) -> Iterator[Finding]:
        return findings(self.database, self.payloads)

    def write(self, occasion: Occasion, write: Callable[[sa.Connection], ResultT]) -> ResultT:
        """
        Run a transaction on the writer's thread; it is on disk when this returns.

        Args:
            occasion: Why.
            write: Changes rows; may be run again after its rows were rolled back.

        Raises:
            StoreFenced: Another process owns the catalog.
            StoreFull: There is no room.
            StoreUnavailable: The disk or the database does not answer.
        """
        return self._writer.run(occasion, write)

    @contextlib.contextmanager
    def keeping(
        self, occasion: BlobOccasion, payloads: Collection[Payload]
    ) -> Iterator[Callable[[sa.Connection], None]]:
        """Keep payloads for rows as ``Payloads.keeping``; let go of them if the rows are refused."""
        try:
            with self.payloads.keeping(occasion, payloads) as put:
                yield put
        except ShareError:
            with contextlib.suppress(StoreError):
                large = filter(self.payloads.is_large, payloads)
                self.remove_blobs([payload.digest for payload in large])
            raise

    def remove_blobs(self, digests: Collection[str]) -> None:
        """Remove those of some blobs that no row names, while this process owns the catalog."""
        if digests:
            # a commit that failed may come back at the next start, and name what is removed here,
            # until another commit is written over it
            self.renew()
            self.write("compaction", lambda rows: self.payloads.remove(rows, digests))
