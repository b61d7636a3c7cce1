"""Reading the usage of a user costs what this user used, however much others did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.engine import driver, make_engine
from rayloom.db.settings import DatabaseSettings
from rayloom.db.usage import read_usage
from tests.integration.databases import administer

ME = UUID(int=1)
OTHERS = 100_000
"""Subtasks of other users, each with an attempt and a call of a model."""
IDLE = 3_000
"""Attempts of this user that used no tokens."""
RECENT, OLD = 200, 100
"""Attempts of this user that used tokens, today and long ago; each with a call of a model."""
TASK = "('00000000-0000-7000-8000-' || lpad(to_hex({}), 12, '0'))::uuid"
SUBTASK = "('00000000-0000-7000-9000-' || lpad(to_hex({}), 12, '0'))::uuid"
MINE = IDLE + RECENT + OLD
# The first subtasks are of this user, in tasks of 100.
FILL = (
    f"INSERT INTO users (id, name) VALUES ('{ME}', 'me')",
    f"INSERT INTO users (id, name) SELECT {TASK.format('n')}, 'user ' || n FROM generate_series(1, 20) n",
    f"""
    INSERT INTO tasks (id, user_id, title, status, priority, result, finished_at)
    SELECT {TASK.format("n")}, CASE WHEN n < {MINE // 100} THEN '{ME}' ELSE {TASK.format("1 + n % 20")} END, 't',
        'COMPLETED', 5, '1', now()
    FROM generate_series(0, {(MINE + OTHERS) // 100}) n""",
    f"""
    INSERT INTO sub_tasks (id, parent_id, user_id, key, name, task_type, status, execution_order, tool, timeout_s,
        max_retries, shape, score, output_result, attempt, started_at, finished_at)
    SELECT {SUBTASK.format("n")}, t.id, t.user_id, 's' || n, 's', 'TOOL', 'COMPLETED', 0, 't' || n % 2, 60, 3, 's', 1,
        '1', 1, now(), now()
    FROM generate_series(0, {MINE + OTHERS - 1}) n JOIN tasks t ON t.id = {TASK.format("n / 100")}""",
    f"""
    INSERT INTO execution_logs (sub_task_id, attempt, task_id, status, start_time, end_time, duration, tokens_used)
    SELECT {SUBTASK.format("n")}, 1, {TASK.format("n / 100")}, 'COMPLETED', x.at, x.at, 1,
        CASE WHEN n < {IDLE} THEN 0 ELSE 3 END
    FROM generate_series(0, {MINE + OTHERS - 1}) n CROSS JOIN LATERAL (
        SELECT now() - make_interval(days => CASE WHEN n BETWEEN {IDLE} AND {IDLE + OLD - 1} THEN 90 ELSE 0 END) AS at
    ) x""",
    """
    INSERT INTO model_calls (id, user_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens, reserved_usd,
        tokens_in, tokens_out, status, reserved_at, expires_at, settled_at)
    SELECT s.id, s.user_id, s.parent_id, s.id, 1, 'm', 'p', 9, 0, 5, 7, 'settled', l.start_time, now(), now()
    FROM sub_tasks s JOIN execution_logs l ON l.sub_task_id = s.id WHERE l.tokens_used > 0""",
    "VACUUM (ANALYZE) tasks, sub_tasks, execution_logs, model_calls",
)


@pytest.fixture(scope="module")
def filled(database: DatabaseSettings) -> DatabaseSettings:
    """The database, full of what others used."""
    asyncio.run(administer(database.url.get_secret_value(), "SET synchronous_commit = off", *FILL))
    return database


@pytest.fixture
async def one_connection(filled: DatabaseSettings) -> AsyncIterator[AsyncEngine]:
    """An engine whose only connection can hand over its own counters."""
    engine = make_engine(filled.primary_dsn(), pool_size=1, max_overflow=0, name="count")
    yield engine
    await engine.dispose()


async def _rows_read(engine: AsyncEngine) -> int:
    """Count the rows and index entries that were read of all our tables so far."""
    async with driver(engine) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        read = await connection.fetchval(
            "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables) "
            "+ (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
        )
    return int(read)


@pytest.mark.timeout(600)
async def test_usage_reads_only_rows_of_its_user(one_connection: AsyncEngine) -> None:
    before = await _rows_read(one_connection)
    usage = await read_usage(one_connection, user_id=ME, since=None, until=None)
    # An attempt, its call and the subtask of each.
    assert await _rows_read(one_connection) - before <= 5 * RECENT + OLD
    half = RECENT // 2
    assert [(row.model, row.tool, row.tokens_in, row.tokens_out) for row in usage.rows] == [
        (None, "t0", 3 * half, 0), ("m", "t0", 5 * half, 7 * half),
        (None, "t1", 3 * half, 0), ("m", "t1", 5 * half, 7 * half),
    ]  # fmt: skip


@pytest.mark.timeout(600)
async def test_usage_of_a_period_reads_only_attempts_of_it(one_connection: AsyncEngine) -> None:
    until = datetime.now(UTC) - timedelta(days=80)
    before = await _rows_read(one_connection)
    usage = await read_usage(one_connection, user_id=ME, since=until - timedelta(days=30), until=until)
    assert await _rows_read(one_connection) - before <= 5 * OLD + RECENT + OLD
    assert sum(row.tokens_in for row in usage.rows) == OLD * (3 + 5)
