"""Rows that a test needs, written as they would be found."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.db.engine import driver


class Rows:
    """Writes users, tasks, subtasks and attempts; ids are strings."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def user(self) -> str:
        user_id = uuid7()
        await self._write("INSERT INTO users (id, name) VALUES ($1, $2)", user_id, f"user-{user_id}")
        return str(user_id)

    async def task(self, user_id: str, *, tokens: int = 0) -> str:
        task_id = uuid7()
        await self._write(
            "INSERT INTO tasks (id, user_id, title, status, priority, tokens_used) "
            "VALUES ($1, $2, 'a task', 'PROCESSING', 5, $3)",
            task_id, user_id, tokens,
        )  # fmt: skip
        await self._write(
            "INSERT INTO token_totals AS t VALUES ($1, $2) "
            "ON CONFLICT (user_id) DO UPDATE SET tokens_used = t.tokens_used + excluded.tokens_used",
            user_id, tokens,
        )  # fmt: skip
        return str(task_id)

    async def subtask(self, user_id: str, task_id: str, *, status: str = "RUNNING", started_s_ago: float = 0) -> str:
        """A subtask that holds a lease: RUNNING, or QUEUED and handed over."""
        sub_task_id = uuid7()
        await self._write(
            "INSERT INTO sub_tasks (id, parent_id, user_id, key, name, task_type, status, execution_order, tool, "
            "timeout_s, max_retries, shape, score, attempt, incarnation, started_at) "
            "VALUES ($1, $2, $3, $5, 'a subtask', 'TOOL', $4, 0, 'core.noop', 60, 3, 'x', 0, 1, $1, "
            "CASE WHEN $4 = 'RUNNING' THEN now() - make_interval(secs => $6) END)",
            sub_task_id, task_id, user_id, status, str(sub_task_id), started_s_ago,
        )  # fmt: skip
        return str(sub_task_id)

    async def release(self, sub_task_id: str) -> None:
        """The lease of a QUEUED subtask is given back, and nobody is told."""
        await self._write("UPDATE sub_tasks SET incarnation = NULL WHERE id = $1", sub_task_id)

    async def attempt(self, task_id: str, *, started_s_ago: float, ended_s_ago: float, tokens: int = 0) -> None:
        """An attempt that has ended."""
        await self._write(
            "INSERT INTO execution_logs (sub_task_id, attempt, task_id, status, start_time, end_time, duration, "
            "tokens_used) VALUES ($1, 1, $2, 'COMPLETED', now() - make_interval(secs => $3), "
            "now() - make_interval(secs => $4), 1, $5)",
            uuid7(), task_id, started_s_ago, ended_s_ago, tokens,
        )  # fmt: skip

    async def _write(self, sql: str, *arguments: Any) -> None:
        async with driver(self._engine) as connection:
            await connection.execute(sql, *arguments)
