"""Plan a prompt without running it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.model import Payer
from rayloom.dag.outline_steps import GATHER_TOOL, TEXT_TOOL
from rayloom.dag.plan import Budget, parse_plan
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.dag.planning.estimate import Prices, estimate
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.serve.auth import Me
from rayloom.serve.bodies import Body, off_loop, read_body, schema_of
from rayloom.serve.deps import Deps, ask, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.given_tools import read_tools
from rayloom.serve.intake import MAX_PROMPT_CHARS, Judge, ToolRules
from rayloom.serve.json_answer import json_answer
from rayloom.serve.limits import limit_of, too_many, waits_long
from rayloom.serve.offered import may_use
from rayloom.serve.problems import invalid
from rayloom.serve.routes.tools import stats_of

router = APIRouter(prefix="/api/v1/plans", tags=["plans"])
MARGIN_S: Final = 10.0
"""Beyond what planning itself may take."""


class PlanBody(Body):
    """The body of ``POST /api/v1/plans``."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)]
    context: dict[str, Any] = Field(default_factory=dict)
    budget: Budget = Field(default_factory=Budget)
    tools: list[Any] | None = None


@router.post("", openapi_extra=schema_of(PlanBody))
async def plan(request: Request, me: Me) -> Response:
    """The plan that a prompt would get. Nothing is stored and nothing runs.

    With `tools` given, those are planned with instead of the registered ones; patterns in their schemas are not gone
    by. A prompt that leaves too much open is 422 with `questions`; one that no model could plan in time, or whose
    endpoint refuses us, is 503. 429 where a limit of the quota holds it back, or too many are under way.
    """
    deps = deps_of(request)
    body = await read_body(request, PlanBody)
    if not body.prompt.strip():
        raise invalid([Fault("/prompt", "is blank")])
    given = body.tools
    size = call_of(request).body_bytes
    foreign = None if given is None else await off_loop(size, lambda: read_tools(given))
    timeout_s = deps.settings.plan_timeout_s
    call_of(request).allow(timeout_s + MARGIN_S)
    known, views = await deps.offered.all(), await deps.offered.views()
    usable = {name: views[name] for name, tool in known.items() if tool.is_active and may_use(me, tool)}
    p50_s = await _p50_s(request, deps)
    wanted = PlanRequest(
        task_id="",
        prompt=body.prompt,
        context=body.context,
        tools=usable if foreign is None else foreign,
        # Nobody runs tools that nobody has registered.
        nodes=await deps.nodes() if foreign is None else (),
        payer=Payer(user_id=str(me.user_id), key_id=str(me.key_id)),
        budget=body.budget.model_dump(exclude_none=True),
        p50_s=p50_s,
    )
    held = await limit_of(deps, me.user_id)
    if held is not None and waits_long(held, deps.settings.invoke_queue_s):
        raise too_many(held, "the planning")
    with deps.plannings.one(me.user_id, "plannings"):
        planned = await ask(deps.ports.parser.plan(wanted), "the parser", timeout_s=timeout_s)
    judge = Judge(deps, me)
    await judge.prepare()
    warnings = [*planned.notes, *planned.over_budget]
    width, critical_path = None, None
    told: JsonObject = {"tokens": 0, "cost_usd": 0.0, "seconds": None}
    try:
        if foreign is None:
            verified = await asyncio.to_thread(judge.plan, planned.plan, ToolRules())
        else:
            recording = {name: views[name] for name in (TEXT_TOOL, GATHER_TOOL) if name in views}
            with_models = deps.settings.with_models
            verified = await asyncio.to_thread(_verified, planned, recording | foreign, with_models)
        width, critical_path = verified.width, list(verified.critical_path)
        told = (planned.estimate or estimate(verified, p50_s=p50_s, prices=Prices())).as_json()
    except InvalidPlan as error:
        # The prompt is what the user wrote; the plan is what we made of it: show it, and what is wrong with it.
        warnings += [f"{fault.pointer}: {fault.message}" for fault in error.faults]
    return json_answer(
        {
            "plan": planned.plan,
            "source": planned.source,
            "repairs": planned.repairs,
            "width": width,
            "critical_path": critical_path,
            "estimate": told,
            "usage": {"tokens": planned.use.tokens, "cost_usd": planned.use.cost_usd},
            "brief": planned.brief,
            "warnings": warnings,
        }
    )


async def _p50_s(request: Request, deps: Deps) -> dict[str, float]:
    stats = await stats_of(request, deps)
    return {name: each.p50_ms / 1000 for name, each in stats.items() if each.p50_ms is not None}


def _verified(planned: Planned, tools: Mapping[str, ToolView], with_models: bool) -> VerifiedPlan:
    return verify(parse_plan(planned.plan), tools=tools, nodes=(), model_available=with_models)
