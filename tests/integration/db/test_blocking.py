"""Many that are blocked in one commit: what waits for them is walked once, and told which of them it waited for."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.engine import driver
from tests.integration.db.spine import Edges, Spine

LAYERS, WIDTH = 12, 20
DENSE: Edges = {
    f"l{layer}n{n}": [f"l{layer - 1}n{k}" for k in range(WIDTH)] if layer else []
    for layer in range(LAYERS)
    for n in range(WIDTH)
}
READS = """
SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::int FROM pg_stat_xact_user_tables WHERE relname = 'sub_tasks'
"""


async def test_what_is_below_is_walked_once_however_many_are_blocked(spine: Spine, engine: AsyncEngine) -> None:
    made = await spine.submit(DENSE)
    claimed = await spine.claim(made.task_id)
    await spine.fail(*claimed.values(), retry_in_s=600)
    async with driver(engine) as connection:
        await connection.execute("ANALYZE sub_tasks")
        transaction = connection.transaction()
        await transaction.start()
        # As in a large table: this one is small enough to be read as a whole each time.
        await connection.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
        )
        before = await connection.fetchval(READS)
        await connection.execute("SELECT block_subtasks($1::uuid[])", [one.sub_task_id for one in claimed.values()])
        reads = await connection.fetchval(READS) - before
        skipped = await connection.fetchval(
            "SELECT count(*) FROM sub_tasks WHERE parent_id = $1 AND status = 'SKIPPED'", made.task_id
        )
        await transaction.rollback()
    assert skipped == (LAYERS - 1) * WIDTH
    # Each once to be walked and once to be written; then each of the blocked looks at its own dependents.
    assert reads <= 2 * len(DENSE) + 2 * WIDTH * (WIDTH + 2)


async def test_each_is_told_of_one_that_it_really_waited_for(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"], "c": [], "d": ["c"], "e": ["d"], "both": ["b", "e"], "free": []})
    other = await spine.submit({"x": [], "y": ["x"]})
    claimed = await spine.claim(made.task_id) | await spine.claim(other.task_id)
    await spine.fail(*(claimed[key] for key in ("a", "c", "x")))
    told = await spine.rows(
        "SELECT subtask, reason FROM task_events WHERE task_id = ANY ($1) AND to_status = 'SKIPPED'",
        [made.task_id, other.task_id],
    )
    causes = {row["subtask"]: row["reason"].split()[2] for row in told}
    assert len(told) == len(causes)
    assert causes.pop("both") in ("a", "c")
    assert causes == {"b": "a", "d": "c", "e": "c", "y": "x"}
