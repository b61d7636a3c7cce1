"""Serve is started, with a stand-in for it, and finds how patient it shall be with its proxies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from ray.exceptions import ActorDiedError

from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.cluster import bringup
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.home import Home
from rayloom.cluster.serving import start_serve
from rayloom.cluster.settings import load_settings
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings


@pytest.mark.parametrize("fault", [ActorDiedError, TimeoutError])
@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_a_proxy_that_was_too_slow_and_is_replaced_is_no_reason_to_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, fault: type[Exception]
) -> None:
    starts: list[int] = []
    deployed: list[object] = []

    def start(**_: object) -> None:
        starts.append(1)
        if len(starts) <= deaths:
            raise fault

    monkeypatch.setattr("ray.serve.start", start)
    monkeypatch.setattr("ray.serve.run_many", lambda targets, **_: deployed.append(targets))
    settings = load_settings(None, environ={"RAYLOOM_HOME": str(tmp_path)})
    worker_settings = WorkerSettings(
        engine=EngineSettings(),
        database=DatabaseSettings(url=SecretStr("postgresql+asyncpg://u@127.0.0.1:1/d")),
        redis=RedisSettings(url=SecretStr("redis://127.0.0.1:1")),
        tools=ToolSettings(),
    )
    if deaths > 1:
        with pytest.raises(StartRefused, match=fault.__name__):
            start_serve(settings, worker_settings)
    else:
        start_serve(settings, worker_settings)
    assert len(starts) == min(deaths + 1, 2)
    assert len(deployed) == (deaths < 2)


def test_serve_finds_the_callback_of_its_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    bringup._environment(load_settings(None, environ={"RAYLOOM_HOME": str(tmp_path)}), Home(tmp_path))
    ask = (
        "from ray.serve.config import HTTPOptions; from uvicorn import Config; "
        "from ray.serve._private.http_util import configure_http_middlewares as configure; "
        "print(*(each.cls.__name__ for each in configure(HTTPOptions()).middlewares)); "
        "config = Config(print); config.load(); print(config.http_protocol_class.__module__)"
    )
    told = subprocess.run([sys.executable, "-c", ask], env=os.environ, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["JsonAnswers", "rayloom.serve.connections"]


def test_serve_finds_how_often_to_look_at_proxies_how_long_they_may_start_and_that_it_shall_not_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    bringup._environment(load_settings(None, environ={"RAYLOOM_HOME": str(tmp_path)}), Home(tmp_path))
    ask = (
        "from ray.serve._private import constants as c; print(c.PROXY_HEALTH_CHECK_PERIOD_S, "
        "c.PROXY_HEALTH_CHECK_TIMEOUT_S, c.PROXY_READY_CHECK_TIMEOUT_S, c.MAX_PER_REPLICA_RETRY_COUNT)"
    )
    told = subprocess.run([sys.executable, "-c", ask], env=os.environ, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["2.0", "15.0", "20.0", "1000000"]
