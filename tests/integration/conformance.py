"""The official conformance suite of MCP, unchanged from npm."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

import pytest

SUITE: Final = "@modelcontextprotocol/conformance@0.1.16"
NODE: Final = "node@22"
"""The suite needs a newer one than distributions have."""
INSTALL_S: Final = 280

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="the suite is installed by npm, which is not here")


async def installed(folder: Path) -> tuple[str, str]:
    """The suite's command, installed in a folder."""
    npm = ("npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), NODE, SUITE)
    code, out = await ran(*npm, within_s=INSTALL_S)
    assert code == 0, out
    modules = folder / "node_modules"
    return str(modules / ".bin" / "node"), str(modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js")


async def ran(*command: str, within_s: float) -> tuple[int | None, str]:
    """The exit code of a command, and what it said. Raises TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(errors="replace")
