"""Schema version 1: what the first release wrote, one subspace without a name."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of the first release."""
    op.create_table("facts", _text("name", primary_key=True), _text("value"))
    op.create_table("workers", _text("worker_id", primary_key=True), _integer("lease_epoch"))
    op.create_table(
        "updates",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("update_id", sa.Text, nullable=False, unique=True),
        *map(_text, ("task_id", "worker_id", "content_digest", "scores", "head", "state")),
        *map(_text, ("reason", "metadata", "blob")),
        *map(_integer, ("base_version", "update_bytes", "head_bytes", "num_samples", "version")),
        _integer("lag"),
        *map(_float, ("pushed_at", "angle", "truncation")),
    )
    op.create_table(
        "versions",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        *map(_text, ("metric", "subspace_blob", "tasks_blob", "event", "report")),
    )
    op.create_table(
        "tasks",
        _text("task_id", primary_key=True),
        sa.Column("update_id", sa.Text, sa.ForeignKey("updates.update_id"), nullable=False),
        _float("cumulative_drift"),
    )


def _text(name: str, *, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, primary_key=primary_key, nullable=False)


def _integer(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.Integer, nullable=False)


def _float(name: str) -> "sa.Column[float]":
    return sa.Column(name, sa.Float, nullable=False)
