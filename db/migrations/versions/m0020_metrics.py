"""Unfinished tasks are counted by an index."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index of waiting tasks one of all unfinished ones."""
    sql = (Path(__file__).parent.parent / "sql" / "0020_metrics.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
