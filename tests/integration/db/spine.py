"""The engine's guarded statements in a few words, for the tasks of one user, and an audit of what they wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.db import attempts, growth, retries
from rayloom.db.attempts import Claimed, Committed, Ending
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import driver
from rayloom.db.growth import GrowingTask
from rayloom.db.settings import BlobSettings
from rayloom.db.submit import NewTask, Submitted, accept_plan, submit_task
from rayloom.db.task_moves import claim_tasks
from tests.integration.db.rules import RULES

TOOLS = {name: ToolView(name=name, schema={}, resources={"CPU": 1}) for name in "tu"}
TOOLS["s"] = ToolView(name="s", schema={}, resources={}, type="SKILL")
NODES = (NodeShape(total={"CPU": 4.0}, labels={}, count_max=1),)
BROKEN = ErrorInfo(code="BROKEN", error_class="transient", message="it broke", retryable=True)

Edges = Mapping[str, Sequence[str]]
"""Each subtask of a plan with those that it depends on."""


Policies = Mapping[str, JsonObject]
"""What some of them say besides."""

CONTINUE: JsonObject = {"on_failure": "continue"}
FALLBACK: JsonObject = {"on_failure": "fallback", "fallback": {"tool": "u", "input": {"from": "the fallback"}}}
ASKS: JsonObject = {"require_approval": True}


def default(value: Json) -> JsonObject:
    """With this in place of an output."""
    return {"on_failure": "default", "default": value}


def plan_of(edges: Edges, policies: Policies | None = None) -> VerifiedPlan:
    """A plan of subtasks that all call one tool."""
    more = policies or {}
    subtasks = [
        {"id": key, "type": "TOOL", "tool": "t", "depends_on": list(above), **more.get(key, {})}
        for key, above in edges.items()
    ]
    return verify(parse_plan({"subtasks": subtasks}), tools=TOOLS, nodes=NODES, model_available=True)


def outcome(value: Json = None, *, error: ErrorInfo | None = None, **more: Any) -> Outcome:
    """How an attempt ended: well, unless there is an error."""
    text = None if error else orjson.dumps(value).decode()
    fields: dict[str, Any] = {
        "verdict": "failed" if error else "succeeded", "output": text, "output_size": len(text or ""), "error": error,
        "started_at": 1_800_000_000.0, "finished_at": 1_800_000_000.5, "ray_task_id": "ray", "worker_id": "w",
    }  # fmt: skip
    return Outcome(**fields | more)


class Spine:
    """Tasks of one user, in the hands of one scheduler ``incarnation``."""

    def __init__(self, engine: AsyncEngine, user_id: UUID) -> None:
        self.engine, self.user_id = engine, user_id
        self.incarnation = uuid7()
        # It connects to no Redis before something large is written.
        self.blobs = BlobStore(engine, Redis(), BlobSettings(cache_ttl_s=0))

    @classmethod
    async def of_new_user(cls, engine: AsyncEngine) -> Spine:
        """For a user that nothing belongs to yet, in the hands of a scheduler that lives."""
        spine = cls(engine, uuid7())
        await spine.rows("INSERT INTO users (id, name) VALUES ($1, $2)", spine.user_id, f"user {spine.user_id}")
        await spine.rows("INSERT INTO schedulers (incarnation, actor) VALUES ($1, $2)", spine.incarnation, "a test")
        return spine

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        """The rows that a statement gives."""
        async with driver(self.engine) as connection:
            return list(await connection.fetch(sql, *arguments))

    async def submit(self, edges: Edges, policies: Policies | None = None, **more: Any) -> Submitted:
        """A new task with a plan."""
        plan = plan_of(edges, policies)
        new = NewTask(user_id=self.user_id, title="a task", prompt=None, priority=5, plan=plan, **more)
        return await submit_task(self.engine, self.blobs, new)

    async def begin(
        self, edges: Edges, policies: Policies | None = None, *, incarnation: UUID | None = None, **more: Any
    ) -> UUID:
        """A task whose plan has begun to run, and is not whole."""
        new = NewTask(user_id=self.user_id, title="a task", prompt="do it", priority=5, **more)
        task_id = (await submit_task(self.engine, self.blobs, new)).task_id
        life, meta = incarnation or self.incarnation, dict[str, Json](source="model")
        await claim_tasks(self.engine, incarnation=life, dead=(), limit=1000, busy=())
        plan = plan_of(edges, policies)
        await accept_plan(self.engine, self.blobs, task_id, plan, meta=meta, incarnation=life, grows=True)
        return task_id

    async def may_grow(self, task_id: UUID, replans: int) -> None:
        """It is as if a model had planned it."""
        await self.rows("UPDATE tasks SET replans_left = $2 WHERE id = $1", task_id, replans)

    async def growing(
        self, *, dead: Sequence[UUID] = (), incarnation: UUID | None = None, partial: bool = False
    ) -> list[GrowingTask]:
        """Take what is due to grow of this user; all of it, so that only one may do so at once."""
        taken = await growth.claim_growths(
            self.engine, incarnation=incarnation or self.incarnation, dead=dead, limit=1000, busy=(), partial=partial
        )
        return [task for task in taken if task.user_id == self.user_id]

    async def extend(
        self, task: GrowingTask, edges: Edges, *, incarnation: UUID | None = None, **how: Any
    ) -> Committed:
        """Add subtasks to a growing task; ``edges`` may name those that are there."""
        before = subtasks_of(task.plan)
        added = [{"id": key, "type": "TOOL", "tool": "t", "depends_on": list(above)} for key, above in edges.items()]
        known = {str(each["id"]) for each in before}
        plan = verify(parse_plan({"subtasks": [*before, *added]}), tools=TOOLS, nodes=NODES, done=known)
        options: dict[str, Any] = {"is_last": True, "goes_around": True, "meta": {}} | how
        return await growth.extend_plan(
            self.engine, self.blobs, task.task_id, plan, known=known, incarnation=incarnation or self.incarnation,
            **options,
        )  # fmt: skip

    async def ids(self, task_id: UUID) -> dict[str, str]:
        """The ids of a task's subtasks, by their keys."""
        rows = await self.rows("SELECT key, id FROM sub_tasks WHERE parent_id = $1", task_id)
        return {row["key"]: str(row["id"]) for row in rows}

    async def claim(self, task_id: UUID, *keys: str, running: bool = True) -> dict[str, Claimed]:
        """Take the leases of these subtasks, or of all that can be had."""
        ids = await self.ids(task_id)
        asked = [(ids[key], running) for key in keys or ids]
        return {one.key: one for one in await attempts.claim(self.engine, asked, incarnation=self.incarnation)}

    async def succeed(self, *claimed: Claimed, output: Json = None) -> Committed:
        """These attempts have succeeded."""
        return await attempts.complete(self.engine, [self.ending(one, outcome(output)) for one in claimed])

    async def fail(self, *claimed: Claimed, retry_in_s: float | None = None) -> Committed:
        """These attempts have failed, for good unless there is a wait for the next one."""
        return await attempts.complete(
            self.engine, [self.ending(one, outcome(error=BROKEN), retry_in_s=retry_in_s) for one in claimed]
        )

    async def retry(self, task_id: UUID, *keys: str) -> Committed:
        """Run these subtasks again, or all that are BLOCKED."""
        ids = await self.ids(task_id)
        wanted = [UUID(ids[key]) for key in keys or ids]
        return await retries.retry_letters(self.engine, wanted, reason="somebody asked")

    @staticmethod
    def ending(claimed: Claimed, how: Outcome, *, retry_in_s: float | None = None, spends: bool = True) -> Ending:
        """The end of an attempt."""
        return Ending(
            sub_task_id=claimed.sub_task_id, attempt=claimed.attempt, outcome=how, retry_in_s=retry_in_s, spends=spends
        )

    async def statuses(self, task_id: UUID) -> dict[str, str]:
        """The status of each subtask, by its key."""
        rows = await self.rows("SELECT key, status FROM sub_tasks WHERE parent_id = $1", task_id)
        return {row["key"]: row["status"] for row in rows}

    async def notes(self, task_id: UUID) -> dict[str, str]:
        """What the log of each subtask says in lines of its own."""
        rows = await self.rows(
            "SELECT subtask, string_agg(message, '; ' ORDER BY id) AS said FROM log_lines WHERE task_id = $1 "
            "GROUP BY subtask",
            task_id,
        )
        return {row["subtask"]: row["said"] for row in rows}

    async def task(self, task_id: UUID) -> Any:
        """The row of a task."""
        (row,) = await self.rows("SELECT * FROM tasks WHERE id = $1", task_id)
        return row

    async def subtask(self, task_id: UUID, key: str) -> Any:
        """The row of a subtask."""
        (row,) = await self.rows("SELECT * FROM sub_tasks WHERE parent_id = $1 AND key = $2", task_id, key)
        return row

    async def events(self, task_id: UUID, subtask: str | None = None) -> list[tuple[str | None, str | None]]:
        """The transitions of a task, or of one of its subtasks, in order."""
        rows = await self.rows(
            "SELECT from_status, to_status FROM task_events WHERE task_id = $1 AND kind = $2 "
            "AND subtask IS NOT DISTINCT FROM $3 ORDER BY id",
            task_id, "task" if subtask is None else "subtask", subtask,
        )  # fmt: skip
        return [(row["from_status"], row["to_status"]) for row in rows]

    async def audit(self) -> None:
        """Hold this user's part of the record against its rules."""
        for rule, sql in RULES.items():
            broken = [dict(row) for row in await self.rows(sql, self.user_id)]
            assert not broken, f"{rule}: {broken[:3]} of {len(broken)}"

    async def put_away(self) -> None:
        """End every task, so that what sweeps the whole record finds nothing of them any more."""
        await self.rows(
            "SELECT end_task(t.id, 'CANCELLED', NULL, 'put away') FROM tasks t WHERE t.user_id = $1", self.user_id
        )
