"""Webhooks can be cancelled, and say since when their host does not resolve."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Allow the status `cancelled`, and add the column and an index for lists of a user."""
    sql = (Path(__file__).parent.parent / "sql" / "0022_webhooks.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
