"""The MCP server itself: lists its tools, calls them, and makes of every failure a result that says what is wrong."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import orjson
from mcp.server import Server, ServerRequestContext
from mcp.server.caching import CacheHint
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
)
from starlette.requests import Request

from rayloom.dag.errors import Fault
from rayloom.dag.nearest import did_you_mean
from rayloom.db.keys import Principal
from rayloom.serve.deps import deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.json_answer import json_bytes
from rayloom.serve.mcp.calls import Asked
from rayloom.serve.mcp.offers import OFFERS, Offer
from rayloom.serve.problems import Problem, problem_of, unavailable

log = logging.getLogger(__name__)

ME: Final = "rayloom.mcp.me"
"""Where a request's scope holds who asks."""
LIST_TTL_MS: Final = 3_600_000
PROBLEM_META: Final = "rayloom/problem"
_INSTRUCTIONS: Final = (
    "rayloom runs work as a DAG of subtasks, durably and in parallel. Submit with `submit_task`, wait with "
    "`wait_for_task`, read with `get_result` and, if something failed, `get_logs`. Tasks outlive this connection."
)


def make_server(version: str) -> Server[dict[str, Any]]:
    """A server that keeps nothing between two requests: whatever replica is asked can answer."""
    listed = ListToolsResult(tools=[offer.as_tool() for offer in OFFERS.values()])
    schemas = {tool.name: tool.input_schema for tool in listed.tools}

    async def list_tools(
        context: ServerRequestContext[dict[str, Any]], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return listed

    return Server(
        "rayloom",
        version=version,
        title="rayloom",
        instructions=_INSTRUCTIONS,
        cache_hints={"tools/list": CacheHint(ttl_ms=LIST_TTL_MS, scope="public")},
        get_tool_input_schema=schemas.get,
        on_list_tools=list_tools,
        on_call_tool=_call_tool,
    )


async def _call_tool(context: ServerRequestContext[dict[str, Any]], params: CallToolRequestParams) -> CallToolResult:
    offer = OFFERS.get(params.name)
    if offer is None:
        hint = did_you_mean(params.name[:100], list(OFFERS))
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name[:100]}{hint}")
    request = context.request
    assert isinstance(request, Request)
    me = request.scope[ME]
    assert isinstance(me, Principal)
    call = call_of(request)
    timeout = asyncio.timeout(None)
    try:
        async with timeout:
            asked = Asked(me=me, request=request, call=call, timeout=timeout, tell=context.session.report_progress)
            asked.allow(deps_of(request).settings.request_timeout_s)
            return _answer(offer, await offer.run(asked, params.arguments or {}))
    except TimeoutError:
        if not timeout.expired():
            return _refusal(_unforeseen(offer))
        log.warning("mcp.timed_out", extra={"tool": offer.name})
        return _refusal(unavailable("the call took too long", code="TIMED_OUT"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the assistant is told in a result
        return _refusal(problem_of(error) or _unforeseen(offer))


def _unforeseen(offer: Offer) -> Problem:
    log.exception("mcp.failed", extra={"tool": offer.name})
    return Problem(500, "something went wrong here; it was logged", code="INTERNAL")


def _answer(offer: Offer, document: dict[str, Any]) -> CallToolResult:
    told = offer.answer.model_validate(orjson.loads(json_bytes(document)))
    shown = told.model_dump(mode="json", exclude_unset=True)
    return CallToolResult(content=[TextContent(text=json_bytes(shown).decode())], structured_content=shown)


def _refusal(problem: Problem) -> CallToolResult:
    """A problem, in words for an assistant; programs find the document in ``_meta``."""
    faults = [Fault(_place(fault.pointer), fault.message) for fault in problem.errors]
    if faults:
        lines = [f"{problem.title}:", *(f"- {fault.pointer or 'the arguments'}: {fault.message}" for fault in faults)]
    else:
        lines = [f"{problem.title}: {problem.detail}"]
    document: dict[str, Any] = {"status": problem.status, "code": problem.code, "detail": problem.detail}
    if faults:
        document["errors"] = [fault.as_json() for fault in faults]
    wait_s = problem.headers.get("Retry-After")
    if wait_s is not None:
        lines.append(f"Try again in {wait_s} s.")
        document["retry_after_s"] = int(wait_s)
    text = "\n".join(lines)
    return CallToolResult(content=[TextContent(text=text)], is_error=True, _meta={PROBLEM_META: document})


def _place(pointer: str) -> str:
    """Where in the arguments a fault is that has another place in the request of a route."""
    if pointer == "/headers/Idempotency-Key":
        return "/idempotency_key"
    return pointer.removeprefix("/query")
