"""The counts of /metrics are read by partial indexes, however many tasks have finished."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.db.engine import driver, make_engine
from rayloom.db.metrics import read_counts, read_totals
from rayloom.db.settings import DatabaseSettings
from tests.integration.databases import administer

FINISHED = 20_000
USER = uuid7()
FILL = (
    f"INSERT INTO users (id, name) VALUES ('{USER}', 'user')",
    f"""
    INSERT INTO tasks (id, user_id, title, status, priority, result, created_at, finished_at)
    SELECT gen_random_uuid(), '{USER}', 't', CASE WHEN n <= 5 THEN 'PROCESSING' ELSE 'COMPLETED' END, 5,
        CASE WHEN n > 5 THEN '1'::jsonb END, now(), CASE WHEN n > 5 THEN now() END
    FROM generate_series(1, {FINISHED}) n""",
    "VACUUM (ANALYZE) tasks, sub_tasks",
)


async def _scans_of_tasks(engine: AsyncEngine) -> tuple[int, int]:
    """Count the sequential scans of ``tasks``, and those of its index of unfinished ones."""
    async with driver(engine) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        whole = await connection.fetchval("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'tasks'")
        by_index = await connection.fetchval(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'ix_tasks_live'"
        )
    return int(whole), int(by_index)


async def test_counts_for_metrics_do_not_scan_tasks(database: DatabaseSettings) -> None:
    engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=0, name="count")
    await administer(database.url.get_secret_value(), *FILL)
    whole, by_index = await _scans_of_tasks(engine)
    counts, totals = await read_counts(engine), await read_totals(engine)
    assert await _scans_of_tasks(engine) == (whole, by_index + 1)
    await engine.dispose()
    assert counts.tasks["PROCESSING"] == 5
    assert "COMPLETED" not in counts.tasks
    assert totals.tasks >= 0
