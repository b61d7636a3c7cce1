"""Assistants: MCP clients of the SDK, in either revision of the protocol, with a person's key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult, TextContent

from tests.integration.serve.world import Person, World
from tests.integration.waiting import GENEROUS_S

REVISIONS: Final = {"2025-11-25": "legacy", "2026-07-28": "2026-07-28"}
"""What the SDK's client calls them."""
Hook = Callable[[httpx2.Request], Awaitable[None]]


@asynccontextmanager
async def at(url: str, key: str, revision: str, *, on_request: Hook | None = None) -> AsyncIterator[Client]:
    """A client of the server at ``url``; ``on_request`` sees each request before it is sent."""
    hooks: dict[str, list[Any]] = {"request": [on_request] if on_request is not None else []}
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=GENEROUS_S, trust_env=False, event_hooks=hooks) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=REVISIONS[revision]) as client,
    ):
        assert client.session.protocol_version == revision
        yield client


@asynccontextmanager
async def assistant(world: World, person: Person, revision: str = "2026-07-28") -> AsyncIterator[Client]:
    """A client of the world's server."""
    async with at(world.url, person.key, revision) as client:
        yield client


def text_of(result: CallToolResult) -> str:
    """The one text that a result is."""
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def ask(client: Client, tool: str, *, hear: ProgressFnT | None = None, **arguments: Any) -> Any:
    """What a tool gives. The client has held it against the schema that the server told."""
    result = await client.call_tool(tool, arguments, progress_callback=hear)
    assert not result.is_error, text_of(result)
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The problem that a tool answers with."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    assert result.structured_content is None
    assert result.meta is not None
    problem: dict[str, Any] = result.meta["rayloom/problem"]
    assert all(error["message"] in text_of(result) for error in problem.get("errors", []))
    return problem
