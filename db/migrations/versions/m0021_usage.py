"""Attempts that used tokens name their user, so that the usage of one user is read by an index."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, its index, and the trigger that fills it."""
    sql = (Path(__file__).parent.parent / "sql" / "0021_usage.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
