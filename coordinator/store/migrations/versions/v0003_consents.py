"""Schema version 3: consents that last, payloads that are let go of, pushes that were refused."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add what is new; until now an update that waits with a reason was one that was replayed."""
    consented = sa.Column("is_consented", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("updates", consented)
    op.add_column("updates", sa.Column("let_go_at", sa.BigInteger))
    op.create_index("updates_by_let_go", "updates", ["subspace", "let_go_at", "state"])
    updates = sa.table("updates", *map(sa.column, ("is_consented", "state", "reason")))
    replayed = sa.and_(updates.c.state == "pending", updates.c.reason != "")
    op.execute(sa.update(updates).where(replayed).values(is_consented=sa.true()))
    op.create_table(
        "refused_updates",
        sa.Column("subspace", Name, primary_key=True, nullable=False),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        *map(_text, ("update_id", "task_id", "worker_id", "owner", "content_digest", "reason")),
        *map(_integer, ("base_version", "update_bytes")),
        sa.Column("pushed_at", sa.Double, nullable=False),
    )


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=False)


def _integer(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=False)
