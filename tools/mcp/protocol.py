"""What the protocol's answers and errors mean here, in both of its revisions."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Final

from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    CallToolResult,
    Tool,
)

from rayloom.dag.errors import Bug, RayloomError, Transient, UserError
from rayloom.tools.ports import Level

PAGES_MAX: Final = 200
TOOLS_MAX: Final = 1_000
NO_ANSWER: Final = 7_100_001
BAD_ANSWER: Final = 7_100_002
REFUSED: Final = 7_100_003
FORGOTTEN: Final = 7_100_004
"""Codes of our own: a request over HTTP got no answer, one that can't be read, a status that refuses it, or one that
says that its session is unknown."""
AT_FAULT: Final = frozenset({400, 405, 406, 411, 413, 414, 415, 422, 431, 501})
"""Statuses by which a server says that it will never take this request."""


def failure(error: MCPError, text: str) -> RayloomError:
    """The error of a call, as ``text`` tells it: Transient, but where the call or the answer itself is at fault."""
    if error.code == BAD_ANSWER or _is_unreadable(error):
        return Bug("TOOL_OUTPUT_INVALID", text)
    if is_lost(error) or error.code in (CONNECTION_CLOSED, NO_ANSWER):
        return Transient("MCP_CONNECTION_LOST", text)
    if error.code in (INVALID_PARAMS, METHOD_NOT_FOUND, REFUSED):
        return UserError("MCP_CALL_INVALID", text)
    return Transient("MCP_ERROR", text)


def is_lost(error: BaseException) -> bool:
    """Whether the session is gone, and not only one request over it."""
    if not isinstance(error, MCPError):
        return False
    # The SDK has the same code for a stream that ended without an answer to its one request.
    return (error.code == CONNECTION_CLOSED and error.message == "Connection closed") or is_forgotten(error)


def is_forgotten(error: MCPError) -> bool:
    """Whether the server does not know the session: then it has not looked at the request either."""
    return error.code == FORGOTTEN


def _is_unreadable(error: MCPError) -> bool:
    """Whether the SDK could not read the answer: it breaks the protocol, or is too large for an event of a stream."""
    return (error.code == PARSE_ERROR and error.message.startswith("Failed to parse")) or (
        error.code == CONNECTION_CLOSED and error.message.startswith("SSE stream failed")
    )


async def listed(client: Client) -> list[Tool]:
    """All tools of a server, page by page. Raises Transient (``MCP_UNREACHABLE``) where there is no end to them."""
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page = await client.list_tools(cursor=cursor, cache_mode="refresh")
        tools += page.tools
        cursor = page.next_cursor
        if len(tools) > TOOLS_MAX:
            raise Transient("MCP_UNREACHABLE", f"its list has more than {TOOLS_MAX:,} tools")
        if not cursor:
            return tools
    raise Transient("MCP_UNREACHABLE", f"its list of tools has more than {PAGES_MAX} pages")


def leave_outputs(client: Client) -> None:
    """Keep the SDK from holding what a tool gives against the tool's output schema.

    That is done by who asked for the call, in a process of its own. Here a schema that takes forever (a pattern,
    references that fork) would keep all other servers waiting.
    """

    async def left(name: str, result: CallToolResult) -> None:
        return None

    client.session.validate_tool_result = left  # type: ignore[method-assign]  # the SDK has no switch for it


async def want_log(client: Client) -> None:
    """Servers before 2026-07-28 are asked once for messages of their log; those after, with each call."""
    if client.server_capabilities.logging is None:
        return
    with warnings.catch_warnings(), suppress(MCPError):
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        await client.session.set_logging_level("info")


def said(error: BaseException) -> str:
    """What an error says; of a group, what the first in it says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it did not answer in time{f': {error}' if str(error) else ''}"
    return error.message if isinstance(error, RayloomError | MCPError) else f"{type(error).__name__}: {error}"


def level_of(level: str) -> Level:
    """A level of the protocol's as one of ours."""
    if level in ("error", "critical", "alert", "emergency"):
        return "ERROR"
    if level == "warning":
        return "WARNING"
    return "DEBUG" if level == "debug" else "INFO"


def progress_text(progress: float, total: float | None, message: str | None) -> str:
    """A notification of progress as a line of a log."""
    of = f" of {total:g}" if total is not None else ""
    return f"progress {progress:g}{of}{f': {message}' if message else ''}"
