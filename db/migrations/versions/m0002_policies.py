"""What follows a failure, approval, and whose result may be kept: columns, and the functions that know them."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and put the functions in the place of those before."""
    sql = Path(__file__).parent.parent / "sql" / "0002_policies.sql"
    for statement in sql.read_text(encoding="utf-8").split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
