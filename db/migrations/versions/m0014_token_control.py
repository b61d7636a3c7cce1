"""Calls that their callers left count for something, and what a budget kept from being planned can be planned again."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Frozen as of this migration; a test holds the live guards against `rayloom.dag.states`.
TASK_MOVES = (
    "FAILED>PENDING FAILED>PROCESSING PENDING>CANCELLED PENDING>FAILED PENDING>SPLITTING PROCESSING>CANCELLED "
    "PROCESSING>COMPLETED PROCESSING>FAILED READY>CANCELLED READY>FAILED READY>PROCESSING SPLITTING>CANCELLED "
    "SPLITTING>FAILED SPLITTING>READY"
)


def upgrade() -> None:
    """Replace the functions that know what is new, and let a FAILED task be PENDING again."""
    sql = (Path(__file__).parent.parent / "sql" / "0014_token_control.sql").read_text(encoding="utf-8")
    for statement in sql.split("\n----\n"):
        op.get_bind().exec_driver_sql(statement)
    op.get_bind().exec_driver_sql("DROP TRIGGER tasks_transitions ON tasks")
    op.get_bind().exec_driver_sql(
        "CREATE TRIGGER tasks_transitions BEFORE UPDATE OF status ON tasks FOR EACH ROW "
        "WHEN (OLD.status <> NEW.status AND (OLD.status || '>' || NEW.status) <> ALL "
        f"('{{{','.join(TASK_MOVES.split())}}}'::text[])) EXECUTE FUNCTION refuse_transition()"
    )
