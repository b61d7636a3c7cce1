"""How to open a way to a server, by what it was registered as."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.client._transport import TransportStreams

from rayloom.dag.errors import UserError
from rayloom.dag.mcp import McpServer
from rayloom.tools.addresses import AddressRules, addresses_of, parse_url
from rayloom.tools.mcp.calls import Ears, Opener
from rayloom.tools.mcp.confined import check_readable, confined
from rayloom.tools.mcp.stdio import stdio, trusted
from rayloom.tools.mcp.web import web
from rayloom.tools.settings import ToolSettings


def opener_of(server: McpServer, settings: ToolSettings) -> Opener:
    """What opens a way to a server, each time anew."""
    rules = AddressRules.parse(settings.allow_addresses)

    @asynccontextmanager
    async def opened(ears: Ears) -> AsyncIterator[TransportStreams]:
        if server.transport == "stdio":
            if server.trusted:
                launch = trusted(server.command, server.env)
            else:
                launch = await confined(server.command, server.env, server.readable, memory_mb=settings.mcp_memory_mb)
            async with stdio(launch, on_stderr=ears.said, on_end=ears.ended) as streams:
                yield streams
        else:
            # In words of ours, and before anything is sent.
            target = parse_url(server.url)
            await addresses_of(target.host, target.port, rules)
            async with web(server, rules, ears.ended) as streams:
                yield streams

    return opened


def check(server: McpServer, *, folders: bool = True) -> None:
    """Raise UserError for a server that can't be meant: ``MCP_INVALID``, ``URL_INVALID``.

    ``folders``: look also where those that it may read lead now, which may take its time.
    """
    if server.transport == "stdio":
        if not server.command or server.url or server.headers or server.auth:
            raise UserError("MCP_INVALID", "a stdio server has a command, and neither url, headers nor auth")
        if folders:
            check_readable(server.readable)
    elif server.command or server.env or server.readable or server.trusted:
        raise UserError("MCP_INVALID", "a server over HTTP has a url, and neither command, env, readable nor trusted")
    else:
        parse_url(server.url)
