"""The tools: which there are, switching them on and off, and calling one directly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic, time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault, Transient, UserError
from rayloom.dag.ports import BreakerWish, RegisteredTool, RegistryPort
from rayloom.dag.values import JsonObject
from rayloom.db.keys import Principal
from rayloom.db.usage import ToolStats, tool_stats
from rayloom.serve import cursors, skills
from rayloom.serve.auth import Admin, Me
from rayloom.serve.bodies import Body, expect_no_body, read_body, read_object, schema_of, validated
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import Deps, ask, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.offered import may_use
from rayloom.serve.problems import invalid, not_found
from rayloom.serve.routes import mcp_servers

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/tools", tags=["tools"])
STATS_TTL_S: Final = 2.0
REGISTRY_TIMEOUT_S: Final = 20.0
SKILL_TIMEOUT_S: Final = 120.0
_NO_STATS: Final = ToolStats(calls=0, failures=0, p50_ms=None)


class NativeBody(Body):
    """The body of ``POST /api/v1/tools/register`` for an installed entry point."""

    type: Annotated[str, StringConstraints(pattern="^NATIVE$")] = "NATIVE"
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")]
    endpoint: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ToolChange(Body):
    """The body of ``PATCH /api/v1/tools/{name}``: one change or several."""

    is_active: bool | None = Field(default=None, description="switch it on or off")
    breaker: BreakerWish | None = Field(
        default=None,
        description="open: calls stop until it is closed by hand; closed: they go on, and count; off: it never opens",
    )
    alternative: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        default=None, description="the tool that is called in its place while its breaker is open; null: none"
    )


@router.get("")
async def list_tools(request: Request, me: Me, limit: Limit = 500, cursor: Cursor = None) -> Response:
    """Tools that I may use, by name."""
    return json_answer(await page_of_tools(request, me, limit=limit, cursor=cursor))


async def page_of_tools(request: Request, me: Principal, *, limit: int, cursor: str | None) -> dict[str, Any]:
    """A page of the tools that somebody may use. Raises Problem (422) for a cursor of another list."""
    deps = deps_of(request)
    after = "" if cursor is None else str(cursors.decode("tools", cursor, (str,))[0])
    known = await deps.offered.all()
    names = sorted(name for name, tool in known.items() if name > after and may_use(me, tool))
    page = names[:limit]
    stats = await stats_of(request, deps)
    items = [_shown(deps, known[name], stats) for name in page]
    next_cursor = cursors.encode("tools", page[-1]) if len(names) > limit else None
    return {"items": items, "next_cursor": next_cursor}


@router.get("/{name}")
async def show_tool(request: Request, me: Me, name: str) -> Response:
    """One tool, with its schema; for admins also an MCP server, with the names of its tools."""
    deps = deps_of(request)
    if await _is_server(deps, me, name):
        return json_answer(await mcp_servers.show(deps, name))
    return json_answer(await shown_tool(request, me, name))


async def shown_tool(request: Request, me: Principal, name: str) -> dict[str, Any]:
    """A tool that somebody may use, with its schema. Raises Problem (404)."""
    deps = deps_of(request)
    tool = await usable(deps, me, name)
    said = {"skill": skills.shown(tool)} if tool.type == "SKILL" else {}
    return {**_shown(deps, tool, await stats_of(request, deps)), **said}


async def _is_server(deps: Deps, me: Principal, name: str) -> bool:
    """Whether this can only be the name of an MCP server: no tool has it. Theirs have no dots."""
    return me.is_admin and "." not in name and name not in await deps.offered.all()


async def usable(deps: Deps, me: Principal, name: str) -> RegisteredTool:
    """A tool that somebody may use. Raises Problem (404)."""
    tool = (await deps.offered.all()).get(name)
    if tool is None or not may_use(me, tool):
        raise not_found("this tool")
    return tool


def _shown(deps: Deps, tool: RegisteredTool, stats: Mapping[str, ToolStats]) -> dict[str, Any]:
    found = stats.get(tool.name, _NO_STATS)
    view = deps.offered.breaker_of(tool.name)
    return {
        "name": tool.name,
        "type": tool.type,
        "description": tool.description,
        "version": tool.version,
        "schema": tool.schema,
        "output_schema": tool.output_schema,
        "permission_level": tool.permission_level,
        "is_active": tool.is_active,
        # A native tool is code of ours or of an installed package, a Skill is in our blob store: there whenever we are.
        "health": tool.config.get("health", "unknown") if tool.type == "MCP" else "ok",
        "breaker": {
            "state": "closed" if view is None else view.state_at(time()),
            "retry_at": None if view is None or view.retry_at is None else datetime.fromtimestamp(view.retry_at, UTC),
        },
        "stats": {"calls": found.calls, "failures": found.failures, "p50_ms": found.p50_ms},
    }


async def stats_of(request: Request, deps: Deps) -> Mapping[str, ToolStats]:
    """How each tool did lately, as of a moment ago."""
    state = request.app.state
    made_at, stats = getattr(state, "tool_stats", (0.0, {}))
    if monotonic() - made_at > STATS_TTL_S:
        stats = await deps.backends.reads.current(tool_stats)
        state.tool_stats = (monotonic(), stats)
    known: Mapping[str, ToolStats] = stats
    return known


@router.post("/register", status_code=201, openapi_extra=schema_of(NativeBody))
async def register(request: Request, me: Admin) -> Response:
    """Switch on an installed entry point, take in a Skill, or connect to an MCP server, whose tools all become ours."""
    deps = deps_of(request)
    document = await read_object(request)
    kind = document.get("type")
    if kind == "MCP":
        # A server may have to be fetched before it starts.
        call_of(request).allow(mcp_servers.REGISTER_TIMEOUT_S + 10)
        name, tools = await mcp_servers.register(deps, document)
        await _known(deps)
        return json_answer({"name": name, "type": kind, "tools": tools}, 201, _location(name))
    if kind not in ("NATIVE", "SKILL"):
        raise invalid([Fault("/type", "must be MCP, SKILL or NATIVE")])
    if kind == "SKILL":
        # As many contents as it has files go to the blob store.
        call_of(request).allow(SKILL_TIMEOUT_S)
    tool = await (skills.register_skill(deps, document) if kind == "SKILL" else _register_native(deps, document))
    await _known(deps)
    return json_answer({"name": tool.name, "type": tool.type, "tools": [tool.name]}, 201, _location(tool.name))


async def _register_native(deps: Deps, document: JsonObject) -> RegisteredTool:
    body = validated(document, NativeBody)
    call = deps.ports.registry.register_native(body.name, body.endpoint)
    try:
        return await ask(call, "the tool registry", timeout_s=REGISTRY_TIMEOUT_S)
    except UserError as error:
        if error.code == "TOOL_EXISTS":
            raise
        field = "/name" if error.code == "TOOL_NAME_INVALID" else "/endpoint"
        raise invalid([Fault(field, error.message)], code=error.code) from error


def _location(name: str) -> dict[str, str]:
    return {"Location": f"/api/v1/tools/{name}"}


@router.patch("/{name}", openapi_extra=schema_of(ToolChange))
async def change_tool(request: Request, me: Admin, name: str) -> Response:
    """Switch a tool on or off, open or close its breaker, or name what stands in for it; or change an MCP server."""
    deps = deps_of(request)
    if await _is_server(deps, me, name):
        view = await mcp_servers.change(deps, name, await read_object(request))
        await _known(deps)
        return json_answer(view)
    body = await read_body(request, ToolChange)
    if not body.model_fields_set:
        raise invalid([Fault("", "name what to change: is_active, breaker or alternative")])
    tool, registry = await usable(deps, me, name), deps.ports.registry
    # First what may be refused.
    if "alternative" in body.model_fields_set:
        tool = await _with_alternative(registry, name, body.alternative)
    if body.breaker is not None:
        tool = await ask(registry.set_breaker(name, body.breaker), "the tool registry")
        log.info("breaker.set", extra={"tool": name, "breaker": body.breaker, "user_id": str(me.user_id)})
    if body.is_active is not None:
        tool = await ask(registry.set_active(name, body.is_active), "the tool registry")
    await _known(deps)
    return json_answer(_shown(deps, tool, await stats_of(request, deps)))


async def _known(deps: Deps) -> None:
    """What was changed holds for whatever is submitted after the answer: this replica and the scheduler know it."""
    version = await ask(deps.offered.refresh(), "the tool registry")
    try:
        known = await ask(deps.ports.scheduler.knows_tools(version), "the scheduler")
    except Transient:
        # It is between two lives: the next one asks the registry before it starts anything.
        known = False
    if not known:
        log.info("tools.not_known_yet", extra={"version": version})


async def _with_alternative(registry: RegistryPort, name: str, alternative: str | None) -> RegisteredTool:
    try:
        return await ask(registry.set_alternative(name, alternative), "the tool registry")
    except UserError as error:
        if error.code != "ALTERNATIVE_INVALID":
            raise
        raise invalid([Fault("/alternative", error.message)], code=error.code) from error


@router.delete("/{name}", status_code=204)
async def remove_tool(request: Request, me: Admin, name: str) -> Response:
    """Remove a tool that is not built in, or an MCP server with all its tools."""
    await expect_no_body(request)
    deps = deps_of(request)
    if await _is_server(deps, me, name):
        await mcp_servers.remove(deps, name)
    else:
        await usable(deps, me, name)
        await ask(deps.ports.registry.remove(name), "the tool registry")
    await _known(deps)
    return Response(status_code=204)
