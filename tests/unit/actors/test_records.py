"""What a worker process tells of itself beside its rows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.actors.records import WorkerRecords
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.db import attempts
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings
from tests.fakes.refusals import refusals
from tests.unit.actors.test_attempt import order


@pytest.mark.parametrize("begun", [True, False])
async def test_an_attempt_that_may_not_begin_is_told(
    begun: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin(*_: Any) -> bool:
        return begun

    monkeypatch.setattr(attempts, "begin", begin)
    caplog.set_level(logging.INFO)
    settings = WorkerSettings(
        engine=EngineSettings(),
        database=DatabaseSettings(url=SecretStr("postgresql+asyncpg://nobody@127.0.0.1:1/none")),
        redis=RedisSettings(url=SecretStr("redis://127.0.0.1:1")),
        tools=ToolSettings(),
    )
    assert await WorkerRecords(settings, worker_id="w").begin(order(), "r") is begun
    told = {"task_id": "task", "subtask": "k", "attempt": 2, "from": None, "event": "started"}
    assert refusals(caplog) == ([] if begun else [told])
