"""Circuit breakers that are not closed, and more memory for who ran out of it."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the function."""
    sql = (Path(__file__).parent.parent / "sql" / "0005_breakers.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
