"""What the tools of the MCP server do: each by the very functions that its route calls, for whoever owns the key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from starlette.requests import Request

from rayloom.dag.states import TASK_TERMINAL, SubtaskStatus, TaskStatus
from rayloom.dag.values import JsonObject
from rayloom.db import reads
from rayloom.db.keys import Principal
from rayloom.db.logs import LEVELS, LogFilter
from rayloom.db.reads import TaskDetails, TaskFilter
from rayloom.serve import cursors, shapes
from rayloom.serve.apart import inline_outputs, shown_result
from rayloom.serve.bodies import validated
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.gate import Call
from rayloom.serve.intake import idempotency_key
from rayloom.serve.mcp import arguments as given
from rayloom.serve.routes import tools
from rayloom.serve.routes.letters import BULK_TIMEOUT_S
from rayloom.serve.routes.logs import page_of_log
from rayloom.serve.routes.retries import RetryBody, retried
from rayloom.serve.routes.subtasks import found_subtask, page_of_subtasks
from rayloom.serve.routes.tasks import cancelled, found_details, page_of_tasks, take

GRACE_S: Final = 5.0
"""An answer that came in time may take so long on its way."""
PROGRESS_S: Final = 1.0
"""Progress is looked at no more often."""
FIRST_SUBTASKS: Final = 20
_SETTLED: Final = ("completed", "blocked", "skipped", "cancelled")

Tell = Callable[[float, float | None, str], Awaitable[None]]
"""Tells who waits of progress: so much, of how much, in words."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """One call of a tool: who asks, through which request, and how long it may take."""

    me: Principal
    request: Request
    call: Call
    timeout: asyncio.Timeout
    tell: Tell

    @property
    def deps(self) -> Deps:
        """The dependencies of this replica."""
        return deps_of(self.request)

    def allow(self, seconds: float) -> None:
        """Let the rest of this call take so long."""
        self.timeout.reschedule(asyncio.get_running_loop().time() + seconds)
        self.call.allow(seconds + GRACE_S)

    def wait_for(self, seconds: float, work_s: float) -> None:
        """Let it wait so long beside its work, among the streams. Raises Problem (503) where there are too many."""
        if seconds:
            self.call.become_stream()
        self.allow(seconds + work_s)


Run = Callable[[Asked, JsonObject], Awaitable[dict[str, Any]]]


async def submit_task(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """Submit a task, and wait for it if that was asked for."""
    own = {name: value for name, value in arguments.items() if name in given.HowToSubmit.model_fields}
    how = validated(own, given.HowToSubmit)
    key = idempotency_key(how.idempotency_key)
    document = {name: value for name, value in arguments.items() if name not in own}
    # First what may be refused: a task that is on disk is not to be answered with a refusal.
    asked.wait_for(how.wait_s, asked.deps.settings.submit_timeout_s)
    taken = await take(asked.deps, asked.me, document, size=asked.call.body_bytes, key=key)
    answer: dict[str, Any] = {"task_id": taken.task_id, "replayed": taken.replayed}
    if taken.secret is not None:
        answer["callback_secret"] = taken.secret
    if how.wait_s:
        await _end(asked, taken.task_id, how.wait_s)
        answer["task"] = await _shown(asked, taken.task_id)
        answer["status"] = answer["task"]["status"]
    else:
        answer["status"] = (await found_details(asked.deps, taken.task_id, asked.me.user_id, limit=0)).task.status
    return answer


async def get_task(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """A task and how far it is."""
    return await _shown(asked, validated(arguments, given.OneTask).task_id)


async def wait_for_task(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """Wait for a task's end."""
    body = validated(arguments, given.WaitForTask)
    asked.wait_for(body.timeout_s, asked.deps.settings.request_timeout_s)
    started_at = monotonic()
    ended = await _end(asked, body.task_id, body.timeout_s)
    waited_s = round(monotonic() - started_at, 3)
    return {"ended": ended, "waited_s": waited_s, "task": await _shown(asked, body.task_id)}


