"""What a model is told, and what it is given with its claim."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and replace the function that knows them."""
    sql = (Path(__file__).parent.parent / "sql" / "0011_thinking.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
