"""What is true of the record between any two commits, as queries that find where it is not. ``$1``: whose tasks."""

from __future__ import annotations

from typing import Final

from rayloom.dag.states import SUBTASK_MOVES, TASK_MOVES, legal_pairs


def _array(pairs: list[str]) -> str:
    return "'{" + ",".join(pairs) + "}'::text[]"


_DONE: Final = "(p.status = 'COMPLETED' OR (p.status = 'BLOCKED' AND p.stand_in IS NOT NULL))"
"""What those that wait for ``p`` need not wait for any more."""

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
            <> (c.really_open + (t.growth IS NOT NULL)::int, c.really_blocked, c.really)""",
    "a subtask counts the dependencies that it waits for": f"""
        SELECT s.id, s.key, s.status, s.pending_dependencies, c.left FROM sub_tasks s CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE NOT {_DONE}) AS left
            FROM task_dependencies d JOIN sub_tasks p ON p.id = d.depends_on_id WHERE d.sub_task_id = s.id
        ) c
        WHERE s.user_id = $1 AND s.status NOT IN ('SKIPPED', 'CANCELLED') AND s.pending_dependencies <> c.left""",
    "what is SKIPPED is held by something BLOCKED": """
        SELECT s.key FROM sub_tasks s WHERE s.user_id = $1 AND s.status = 'SKIPPED' AND NOT EXISTS (
            SELECT FROM task_dependencies d JOIN sub_tasks p ON p.id = d.depends_on_id
            WHERE d.sub_task_id = s.id AND (p.status = 'SKIPPED' OR (p.status = 'BLOCKED' AND p.stand_in IS NULL)))""",
    "what can never be retried has a settled letter": """
        SELECT s.key FROM sub_tasks s JOIN dead_letters l ON l.id = s.id
        WHERE s.user_id = $1 AND s.status = 'BLOCKED' AND (s.stand_in IS NOT NULL OR s.attempt = 0)
            AND l.settled_at IS NULL""",
    "a letter is that of a BLOCKED subtask, unless it was retried": """
        SELECT s.key, s.status, l.status FROM sub_tasks s LEFT JOIN dead_letters l ON l.id = s.id
        WHERE s.user_id = $1
            AND (s.status = 'BLOCKED') IS DISTINCT FROM coalesce(l.status IN ('open', 'discarded'), false)""",
    "nothing starts before what it depends on is done": f"""
        SELECT s.key, s.status, p.key, p.status FROM sub_tasks s
        JOIN task_dependencies d ON d.sub_task_id = s.id JOIN sub_tasks p ON p.id = d.depends_on_id
        WHERE s.user_id = $1 AND NOT {_DONE}
            AND s.status IN ('AWAITING_APPROVAL', 'QUEUED', 'RUNNING', 'FAILED', 'COMPLETED', 'BLOCKED')""",
    "what waits for nothing waits no longer": """
        SELECT s.key FROM sub_tasks s WHERE s.user_id = $1 AND s.status = 'READY' AND s.pending_dependencies = 0""",
    "what depends on something BLOCKED that it can't go on without is SKIPPED": f"""
        SELECT s.key, s.status FROM sub_tasks s
        JOIN task_dependencies d ON d.sub_task_id = s.id JOIN sub_tasks p ON p.id = d.depends_on_id
        WHERE s.user_id = $1 AND p.status IN ('BLOCKED', 'SKIPPED') AND NOT {_DONE}
            AND s.status NOT IN ('SKIPPED', 'CANCELLED')""",
    "a task with nothing open is closed": """
        SELECT t.id FROM tasks t WHERE t.user_id = $1 AND t.status = 'PROCESSING' AND t.open_count = 0""",
    "a COMPLETED task goes without nothing but what is missing or superseded, and a FAILED one is so for a reason": """
        SELECT t.id, t.status FROM tasks t CROSS JOIN LATERAL (
            SELECT count(*) AS n FROM sub_tasks p
            WHERE p.parent_id = t.id AND p.status = 'BLOCKED' AND p.stand_in IS NULL AND NOT p.superseded
        ) b
        WHERE t.user_id = $1 AND ((t.status = 'COMPLETED' AND b.n > 0)
            OR (t.status = 'FAILED' AND t.error ->> 'code' = 'SUBTASKS_BLOCKED' AND b.n = 0))""",
    "the letter of what is superseded is put away": """
        SELECT s.key, l.status FROM sub_tasks s JOIN dead_letters l ON l.id = s.id
        WHERE s.user_id = $1 AND s.superseded AND s.status = 'BLOCKED' AND l.status <> 'discarded'""",
    "the plan is that of the subtasks": """
        SELECT t.id FROM tasks t WHERE t.user_id = $1 AND t.plan IS NOT NULL AND (
            SELECT array_agg(s.key ORDER BY s.execution_order) FROM sub_tasks s WHERE s.parent_id = t.id
        ) IS DISTINCT FROM (
            SELECT array_agg(p.of ->> 'id' ORDER BY p.place)
            FROM jsonb_array_elements(t.plan -> 'subtasks') WITH ORDINALITY AS p (of, place))""",
    "what wants approval starts with an approval": """
        SELECT s.key, s.status FROM sub_tasks s
        WHERE s.user_id = $1 AND s.require_approval AND s.attempt > 0 AND NOT EXISTS (
            SELECT 1 FROM task_events e WHERE e.task_id = s.parent_id AND e.kind = 'approval' AND e.subtask = s.key
                AND e.to_status = 'QUEUED')""",
    "only what wants approval waits for it, and what it waits with is not begun": """
        SELECT s.key, t.status FROM sub_tasks s JOIN tasks t ON t.id = s.parent_id
        WHERE s.user_id = $1 AND ((s.status = 'AWAITING_APPROVAL' AND NOT s.require_approval)
            OR (s.status = 'PENDING' AND t.status <> 'READY')
            OR (t.status = 'READY' AND s.status <> 'PENDING' AND NOT (s.status = 'COMPLETED' AND s.attempt = 0)))""",
    "each subtask is approved or rejected once": """
        SELECT e.task_id, e.subtask FROM task_events e JOIN tasks t ON t.id = e.task_id
        WHERE t.user_id = $1 AND e.kind = 'approval' AND e.from_status = 'AWAITING_APPROVAL'
        GROUP BY e.task_id, e.subtask HAVING count(*) > 1""",
    "only a subtask with a fallback ever runs one": """
        SELECT s.key FROM sub_tasks s WHERE s.user_id = $1
            AND (s.fallback_attempts <> '{}' OR s.on_fallback) AND s.fallback_tool IS NULL""",
    "an attempt succeeds once, and its subtask is then COMPLETED": """
        SELECT s.key, s.status, s.attempt, array_agg(l.attempt) FROM sub_tasks s
        JOIN execution_logs l ON l.sub_task_id = s.id AND l.status = 'COMPLETED' WHERE s.user_id = $1
        GROUP BY s.id HAVING count(*) > 1 OR s.status <> 'COMPLETED' OR s.attempt <> max(l.attempt)""",
    "a COMPLETED subtask has the log of its last attempt": """
        SELECT s.key FROM sub_tasks s WHERE s.user_id = $1 AND s.status = 'COMPLETED' AND s.attempt > 0 AND NOT EXISTS (
            SELECT 1 FROM execution_logs l
            WHERE l.sub_task_id = s.id AND l.attempt = s.attempt AND l.status = 'COMPLETED')""",
    "every event goes on from the one before": f"""
        SELECT e.id, e.kind, e.subtask, e.before, e.from_status, e.to_status FROM ({_STEPS}) e
        WHERE e.from_status IS DISTINCT FROM
            CASE WHEN e.before IS NULL AND e.kind = 'subtask' AND e.reason LIKE 'taken over%' THEN NULL
            WHEN e.before IS NULL AND e.kind = 'subtask' THEN 'PENDING' ELSE e.before END""",
    "what is taken over is COMPLETED from the first": f"""
        SELECT e.id, e.subtask, e.to_status FROM ({_STEPS}) e
        WHERE e.kind = 'subtask' AND e.from_status IS NULL AND e.to_status <> 'COMPLETED'""",
    "every event is a legal transition": f"""
        SELECT e.id, e.kind, e.subtask, e.from_status, e.to_status FROM ({_STEPS}) e
        WHERE e.from_status <> e.to_status AND e.from_status || '>' || e.to_status <> ALL (
            CASE e.kind WHEN 'task' THEN {_array(legal_pairs(TASK_MOVES))}
            ELSE {_array(legal_pairs(SUBTASK_MOVES))} END)""",
    "the events of a subtask lead to where it is": f"""
        SELECT s.key, s.status, l.to_status FROM sub_tasks s
        LEFT JOIN ({_LAST}) l ON l.task_id = s.parent_id AND l.subtask = s.key
        WHERE s.user_id = $1 AND s.status <> coalesce(l.to_status, 'PENDING')""",
    "the events of a task lead to where it is": f"""
        SELECT t.id, t.status, l.to_status FROM tasks t LEFT JOIN ({_LAST}) l ON l.task_id = t.id AND l.kind = 'task'
        WHERE t.user_id = $1 AND t.status IS DISTINCT FROM l.to_status""",
    "nothing happens to a subtask after its task has ended, unless that is retried": """
        SELECT e.id, e.subtask, e.to_status FROM (
            SELECT e.*, max(e.id) FILTER (WHERE e.kind = 'task') OVER (PARTITION BY e.task_id ORDER BY e.id) AS last_id
            FROM task_events e JOIN tasks t ON t.id = e.task_id WHERE t.user_id = $1
        ) e
        JOIN task_events f ON f.id = e.last_id
        WHERE e.kind = 'subtask' AND f.to_status IN ('COMPLETED', 'FAILED', 'CANCELLED')""",
}
