"""Real MCP servers, unmodified: installed from PyPI and npm where the tests run, and the small one of our own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.integration.waiting import wait_until

DEMO = str(Path(__file__).parent / "tools" / "mcp_demo.py")
DEMO_COMMAND = (sys.executable, DEMO, "stdio")
PYPI = {"mcp-server-time": "2026.10.19", "mcp-server-git": "2026.10.19"}
NPM = {"everything": "2026.8.31", "filesystem": "2026.8.31", "memory": "2026.8.31"}
INSTALL_S = 280


def pypi_servers(folder: Path) -> dict[str, str]:
    """The programs of the servers from PyPI, in an environment of their own."""
    venv.create(folder, with_pip=True)
    _run(
        str(folder / "bin" / "pip"),
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *(f"{n}=={v}" for n, v in PYPI.items()),
    )
    return {name: str(folder / "bin" / name) for name in PYPI}


def npm_servers(folder: Path) -> dict[str, str]:
    """The programs of the servers from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on this machine")
    packages = (f"@modelcontextprotocol/server-{name}@{version}" for name, version in NPM.items())
    _run(npm, "install", "--silent", "--prefix", str(folder), *packages)
    return {name: str(folder / "node_modules" / ".bin" / f"mcp-server-{name}") for name in NPM}


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"


@contextmanager
def serving(port: int, *command: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server over HTTP, from when it answers."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": _path(), **env}
    )

    def answers() -> bool:
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        try:
            httpx2.head(f"http://127.0.0.1:{port}/", trust_env=False)
        except httpx2.TransportError:
            return False
        return True

    try:
        wait_until(answers)
        yield process
    finally:
        process.kill()
        process.wait()


def _path() -> str:
    return ":".join(str(Path(found).parent) for name in ("node", "sh") if (found := shutil.which(name)))
