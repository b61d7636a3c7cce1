"""What is true of the record between any two commits, as queries that find where it is not. ``$1``: whose tasks."""

from __future__ import annotations

from typing import Final

from rayloom.dag.states import SUBTASK_MOVES, TASK_MOVES, legal_pairs


def _array(pairs: list[str]) -> str:
    return "'{" + ",".join(pairs) + "}'::text[]"


_STEPS: Final = """
    SELECT e.*, lag(e.to_status) OVER (PARTITION BY e.task_id, e.kind, e.subtask ORDER BY e.id) AS before
    FROM task_events e JOIN tasks t ON t.id = e.task_id WHERE t.user_id = $1 AND e.kind IN ('task', 'subtask')
"""

_LAST: Final = """
    SELECT DISTINCT ON (e.task_id, e.kind, e.subtask) e.* FROM task_events e JOIN tasks t ON t.id = e.task_id
    WHERE t.user_id = $1 AND e.kind IN ('task', 'subtask') ORDER BY e.task_id, e.kind, e.subtask, e.id DESC
"""

RULES: Final = {
    "a task counts its open and blocked subtasks rightly": """
        SELECT t.id, t.status, t.open_count, t.blocked_count, c.* FROM tasks t CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE s.finished_at IS NULL) AS really_open,
                count(*) FILTER (WHERE s.status = 'BLOCKED') AS really_blocked, count(*) AS really
            FROM sub_tasks s WHERE s.parent_id = t.id
        ) c
        WHERE t.user_id = $1 AND (t.open_count, t.blocked_count, t.subtask_count)
            <> (c.really_open, c.really_blocked, c.really)""",
    "a subtask counts the dependencies that it waits for": """
        SELECT s.id, s.key, s.status, s.pending_dependencies, c.left FROM sub_tasks s CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE p.status <> 'COMPLETED') AS left
            FROM task_dependencies d JOIN sub_tasks p ON p.id = d.depends_on_id WHERE d.sub_task_id = s.id
        ) c
        WHERE s.user_id = $1 AND s.status NOT IN ('SKIPPED', 'CANCELLED') AND s.pending_dependencies <> c.left""",
    "nothing starts before what it depends on is COMPLETED": """
        SELECT s.key, s.status, p.key, p.status FROM sub_tasks s
        JOIN task_dependencies d ON d.sub_task_id = s.id JOIN sub_tasks p ON p.id = d.depends_on_id
        WHERE s.user_id = $1 AND p.status <> 'COMPLETED'
            AND s.status IN ('QUEUED', 'RUNNING', 'FAILED', 'COMPLETED', 'BLOCKED')""",
    "what waits for nothing waits no longer": """
        SELECT s.key FROM sub_tasks s WHERE s.user_id = $1 AND s.status = 'READY' AND s.pending_dependencies = 0""",
    "what depends on something BLOCKED is SKIPPED": """
        SELECT s.key, s.status FROM sub_tasks s
        JOIN task_dependencies d ON d.sub_task_id = s.id JOIN sub_tasks p ON p.id = d.depends_on_id
        WHERE s.user_id = $1 AND p.status IN ('BLOCKED', 'SKIPPED') AND s.status NOT IN ('SKIPPED', 'CANCELLED')""",
    "a task with nothing open is closed": """
        SELECT t.id FROM tasks t WHERE t.user_id = $1 AND t.status = 'PROCESSING' AND t.open_count = 0""",
    "an attempt succeeds once, and its subtask is then COMPLETED": """
        SELECT s.key, s.status, s.attempt, array_agg(l.attempt) FROM sub_tasks s
        JOIN execution_logs l ON l.sub_task_id = s.id AND l.status = 'COMPLETED' WHERE s.user_id = $1
        GROUP BY s.id HAVING count(*) > 1 OR s.status <> 'COMPLETED' OR s.attempt <> max(l.attempt)""",
    "a COMPLETED subtask has the log of its last attempt": """
        SELECT s.key FROM sub_tasks s WHERE s.user_id = $1 AND s.status = 'COMPLETED' AND NOT EXISTS (
            SELECT 1 FROM execution_logs l
            WHERE l.sub_task_id = s.id AND l.attempt = s.attempt AND l.status = 'COMPLETED')""",
    "every event goes on from the one before": f"""
        SELECT e.id, e.kind, e.subtask, e.before, e.from_status, e.to_status FROM ({_STEPS}) e
        WHERE e.from_status IS DISTINCT FROM
            CASE WHEN e.before IS NULL AND e.kind = 'subtask' THEN 'PENDING' ELSE e.before END""",
    "every event is a legal transition": f"""
        SELECT e.id, e.kind, e.subtask, e.from_status, e.to_status FROM ({_STEPS}) e
        WHERE e.from_status <> e.to_status AND e.from_status || '>' || e.to_status <> ALL (
            CASE e.kind WHEN 'task' THEN {_array(legal_pairs(TASK_MOVES))}
            ELSE {_array(legal_pairs(SUBTASK_MOVES))} END)""",
    "the events of a subtask lead to where it is": f"""
        SELECT s.key, s.status, l.to_status FROM sub_tasks s
        LEFT JOIN ({_LAST}) l ON l.task_id = s.parent_id AND l.subtask = s.key
        WHERE s.user_id = $1 AND s.status IS DISTINCT FROM l.to_status""",
    "the events of a task lead to where it is": f"""
        SELECT t.id, t.status, l.to_status FROM tasks t LEFT JOIN ({_LAST}) l ON l.task_id = t.id AND l.kind = 'task'
        WHERE t.user_id = $1 AND t.status IS DISTINCT FROM l.to_status""",
    "nothing happens to a subtask after its task has ended": """
        SELECT e.id, e.subtask, e.to_status FROM task_events e JOIN tasks t ON t.id = e.task_id
        WHERE t.user_id = $1 AND e.id > (SELECT min(f.id) FROM task_events f WHERE f.task_id = t.id AND f.kind = 'task'
            AND f.to_status IN ('COMPLETED', 'FAILED', 'CANCELLED'))""",
}
