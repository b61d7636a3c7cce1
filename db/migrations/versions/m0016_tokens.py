"""Token control: settling locks calls in one order, and granting ahead comes to an end."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the function that settles, and have a row only while it is granted ahead."""
    sql = (Path(__file__).parent.parent / "sql" / "0016_tokens.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
