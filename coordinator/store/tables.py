"""
The rows of a catalog: one space for all named subspaces, in SQLite or PostgreSQL.

``migrations`` makes these tables; a test compares the two. No row names a payload that is not
kept, so a crash can leave a payload without a row, which is harmless, and never the reverse.
"""

import json
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
)

from coordinator.store.base import (
    DescribedUpdate,
    MergeMark,
    TokenRecord,
    UpdateRecord,
    refused_record,
)
from coordinator.store.format import to_json
from share_dist.core.values import Head
from share_dist.wire.records import AuditEntry, Token, UpdateState

SCHEMA_VERSION: Final = 3
"""Version of the tables and of what is in them; a migration for each leads here."""

tables = MetaData()

# PostgreSQL would sort names by the rules of a language
Name = Text().with_variant(Text(collation="C"), "postgresql")

facts = Table(
    "facts",
    tables,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Single values: ``store_id``; ``seen_seconds``, the latest time that an owner has seen; and for the
first release, which refuses it, ``schema_version``."""

owner = Table(
    "owner",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("fence", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("started", Text, nullable=False),
    Column("pid_namespace", Text, nullable=False),
    Column("lease_seconds", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("expires_since_boot", Double, nullable=False),
)
"""One row: the process that may write; see ``ownership``."""

subspaces = Table(
    "subspaces",
    tables,
    Column("name", Name, primary_key=True),
    Column("fingerprint", Text),
)

workers = Table(
    "workers",
    tables,
    Column("subspace", Name, primary_key=True),
    Column("worker_id", Name, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("lease_epoch", BigInteger, nullable=False),
)


def _of_a_push() -> tuple["Column[Any]", ...]:
    """Make the columns that say who pushed an update, and what."""
    return (
        Column("worker_id", Text, nullable=False),
        Column("owner", Text, nullable=False),
        Column("base_version", BigInteger, nullable=False),
        Column("pushed_at", Double, nullable=False),
        Column("content_digest", Text, nullable=False),
        Column("update_bytes", BigInteger, nullable=False),
    )


updates = Table(
    "updates",
    tables,
    Column("subspace", Name, primary_key=True),
    Column("update_id", Name, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("task_id", Name, nullable=False),
    *_of_a_push(),
    Column("head_bytes", BigInteger, nullable=False),
    Column("num_samples", BigInteger, nullable=False),
    Column("scores", Text, nullable=False),
    Column("head", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("lag", BigInteger, nullable=False),
    Column("angle", Double, nullable=False),
    Column("truncation", Double, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("payload_digest", Text, nullable=False),
    Column("is_consented", Boolean, nullable=False),
    Column("let_go_at", BigInteger),
    Index("updates_by_sequence", "subspace", "sequence", unique=True),
    Index("updates_by_state", "subspace", "state", "sequence"),
    Index("updates_by_task", "subspace", "task_id", "sequence"),
    Index("updates_by_payload", "payload_digest"),
    Index("updates_by_let_go", "subspace", "let_go_at", "state"),
)
"""Digests stay when a payload is let go of; ``let_go_at`` says at which version that was."""

refused_updates = Table(
    "refused_updates",
    tables,
    Column("subspace", Name, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("update_id", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    *_of_a_push(),
    Column("reason", Text, nullable=False),
)
"""The last pushes of each subspace that were refused; sequences are those of ``updates``."""

tasks = Table(
    "tasks",
    tables,
    Column("subspace", Name, primary_key=True),
    Column("task_id", Name, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("newest_update_id", Name, nullable=False),
    Column("update_id", Name),
    Column("cumulative_drift", Double, nullable=False),
)
"""Every task that was ever pushed; ``update_id`` is what the current version holds of it."""

versions = Table(
    "versions",
    tables,
    Column("subspace", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("is_kept", Boolean, nullable=False),
    Column("subspace_digest", Text, nullable=False),
    Column("subspace_bytes", BigInteger, nullable=False),
    Column("tasks_digest", Text, nullable=False),
    Column("tasks_bytes", BigInteger, nullable=False),
    Column("rotation_digest", Text, nullable=False),
    Column("rotation_bytes", BigInteger, nullable=False),
    Column("drift", LargeBinary, nullable=False),
    Column("event", Text, nullable=False),
    Column("report", Text, nullable=False),
)
"""Digests stay when a version is compacted; ``is_kept`` says whether their payloads do."""

small_blobs = Table(
    "small_blobs",
    tables,
    Column("digest", Text, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)
"""Small payloads lie here and not in files: many updates then cost one flush of the disk."""

tokens = Table(
    "tokens",
    tables,
    Column("token_id", Name, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("secret_digest", Text, nullable=False, unique=True),
    Column("principal", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("subspaces", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

audit = Table(
    "audit",
    tables,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("principal", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subspace", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

_RECORD_FIELDS: Final = (
    "update_id",
    "task_id",
    "worker_id",
    "owner",
    "base_version",
    "content_digest",
    "update_bytes",
    "head_bytes",
    "num_samples",
    "reason",
    "version",
    "is_consented",
    "let_go_at",
)
"""Fields of a record that are columns as they are."""

_REFUSED_FIELDS: Final = (
    "update_id",
    "task_id",
    "worker_id",
    "owner",
    "base_version",
    "content_digest",
    "update_bytes",
    "reason",
)
"""The same, of a push that was refused."""

_TOKEN_FIELDS: Final = ("token_id", "principal", "role")
_TOKEN_TIMES: Final = ("created_at", "expires_at", "revoked_at")


def update_to_row(described: DescribedUpdate) -> dict[str, Any]:
    """Turn a new update into a row of ``updates``; subspace and sequence are given by the store."""
    record = described.record
    row = {name: getattr(record, name) for name in _RECORD_FIELDS} | asdict(record.mark)
    return row | {
        "pushed_at": record.pushed_at.timestamp(),
        "scores": to_json(record.scores),
        "head": to_json(asdict(record.head)),
        "state": record.state.value,
        "metadata": described.metadata,
        "payload_digest": described.payload_digest,
    }


def record_from_row(row: Row[Any]) -> UpdateRecord:
    """Turn a row of ``updates`` into a record."""
    head = json.loads(row.head)
    return UpdateRecord(
        sequence=row.sequence,
        pushed_at=from_seconds(row.pushed_at),
        scores=json.loads(row.scores),
        head=Head({}, head["task_type"], head["num_labels"], tuple(head["label_names"])),
        state=UpdateState(row.state),
        mark=MergeMark(row.lag, row.angle, row.truncation),
        **{name: getattr(row, name) for name in _RECORD_FIELDS},
    )


def refused_to_row(record: UpdateRecord) -> dict[str, Any]:
    """Turn a push that was refused into a row of ``refused_updates``; the subspace is the store's."""
    row: dict[str, Any] = {name: getattr(record, name) for name in _REFUSED_FIELDS}
    return row | {"pushed_at": record.pushed_at.timestamp(), "sequence": record.sequence}


def refused_from_row(row: Row[Any]) -> UpdateRecord:
    """Turn a row of ``refused_updates`` into a record."""
    fields = {name: getattr(row, name) for name in _REFUSED_FIELDS}
    record = refused_record(pushed_at=from_seconds(row.pushed_at), **fields)
    return replace(record, sequence=row.sequence)


def token_to_row(record: TokenRecord) -> dict[str, Any]:
    """Turn a token into a row of ``tokens``; its number is given by the catalog."""
    token = record.token
    row: dict[str, Any] = {name: getattr(token, name) for name in _TOKEN_FIELDS}
    times = {name: _to_seconds(getattr(token, name)) for name in _TOKEN_TIMES}
    subspaces_json = json.dumps(token.subspaces)
    return row | times | {"subspaces": subspaces_json, "secret_digest": record.secret_digest}


def token_from_row(row: Row[Any]) -> Token:
    """Turn a row of ``tokens`` into a token."""
    return Token(
        token_id=row.token_id,
        principal=row.principal,
        role=row.role,
        subspaces=tuple(json.loads(row.subspaces)),
        created_at=from_seconds(row.created_at),
        expires_at=None if row.expires_at is None else from_seconds(row.expires_at),
        revoked_at=None if row.revoked_at is None else from_seconds(row.revoked_at),
    )


def audit_to_row(entry: AuditEntry) -> dict[str, Any]:
    """Turn a line of the audit log into a row; its sequence is given by the catalog."""
    return asdict(entry) | {"at": entry.at.timestamp()}


def audit_from_row(row: Row[Any]) -> AuditEntry:
    """Turn a row of ``audit`` into a line."""
    return AuditEntry(**{**row._asdict(), "at": from_seconds(row.at)})


def from_seconds(seconds: float) -> datetime:
    """Return the time that is so many seconds after 1970."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _to_seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
