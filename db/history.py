"""What earlier attempts of a subtask decide about its next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayloom.dag.decision import BLOBS_AWAY, OUT_OF_MEMORY, OWN_TIMEOUTS, Past
from rayloom.dag.resources import ResourceShape
from rayloom.db.engine import Source, driver, dump_sorted

# Of one subtask by the key's index. What ran in a worker and was lost before its tool was called has the worker's id.
_PAST = """
    SELECT o.id, count(*) FILTER (WHERE l.error ->> 'code' = $2) AS starved, coalesce(min(l.place) FILTER (
        WHERE NOT coalesce(l.status = 'LOST' AND l.worker_id <> '' AND l.error ->> 'code' = ANY ($3), false)) - 1,
        count(l.*)) AS lost, coalesce(min(l.place) FILTER (
        WHERE NOT coalesce(l.status = 'LOST' AND l.error ->> 'code' = $4, false)) - 1, count(l.*)) AS without_blobs
    FROM unnest($1::uuid[]) AS o (id) LEFT JOIN LATERAL (
        SELECT e.status, e.worker_id, e.error, row_number() OVER (ORDER BY e.attempt DESC) AS place
        FROM execution_logs e WHERE e.sub_task_id = o.id
    ) l ON true GROUP BY o.id
"""


async def past(engine: Source, ids: Sequence[str]) -> dict[str, Past]:
    """How the attempts of these subtasks ended that are written down, as far as it decides about the next one."""
    async with driver(engine) as connection:
        rows = await connection.fetch(_PAST, list(ids), OUT_OF_MEMORY, list(OWN_TIMEOUTS), BLOBS_AWAY)
    return {
        str(row["id"]): Past(out_of_memory=row["starved"], lost=row["lost"], without_blobs=row["without_blobs"])
        for row in rows
    }


async def reshape(engine: Source, shapes: Mapping[tuple[str, int], ResourceShape]) -> int:
    """Give subtasks that wait for a retry, by (id, attempt), other resource shapes. Answers how many."""
    async with driver(engine) as connection:
        changed: int = await connection.fetchval(
            "SELECT reshape_failed($1::uuid[], $2, $3)",
            [id_ for id_, _ in shapes],
            [attempt for _, attempt in shapes],
            [dump_sorted(shape.as_json()) for shape in shapes.values()],
        )
    return changed
