"""The fake API, and a command line that is pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayloom.cluster.cli.program import run
from rayloom.serve.client import Client
from tests.unit.cli.api import KEY, FakeApi, Server


@pytest.fixture(scope="session")
def server() -> Iterator[FakeApi]:
    with Server(FakeApi()) as running:
        yield running


@pytest.fixture
def api(server: FakeApi) -> Iterator[FakeApi]:
    server.reset()
    yield server
    server.release()


@pytest.fixture
def client(api: FakeApi) -> Iterator[Client]:
    with Client(api.url, KEY, patience_s=30.0, pause=lambda _s: None) as opened:
        yield opened


@pytest.fixture
def rayloom(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line, in this process: its arguments in, its exit code out."""
    monkeypatch.setenv("RAYLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYLOOM_URL", api.url)
    monkeypatch.setenv("RAYLOOM_API_KEY", KEY)
    return lambda *arguments: run(arguments)
