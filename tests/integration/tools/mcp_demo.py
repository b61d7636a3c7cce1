"""A small real MCP server of the tests, on the official SDK: `mcp_demo.py stdio`, or `mcp_demo.py http|sse PORT`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("demo", version="7.1")
seen = {"cancelled": 0, "calls": 0}
READS = ToolAnnotations(read_only_hint=True)


@server.tool(annotations=READS)
def add(a: int, b: int) -> int:
    """Add two integers."""
    seen["calls"] += 1
    return a + b


@server.tool(annotations=READS)
async def slow(seconds: float) -> str:
    """Wait."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        seen["cancelled"] += 1
        raise
    return "done"


@server.tool(annotations=READS)
def counts() -> dict[str, int]:
    """How many calls there were of what."""
    return {**seen, "pid": os.getpid()}


@server.tool(annotations=ToolAnnotations(destructive_hint=True))
def die() -> str:
    """End at once, with nothing said."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ValueError(reason)


@server.tool(annotations=READS)
def environment() -> dict[str, str]:
    """All variables of the environment."""
    return dict(os.environ)


@server.tool(annotations=READS)
async def report(steps: int, context: Context) -> str:
    """Tell of progress."""
    for step in range(steps):
        await context.report_progress(step + 1, steps, f"step {step + 1}")
        await asyncio.sleep(0.02)
    return "reported"


@server.tool()
async def grow(name: str, context: Context) -> str:
    """Add a tool, and tell both kinds of clients."""
    server.add_tool(lambda: name, name=name, description="added while running")
    await context.notify_tools_changed()
    await context.session.send_tool_list_changed()
    return "ok"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        app = server.streamable_http_app() if sys.argv[1] == "http" else server.sse_app()
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
