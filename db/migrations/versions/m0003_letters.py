"""Dead letters: what is BLOCKED and why, kept by the statement that blocks it; and the way back."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything, with a letter for each subtask that is BLOCKED already."""
    sql = Path(__file__).parent.parent / "sql" / "0003_letters.sql"
    for statement in sql.read_text(encoding="utf-8").split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
