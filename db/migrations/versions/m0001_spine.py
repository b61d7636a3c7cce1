"""The spine: tables, guards and the functions of the engine."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Frozen as of this migration; a test holds the live guards against `rayloom.dag.states`.
TASK_MOVES = (
    "FAILED>PROCESSING PENDING>CANCELLED PENDING>FAILED PENDING>SPLITTING PROCESSING>CANCELLED PROCESSING>COMPLETED "
    "PROCESSING>FAILED READY>CANCELLED READY>FAILED READY>PROCESSING SPLITTING>CANCELLED SPLITTING>FAILED "
    "SPLITTING>READY"
)
SUBTASK_MOVES = (
    "AWAITING_APPROVAL>BLOCKED AWAITING_APPROVAL>CANCELLED AWAITING_APPROVAL>QUEUED BLOCKED>QUEUED FAILED>BLOCKED "
    "FAILED>CANCELLED FAILED>QUEUED PENDING>CANCELLED PENDING>READY QUEUED>CANCELLED QUEUED>RUNNING "
    "READY>AWAITING_APPROVAL READY>CANCELLED READY>QUEUED READY>SKIPPED RUNNING>CANCELLED RUNNING>COMPLETED "
    "RUNNING>FAILED SKIPPED>READY"
)


def upgrade() -> None:
    """Create everything."""
    sql = Path(__file__).parent.parent / "sql"
    for name in ("0001_tables.sql", "0001_functions.sql"):
        for statement in (sql / name).read_text(encoding="utf-8").split("\n----\n"):
            op.get_bind().exec_driver_sql(statement)
    for table, moves in (("tasks", TASK_MOVES), ("sub_tasks", SUBTASK_MOVES)):
        # The legal pairs stand in the trigger's condition: a legal move costs no function call.
        op.get_bind().exec_driver_sql(
            f"CREATE TRIGGER {table}_transitions BEFORE UPDATE OF status ON {table} FOR EACH ROW "
            f"WHEN (OLD.status <> NEW.status AND (OLD.status || '>' || NEW.status) <> ALL "
            f"('{{{','.join(moves.split())}}}'::text[])) EXECUTE FUNCTION refuse_transition()"
        )
