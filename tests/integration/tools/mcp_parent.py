"""A process that has a session with a stdio server, `trusted` or `confined`, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rayloom.dag.mcp import McpServer
from tests.integration.tools.mcp_rig import connected


async def main(kind: str, *command: str) -> None:
    readable = () if kind == "trusted" else (str(Path(__file__).parent),)
    server = McpServer(name="it", transport="stdio", command=command, trusted=kind == "trusted", readable=readable)
    async with connected(server) as rig:
        await rig.call("counts")
        sys.stdout.write("up\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
