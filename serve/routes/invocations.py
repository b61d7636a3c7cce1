"""Calling one tool directly: a task of one subtask underneath, so that limits, audit and cancel hold."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.plan import MAX_FAULTS
from rayloom.dag.states import TASK_TERMINAL, SubtaskStatus
from rayloom.dag.values import JsonObject
from rayloom.db import reads
from rayloom.db.keys import Principal
from rayloom.db.submit import NewTask, submit_task
from rayloom.db.task_moves import end_task
from rayloom.serve import shapes
from rayloom.serve.apart import inline_outputs
from rayloom.serve.auth import Me
from rayloom.serve.bodies import Body, read_object, schema_of, validated
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.intake import Judge, ToolRules
from rayloom.serve.json_answer import json_answer
from rayloom.serve.limits import limit_of, too_many, waits_long
from rayloom.serve.problems import Problem, invalid, unavailable
from rayloom.serve.routes.tasks import stop, wake
from rayloom.serve.routes.tools import usable

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/tools", tags=["tools"])
PRIORITY: Final = 8
"""Somebody waits for the answer: before ordinary tasks, after those that were made urgent."""
CALL: Final = "call"
_INPUT: Final = "/plan/subtasks/0"


class InvokeBody(Body):
    """The body of ``POST /api/v1/tools/{name}/invoke``."""

    input: dict[str, Any] = Field(default_factory=dict)
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


@router.post("/{name}/invoke", openapi_extra=schema_of(InvokeBody))
async def invoke(request: Request, me: Me, name: str) -> Response:
    """Call a tool and wait for what it gives. Its own failure is a 200 with an `error`; 429 where a limit holds it."""
    deps = deps_of(request)
    settings = deps.settings
    tool = await usable(deps, me, name)
    document = await read_object(request)
    if not tool.is_active:
        raise Problem(409, f"the tool {name} is switched off", code="TOOL_INACTIVE")
    if tool.permission_level in settings.approval_levels:
        message = f"the tool {name} wants approval: submit a task with it, and have that approved"
        raise Problem(409, message, code="APPROVAL_REQUIRED")
    body, faults = _read(document, settings.invoke_timeout_max_s)
    timeout_s = body.timeout_s or settings.invoke_timeout_s
    patience_s = timeout_s + settings.invoke_queue_s
    call_of(request).allow(patience_s + settings.request_timeout_s)
    judge = Judge(deps, me)
    await judge.prepare()
    try:
        plan = await asyncio.to_thread(judge.plan, _plan(name, body.input, timeout_s), ToolRules())
    except InvalidPlan as error:
        of_input = [Fault(fault.pointer.removeprefix(_INPUT), fault.message) for fault in error.faults]
        code = "INVALID" if faults else "INPUT_INVALID"
        raise invalid([*faults, *of_input][:MAX_FAULTS], code=code) from error
    if faults:
        raise invalid(faults)
    shut_s = deps.offered.shut_for_s(name, scope=me.scope)
    if shut_s is not None:
        return _breaker_open(name, shut_s)
    held = await limit_of(deps, me.user_id)
    if held is not None and waits_long(held, settings.invoke_queue_s):
        # It would wait for nothing.
        raise too_many(held, "the call")
    task = NewTask(
        user_id=me.user_id, key_id=me.key_id, title=f"invoke {name}", prompt=None, priority=PRIORITY, plan=plan,
        # What may stand in for the tool is bounded, too.
        options={"tools": judge.narrowed(None)},
    )  # fmt: skip
    submitted = await submit_task(deps.backends.primary, deps.backends.blobs, task)
    log.info("tool.invoked", extra={"tool": name, "task_id": str(submitted.task_id)})
    if not await deps.backends.offer(submitted.queued, str(submitted.task_id)):
        await wake(deps)
    return await _answer(deps, me, name, submitted.task_id, patience_s)


def _read(document: JsonObject, timeout_max_s: float) -> tuple[InvokeBody, list[Fault]]:
    """The body, and what is wrong with it, but for what the tool says of its input; that is sound in any case.

    Raises Problem (422) where the input is no object.
    """
    try:
        body = validated(document, InvokeBody)
    except Problem as problem:
        given = document.get("input", {})
        if not isinstance(given, dict):
            raise
        return InvokeBody(input=given), list(problem.errors)
    if (body.timeout_s or 0) > timeout_max_s:
        return InvokeBody(input=body.input), [Fault("/timeout_s", f"must be at most {timeout_max_s:g} seconds")]
    return body, []


def _plan(name: str, given: JsonObject, timeout_s: float) -> JsonObject:
    return {
        "subtasks": [
            {"id": CALL, "type": "TOOL", "tool": name, "input": given, "timeout_s": timeout_s, "max_retries": 0}
        ]
    }


async def _answer(deps: Deps, me: Principal, name: str, task_id: UUID, patience_s: float) -> Response:
    try:
        async with asyncio.timeout(patience_s):
            shut_s = await _ended(deps, me, name, task_id)
    except TimeoutError:
        await _give_up(deps, task_id, me.user_id, patience_s)
        shut_s = None
    if shut_s is not None:
        return _breaker_open(name, shut_s, task_id)
    found = await reads.subtask_with_attempts(deps.backends.primary, task_id, CALL)
    assert found is not None
    shown = shapes.subtask(task_id, found[0], await inline_outputs(deps, [found[0]]))
    error = shown["error"]
    if error is None and shown["status"] != SubtaskStatus.COMPLETED:
        message = f"the call was ended from outside: it is {shown['status']}"
        error = {"code": "CANCELLED", "class": "refused", "message": message, "retryable": False}
    document = {"output": shown["output"], "error": error, "duration_ms": shown["duration_ms"] or 0}
    return json_answer(document, headers={"Link": f'</api/v1/tasks/{task_id}>; rel="via"'})


async def _ended(deps: Deps, me: Principal, name: str, task_id: UUID) -> float | None:
    """Wait for its end; or, where its tool's breaker opened before it began, withdraw it: the seconds to try again."""
    with deps.backends.wakeups.follow(str(task_id)) as follower:
        while await reads.task_status(deps.backends.primary, task_id, me.user_id) not in TASK_TERMINAL:
            view, shut_s = deps.offered.breaker_of(name), deps.offered.shut_for_s(name, scope=me.scope)
            # While it is half open this may be the very call that was let through.
            is_shut = view is not None and view.state == "open" and shut_s is not None
            if is_shut and await _withdrawn(deps, task_id):
                return shut_s
            ends, news = (asyncio.ensure_future(each) for each in (follower.wait(60), deps.offered.changed()))
            try:
                await asyncio.wait((ends, news), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in (ends, news):
                    waiting.cancel()
                await asyncio.gather(ends, news, return_exceptions=True)
    return None


async def _withdrawn(deps: Deps, task_id: UUID) -> bool:
    """Whether the call was taken back before it had begun."""
    found = await reads.subtask_with_attempts(deps.backends.primary, task_id, CALL)
    if found is None or found[0].status != SubtaskStatus.QUEUED:
        return False
    ended = await end_task(deps.backends.primary, task_id, status="CANCELLED", error=None, reason=BREAKER_OPEN)
    if ended.stopped:
        # It was on its way already.
        await stop(deps, ended.stopped)
    return ended.refused_status is None


def _breaker_open(name: str, shut_s: float, task_id: UUID | None = None) -> Response:
    """The tool's own failure, before it was called."""
    message = f"the breaker of {name} is open after too many failures; try again in {shut_s:.1f} s"
    error = {"code": BREAKER_OPEN, "class": "transient", "message": message, "retryable": True}
    headers = {"Retry-After": str(math.ceil(shut_s))}
    if task_id is not None:
        headers["Link"] = f'</api/v1/tasks/{task_id}>; rel="via"'
    return json_answer({"output": None, "error": error, "duration_ms": 0}, headers=headers)


async def _give_up(deps: Deps, task_id: UUID, user_id: UUID, patience_s: float) -> None:
    """Nobody waits for the call any more: don't run it later. Raises Problem, unless it has ended in the meantime."""
    reason = "nobody waits for this call any more"
    ended = await end_task(deps.backends.primary, task_id, status="CANCELLED", error=None, reason=reason)
    if ended.refused_status is not None:
        return
    if ended.stopped:
        await stop(deps, ended.stopped)
        message = f"the call was not over within {patience_s:g} s, and was cancelled"
        raise unavailable(message, code="CALL_WAITED_TOO_LONG")
    held = await limit_of(deps, user_id)
    if held is not None:
        raise too_many(held, "the call")
    message = f"the call did not get its turn within {patience_s:g} s, and was cancelled"
    raise unavailable(message, code="CALL_WAITED_TOO_LONG")
