"""The ledger of the calls of models: what was reserved and used, by whom."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make its tables and add what they come to."""
    sql = (Path(__file__).parent.parent / "sql" / "0010_model_calls.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
