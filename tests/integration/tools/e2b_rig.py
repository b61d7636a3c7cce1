"""The local E2B service of this process: started when it is first needed, gone with it; and the word to misbehave."""

from __future__ import annotations

import atexit
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx2
from pydantic import SecretStr

from rayloom.tools.settings import E2bSettings

ROOT: Final = Path(__file__).resolve().parents[3]
KEY: Final = "e2b_" + "0f" * 20


@cache
def url() -> str:
    """Where the service listens."""
    service = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.tools.e2b_service"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdin is not None
    assert service.stdout is not None
    stdin, stdout = service.stdin, service.stdout

    def stop() -> None:
        stdin.close()
        try:
            service.wait(30)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()
        stdout.close()

    atexit.register(stop)
    return f"http://127.0.0.1:{int(stdout.readline())}"


def settings(**changed: Any) -> E2bSettings:
    """What a sandbox is told to be there."""
    given = {"api_key": SecretStr(KEY), "api_url": url(), "sandbox_url": url(), **changed}
    return E2bSettings(**given)


def machines() -> dict[str, dict[str, str]]:
    """The machines that run, each with what we said of it."""
    found: dict[str, dict[str, str]] = _ask("GET")["machines"]
    return found


def coming() -> list[str]:
    """Those that were asked for and are not there yet."""
    found: list[str] = _ask("GET")["waiting"]
    return found


def seen() -> list[dict[str, Any]]:
    """What machines were asked for with, since the service was last told something."""
    found: list[dict[str, Any]] = _ask("GET")["seen"]
    return found


@contextmanager
def misbehaving(**faults: Any) -> Iterator[None]:
    """Let the service do this wrong while the block runs."""
    _ask("POST", {name.replace("_", " "): how for name, how in faults.items()})
    try:
        yield
    finally:
        _ask("POST", {})


def _ask(method: str, body: Any = None) -> Any:
    answer = httpx2.request(method, f"{url()}/stand-in", json=body, timeout=30)
    answer.raise_for_status()
    return answer.json()
