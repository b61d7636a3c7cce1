"""The calls of models that planned a task are found by the task."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.get_bind().exec_driver_sql(
        "CREATE INDEX ix_model_calls_task_id ON model_calls (task_id) WHERE task_id IS NOT NULL AND sub_task_id IS NULL"
    )
