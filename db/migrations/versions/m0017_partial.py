"""A plan that had begun and never became whole is gone on with by a retry."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the function that has a task planned again."""
    sql = (Path(__file__).parent.parent / "sql" / "0017_partial.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
