"""`rayloom migrate`: the database that it is given, however it is spelled, and what it says of a wrong one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from rayloom.db.settings import DatabaseSettings

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]
AS_MEANT = "postgresql+asyncpg://u:p@db/x"


@pytest.fixture
def migrated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The databases that were reached and migrated."""
    seen: list[str] = []

    async def reach(_database: DatabaseSettings) -> None:
        """It answers."""

    async def upgrade(url: str) -> None:
        seen.append(url)

    monkeypatch.setattr("rayloom.cluster.reach.database", reach)
    monkeypatch.setattr("rayloom.db.migrate.upgrade", upgrade)
    return seen


@pytest.mark.parametrize("spelling", [AS_MEANT, "postgresql://u:p@db/x", "postgres://u:p@db/x"])
def test_a_database_is_migrated_however_its_url_is_spelled(
    rayloom: Rayloom, capsys: Capture, migrated: list[str], monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    assert rayloom("migrate", spelling, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"migrated": True}
    monkeypatch.setenv("RAYLOOM_DATABASE_URL", spelling)
    assert rayloom("migrate") == 0
    assert migrated == [AS_MEANT, AS_MEANT]


def test_a_url_suffices_whatever_else_is_set(
    rayloom: Rayloom, migrated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLOOM_PORT", "none")
    assert rayloom("migrate", AS_MEANT) == 0
    assert migrated == [AS_MEANT]
    assert rayloom("migrate") == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:geheim@db/x", "must look like postgresql+asyncpg://"),
        ("db/x", "must look like postgresql+asyncpg://"),
        ("postgresql://u:geheim@db:abc/x", "a port from 1 to 65535"),
        ("postgresql://u:geheim@db:99999/x", "a port from 1 to 65535"),
        ("postgresql://u:0/geheim@db/x", "a port from 1 to 65535"),
    ],
)
def test_a_url_that_means_no_database_is_told(
    rayloom: Rayloom, capsys: Capture, migrated: list[str], url: str, said: str
) -> None:
    assert rayloom("migrate", url) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "unexpected" not in told
    assert "geheim" not in told
    assert migrated == []


def test_a_database_that_does_not_answer_is_told(rayloom: Rayloom, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert rayloom("migrate", f"postgresql://u:geheim@127.0.0.1:{port}/x") == 1
    told = capsys.readouterr().err
    assert f"PostgreSQL at 127.0.0.1:{port} does not answer" in told
    assert "geheim" not in told
