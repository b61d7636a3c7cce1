"""Every attempt keeps the id of its Ray task."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and write it where a worker tells of itself."""
    sql = (Path(__file__).parent.parent / "sql" / "0019_ray_tasks.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
