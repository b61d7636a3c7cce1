"""Plan a prompt without running it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.plan import Budget
from rayloom.dag.ports import PlanRequest
from rayloom.serve.auth import Me
from rayloom.serve.bodies import Body, read_body, schema_of
from rayloom.serve.deps import ask, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.intake import MAX_PROMPT_CHARS, Judge, ToolRules
from rayloom.serve.json_answer import json_answer
from rayloom.serve.offered import may_use
from rayloom.serve.problems import invalid
from rayloom.serve.routes.later import not_built

router = APIRouter(prefix="/api/v1/plans", tags=["plans"])
PARSER_TIMEOUT_S = 60.0


class PlanBody(Body):
    """The body of ``POST /api/v1/plans``."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)]
    context: dict[str, Any] = Field(default_factory=dict)
    budget: Budget = Field(default_factory=Budget)
    tools: list[Any] | None = None


@router.post("", openapi_extra=schema_of(PlanBody))
async def plan(request: Request, me: Me) -> Response:
    """The plan that a prompt would get. Nothing is stored and nothing runs."""
    deps = deps_of(request)
    body = await read_body(request, PlanBody)
    if body.tools is not None:
        raise not_built("planning with `tools` of the request")
    if not body.prompt.strip():
        raise invalid([Fault("/prompt", "is blank")])
    call_of(request).allow(PARSER_TIMEOUT_S + 10)
    known, views = await deps.offered.all(), await deps.offered.views()
    usable = {name: views[name] for name, tool in known.items() if tool.is_active and may_use(me, tool)}
    wanted = PlanRequest(task_id="", prompt=body.prompt, context=body.context, tools=usable)
    planned = await ask(deps.ports.parser.plan(wanted), "the parser", timeout_s=PARSER_TIMEOUT_S)
    judge = Judge(deps, me)
    await judge.prepare()
    warnings = list(planned.notes)
    width, critical_path = None, None
    try:
        verified = await asyncio.to_thread(judge.plan, planned.plan, ToolRules())
        width, critical_path = verified.width, list(verified.critical_path)
    except InvalidPlan as error:
        # The prompt is what the user wrote; the plan is what we made of it: show it, and what is wrong with it.
        warnings += [f"{fault.pointer}: {fault.message}" for fault in error.faults]
    return json_answer(
        {
            "plan": planned.plan,
            "source": planned.source,
            "repairs": 0,
            "width": width,
            "critical_path": critical_path,
            # No model plans or runs in this version, so no tokens and no cost; nobody knows how long tools take.
            "estimate": {"tokens": 0, "cost_usd": 0.0, "seconds": None},
            "usage": {"tokens": 0, "cost_usd": 0.0},
            "warnings": warnings,
        }
    )