async def list_subtasks(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """A page of a task's subtasks, without their outputs."""
    body = validated(arguments, given.ListSubtasks)
    statuses = cursors.choices("status", body.status, SubtaskStatus)
    id_, rows, next_cursor = await page_of_subtasks(
        asked.deps, body.task_id, asked.me.user_id, statuses, limit=body.limit, cursor=body.cursor
    )
    return {"items": [shapes.subtask(id_, row, {}) for row in rows], "next_cursor": next_cursor}


async def get_result(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """What a task gave, or one subtask of it."""
    body = validated(arguments, given.GetResult)
    deps, user = asked.deps, asked.me.user_id
    if body.subtask is not None:
        id_, row, _ = await found_subtask(deps, body.task_id, user, body.subtask)
        one = shapes.subtask(id_, row, await inline_outputs(deps, [row]))
        return {
            "task_id": id_,
            "subtask": one["id"],
            "status": one["status"],
            "result": one["output"],
            "error": one["error"],
        }
    found = await found_details(deps, body.task_id, user, limit=0)
    return {
        "task_id": found.task.id,
        "status": found.task.status,
        "result": await shown_result(deps, found.task),
        "missing": found.missing,
        "error": found.task.error,
    }


async def get_logs(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """A page of a task's log."""
    body = validated(arguments, given.GetLogs)
    wanted = LogFilter(subtask=body.subtask, levels=cursors.choices("level", body.level, LEVELS))
    user = asked.me.user_id
    return await page_of_log(asked.deps, body.task_id, user, wanted, limit=body.limit, cursor=body.cursor)


async def cancel_task(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """Cancel a task."""
    return await cancelled(asked.deps, validated(arguments, given.OneTask).task_id, asked.me.user_id)


async def retry_task(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """Run again what is BLOCKED of a task."""
    body = validated(arguments, given.RetryTask)
    asked.allow(BULK_TIMEOUT_S)
    return await retried(
        asked.deps, body.task_id, asked.me.user_id, RetryBody(subtasks=body.subtasks, budget=body.budget)
    )


async def list_tasks(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """A page of tasks."""
    body = validated(arguments, given.ListTasks)
    wanted = TaskFilter(statuses=cursors.choices("status", body.status, TaskStatus), text=body.q)
    return await page_of_tasks(asked.deps, asked.me.user_id, wanted, limit=body.limit, cursor=body.cursor)


async def list_tools(asked: Asked, arguments: JsonObject) -> dict[str, Any]:
    """A page of tools, or one with its schemas."""
    body = validated(arguments, given.ListTools)
    if body.name is not None:
        tool = await tools.shown_tool(asked.request, asked.me, body.name)
        return {"items": [{**tool, "input_schema": tool["schema"]}], "next_cursor": None}
    page = await tools.page_of_tools(asked.request, asked.me, limit=body.limit, cursor=body.cursor)
    # All schemas at once would be more than an assistant can take in.
    return {**page, "items": [{**tool, "output_schema": None} for tool in page["items"]]}


async def _shown(asked: Asked, task_id: str) -> dict[str, Any]:
    found = await found_details(asked.deps, task_id, asked.me.user_id, limit=FIRST_SUBTASKS)
    return shapes.details(found, None, {})


async def _end(asked: Asked, task_id: str, timeout_s: float) -> bool:
    """Wait for a task's end, at most so long, and tell of its progress; whether it has ended. Raises Problem (404)."""
    deps, user = asked.deps, asked.me.user_id
    id_ = (await found_details(deps, task_id, user, limit=0)).task.id
    progress = _Progress(asked.tell)
    until = monotonic() + timeout_s
    with deps.backends.wakeups.follow(str(id_)) as follower:
        while True:
            # Who waits is told by and by; who only looks at the status looks at one row.
            due_in_s = progress.due_in_s()
            if due_in_s == 0:
                found = await found_details(deps, task_id, user, limit=0)
                await progress.look(found)
                status = found.task.status
            else:
                status = await reads.task_status(deps.backends.primary, id_, user)
            left_s = until - monotonic()
            if status in TASK_TERMINAL or left_s <= 0:
                return status in TASK_TERMINAL
            # What was not told yet will be, also when there are no more news.
            await follower.wait(min(left_s, due_in_s or left_s))


class _Progress:
    """What was told of a task's progress: it only ever grows."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told = -1
        self._looked_at = -PROGRESS_S

    def due_in_s(self) -> float:
        """When to look; 0 for now."""
        return max(0.0, self._looked_at + PROGRESS_S - monotonic())

    async def look(self, found: TaskDetails) -> None:
        self._looked_at = monotonic()
        counts = shapes.progress(found.by_status)
        settled, total = sum(counts[name] for name in _SETTLED), counts["total"]
        if settled > self._told:
            self._told = settled
            # A plan that is open is one more that is not settled.
            await self._tell(
                settled, (total + found.plan_is_open) or None, f"{found.task.status}: {settled} of {total} subtasks"
            )
