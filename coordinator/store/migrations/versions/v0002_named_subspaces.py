"""Schema version 2: named subspaces, versions in a chain of digests, owner, tokens, audit log."""

import sqlalchemy as sa
from alembic import op

from coordinator.store.migrations.first_release import FirstRelease

revision = "0002"
down_revision = "0001"

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables anew, and take what the first release kept into the subspace ``default``."""
    rows = op.get_bind()
    before = FirstRelease.read(rows)
    for table in ("tasks", "versions", "updates", "workers", "facts"):
        op.drop_table(table)
    _create_tables()
    before.write(rows, op.get_context().config.attributes["folder"])  # type: ignore[union-attr]


def _create_tables() -> None:
    op.create_table("facts", _text("name", primary_key=True), _text("value"))
    op.create_table(
        "owner",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        *map(_integer, ("fence", "pid")),
        *map(_text, ("holder", "host", "boot_id", "started", "pid_namespace")),
        *map(_float, ("lease_seconds", "expires_at", "expires_since_boot")),
    )
    op.create_table("subspaces", _name("name"), sa.Column("fingerprint", sa.Text))
    op.create_table(
        "workers", _name("subspace"), _name("worker_id"), _text("owner"), _integer("lease_epoch")
    )
    _create_updates()
    op.create_table(
        "tasks",
        *map(_name, ("subspace", "task_id")),
        _text("owner"),
        sa.Column("newest_update_id", Name, nullable=False),
        sa.Column("update_id", Name),
        _float("cumulative_drift"),
    )
    _create_versions()
    op.create_table(
        "small_blobs",
        _text("digest", primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tokens",
        _name("token_id"),
        _integer("number"),
        sa.Column("secret_digest", sa.Text, nullable=False, unique=True),
        *map(_text, ("principal", "role", "subspaces")),
        _float("created_at"),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        _float("at"),
        *map(_text, ("principal", "action", "subspace", "subject", "digest", "detail")),
    )


def _create_updates() -> None:
    op.create_table(
        "updates",
        *map(_name, ("subspace", "update_id")),
        *map(_integer, ("sequence", "base_version", "update_bytes", "head_bytes", "num_samples")),
        *map(_integer, ("version", "lag")),
        *map(_float, ("pushed_at", "angle", "truncation")),
        *map(_text, ("worker_id", "owner", "content_digest", "scores", "head", "state", "reason")),
        *map(_text, ("metadata", "payload_digest")),
        sa.Column("task_id", Name, nullable=False),
        sa.Index("updates_by_sequence", "subspace", "sequence", unique=True),
        sa.Index("updates_by_state", "subspace", "state", "sequence"),
        sa.Index("updates_by_task", "subspace", "task_id", "sequence"),
        sa.Index("updates_by_payload", "payload_digest"),
    )


def _create_versions() -> None:
    op.create_table(
        "versions",
        _name("subspace"),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        *map(_text, ("digest", "metric", "subspace_digest", "tasks_digest", "rotation_digest")),
        *map(_text, ("event", "report")),
        sa.Column("is_kept", sa.Boolean, nullable=False),
        *map(_integer, ("subspace_bytes", "tasks_bytes", "rotation_bytes")),
        sa.Column("drift", sa.LargeBinary, nullable=False),
    )


def _name(name: str) -> "sa.Column[str]":
    return sa.Column(name, Name, primary_key=True, nullable=False)


def _text(name: str, *, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, primary_key=primary_key, nullable=False)


def _integer(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=False)


def _float(name: str) -> "sa.Column[float]":
    return sa.Column(name, sa.Double, nullable=False)
