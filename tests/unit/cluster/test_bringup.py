"""Bringing up what runs on Ray, with stand-ins for all that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.cluster import bringup
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.home import Home
from rayloom.cluster.settings import Settings, load_settings
from rayloom.db.settings import DatabaseSettings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where it was asked whether the API is ready."""
    asked: list[str] = []

    async def prepared(_settings: Settings, _home: Home, database: DatabaseSettings) -> tuple[DatabaseSettings, str]:
        return database, "key"

    async def nothing(*_: object) -> None:
        pass

    async def ready(url: str) -> None:
        asked.append(url)

    monkeypatch.setattr(bringup, "prepare_database", prepared)
    monkeypatch.setattr(bringup, "end_singletons", lambda *_: None)
    monkeypatch.setattr(bringup, "node_types", lambda *_: ())
    for name in ("_environment", "_start_singletons", "start_serve", "serve_model"):
        monkeypatch.setattr(bringup, name, lambda *_: None)
    monkeypatch.setattr(bringup, "_start_ray", lambda _: "")
    monkeypatch.setattr(bringup, "serve_runs", lambda: False)
    for name in ("until_deployed", "_warm_workers"):
        monkeypatch.setattr(bringup, name, nothing)
    monkeypatch.setattr(bringup, "_until_ready", ready)
    return asked


@pytest.mark.parametrize(
    ("ray_address", "url"), [("", "http://127.0.0.1:8123"), ("head:6379", "https://rayloom.example")]
)
async def test_the_api_is_looked_for_where_it_listens_and_on_another_s_ray_where_it_is_said_to_be(
    asked: list[str], tmp_path: Path, ray_address: str, url: str
) -> None:
    environ = {
        "RAYLOOM_HOME": str(tmp_path),
        "RAYLOOM_HOST": "0.0.0.0",
        "RAYLOOM_PORT": "8123",
        "RAYLOOM_URL": "https://rayloom.example",
        "RAYLOOM_RAY_ADDRESS": ray_address,
        "RAYLOOM_DATABASE_URL": "postgresql:///db?host=/run/postgresql",
    }
    settings = load_settings(None, environ=environ)
    running = await bringup.start(settings, settings.database, settings.redis, exclusive=True)
    assert asked == [url]
    assert running.urls["api"] == "https://rayloom.example/api/v1"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Exception("The current node timed out during startup. This could happen because ..."), StartRefused),
        (OSError("something"), OSError),
    ],
)
def test_a_ray_that_does_not_start_in_time_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr("ray.init", fail)
    for name in ("keep_out_of_the_terminal", "_take_jobs_on_any_port"):
        monkeypatch.setattr(bringup, name, lambda: None)
    with pytest.raises(expected, match=r"did not start within|something"):
        bringup._start_ray(load_settings(None, environ={"RAYLOOM_HOME": str(tmp_path)}))
