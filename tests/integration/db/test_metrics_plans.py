"""What /metrics counts is read by partial indexes, however many tasks have finished."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.db.engine import driver, make_engine
from rayloom.db.metrics import read_counts, read_totals
from rayloom.db.settings import DatabaseSettings

FINISHED = 20_000


async def _fill(engine: AsyncEngine) -> None:
    user = uuid7()
    async with driver(engine) as connection:
        await connection.execute("INSERT INTO users (id, name) VALUES ($1::uuid, $1::text)", str(user))
        await connection.execute(
            "INSERT INTO tasks (id, user_id, title, status, priority, result, created_at, finished_at) "
            "SELECT gen_random_uuid(), $1, 't', CASE WHEN n <= 5 THEN 'PROCESSING' ELSE 'COMPLETED' END, 5, "
            "CASE WHEN n > 5 THEN '1'::jsonb END, now(), CASE WHEN n > 5 THEN now() END "
            f"FROM generate_series(1, {FINISHED}) n",
            user,
        )
        await connection.execute("VACUUM (ANALYZE) tasks, sub_tasks")


async def test_counts_for_metrics_do_not_scan_tasks(database: DatabaseSettings) -> None:
    engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=0, name="explain")
    await _fill(engine)
    plans: list[str] = []

    def hear(_connection: object, message: Any) -> None:
        plans.append(message.message)

    async with driver(engine) as connection:
        await connection.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_level = notice; "
            "SET client_min_messages = notice"
        )
        connection.add_log_listener(hear)
    counts, totals = await read_counts(engine), await read_totals(engine)
    async with driver(engine) as connection:
        connection.remove_log_listener(hear)
    await engine.dispose()
    assert counts.tasks["PROCESSING"] == 5
    assert "COMPLETED" not in counts.tasks
    assert totals.tasks >= 0
    told = "\n".join(plans)
    assert "ix_tasks_live" in told
    assert not re.search(r"Seq Scan on tasks\b", told), told
