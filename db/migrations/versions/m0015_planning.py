"""Planning: its calls are found by their task, and nobody keeps others from being planned."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index, and replace the function that takes prompts."""
    sql = (Path(__file__).parent.parent / "sql" / "0015_planning.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
