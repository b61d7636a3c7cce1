"""Webhooks: where a task's end is told, and the outbox that tells it."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    sql = Path(__file__).parent.parent / "sql" / "0004_webhooks.sql"
    for statement in sql.read_text(encoding="utf-8").split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
