"""The tools: which there are, switching them on and off, and calling one directly."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault, UserError
from rayloom.dag.ports import RegisteredTool
from rayloom.db.keys import Principal
from rayloom.db.usage import ToolStats, tool_stats
from rayloom.serve import cursors
from rayloom.serve.auth import Admin, Me
from rayloom.serve.bodies import Body, read_body, read_object, schema_of, validated
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import Deps, ask, deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.offered import may_use
from rayloom.serve.problems import invalid, not_found
from rayloom.serve.routes.later import not_built

router = APIRouter(prefix="/api/v1/tools", tags=["tools"])
STATS_TTL_S: Final = 2.0
REGISTRY_TIMEOUT_S: Final = 20.0
_NO_STATS: Final = ToolStats(calls=0, failures=0, p50_ms=None)


class NativeBody(Body):
    """The body of ``POST /api/v1/tools/register`` for an installed entry point."""

    type: Annotated[str, StringConstraints(pattern="^NATIVE$")] = "NATIVE"
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")]
    endpoint: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ToolChange(Body):
    """The body of ``PATCH /api/v1/tools/{name}``."""

    is_active: bool = Field(description="switch it on or off")


@router.get("")
async def list_tools(request: Request, me: Me, limit: Limit = 500, cursor: Cursor = None) -> Response:
    """Tools that I may use, by name."""
    deps = deps_of(request)
    after = "" if cursor is None else str(cursors.decode("tools", cursor, (str,))[0])
    known = await deps.offered.all()
    names = sorted(name for name, tool in known.items() if name > after and may_use(me, tool))
    page = names[:limit]
    stats = await _stats(request, deps)
    items = [_shown(known[name], stats) for name in page]
    next_cursor = cursors.encode("tools", page[-1]) if len(names) > limit else None
    return json_answer({"items": items, "next_cursor": next_cursor})


@router.get("/{name}")
async def show_tool(request: Request, me: Me, name: str) -> Response:
    """One tool, with its schema."""
    deps = deps_of(request)
    tool = await usable(deps, me, name)
    return json_answer(_shown(tool, await _stats(request, deps)))


async def usable(deps: Deps, me: Principal, name: str) -> RegisteredTool:
    """A tool that somebody may use. Raises Problem (404)."""
    tool = (await deps.offered.all()).get(name)
    if tool is None or not may_use(me, tool):
        raise not_found("this tool")
    return tool


def _shown(tool: RegisteredTool, stats: Mapping[str, ToolStats]) -> dict[str, Any]:
    found = stats.get(tool.name, _NO_STATS)
    return {
        "name": tool.name,
        "type": tool.type,
        "description": tool.description,
        "version": tool.version,
        "schema": tool.schema,
        "output_schema": tool.output_schema,
        "permission_level": tool.permission_level,
        "is_active": tool.is_active,
        # A native tool is code of ours or of an installed package: it is there whenever we are.
        "health": "ok" if tool.type == "NATIVE" else "unknown",
        "breaker": {"state": "closed", "retry_at": None},
        "stats": {"calls": found.calls, "failures": found.failures, "p50_ms": found.p50_ms},
    }


async def _stats(request: Request, deps: Deps) -> Mapping[str, ToolStats]:
    state = request.app.state
    made_at, stats = getattr(state, "tool_stats", (0.0, {}))
    if monotonic() - made_at > STATS_TTL_S:
        stats = await tool_stats(deps.backends.replica)
        state.tool_stats = (monotonic(), stats)
    known: Mapping[str, ToolStats] = stats
    return known


@router.post("/register", status_code=201, openapi_extra=schema_of(NativeBody))
async def register(request: Request, me: Admin) -> Response:
    """Switch on an installed entry point as a tool."""
    deps = deps_of(request)
    document = await read_object(request)
    kind = document.get("type")
    if kind in ("MCP", "SKILL"):
        raise not_built(f"registering a tool of type {kind}")
    if kind != "NATIVE":
        raise invalid([Fault("/type", "must be MCP, SKILL or NATIVE")])
    body = validated(document, NativeBody)
    call = deps.ports.registry.register_native(body.name, body.endpoint)
    try:
        tool = await ask(call, "the tool registry", timeout_s=REGISTRY_TIMEOUT_S)
    except UserError as error:
        if error.code == "TOOL_EXISTS":
            raise
        field = "/name" if error.code == "TOOL_NAME_INVALID" else "/endpoint"
        raise invalid([Fault(field, error.message)], code=error.code) from error
    await ask(deps.offered.refresh(), "the tool registry")
    headers = {"Location": f"/api/v1/tools/{tool.name}"}
    return json_answer({"name": tool.name, "type": tool.type, "tools": [tool.name]}, 201, headers)


@router.patch("/{name}", openapi_extra=schema_of(ToolChange))
async def change_tool(request: Request, me: Admin, name: str) -> Response:
    """Switch a tool on or off."""
    deps = deps_of(request)
    body = await read_body(request, ToolChange)
    await usable(deps, me, name)
    tool = await ask(deps.ports.registry.set_active(name, body.is_active), "the tool registry")
    await ask(deps.offered.refresh(), "the tool registry")
    return json_answer(_shown(tool, await _stats(request, deps)))


@router.delete("/{name}", status_code=204)
async def remove_tool(request: Request, me: Admin, name: str) -> Response:
    """Remove a tool that is not built in."""
    deps = deps_of(request)
    await usable(deps, me, name)
    await ask(deps.ports.registry.remove(name), "the tool registry")
    await ask(deps.offered.refresh(), "the tool registry")
    return Response(status_code=204)
