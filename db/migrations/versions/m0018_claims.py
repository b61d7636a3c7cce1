"""What was claimed too early is unclaimed, and spends no number of an attempt."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the function that takes claims back."""
    sql = (Path(__file__).parent.parent / "sql" / "0018_claims.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
