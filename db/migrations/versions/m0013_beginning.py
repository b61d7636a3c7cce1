"""Plans that begin before they are whole."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen what may be superseded, and replace the functions that know of it."""
    sql = (Path(__file__).parent.parent / "sql" / "0013_beginning.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
