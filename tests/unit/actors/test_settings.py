"""What a worker is told, and what it is not."""

from __future__ import annotations

import pickle

from pydantic import SecretStr

from rayloom.actors.settings import EngineSettings, WebhookSettings, WorkerSettings
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings


def test_workers_hold_no_secret_of_the_scheduler() -> None:
    settings = WorkerSettings(
        engine=EngineSettings(),
        database=DatabaseSettings(url=SecretStr("pg://owner:first"), worker_url=SecretStr("pg://worker:second")),
        redis=RedisSettings(url=SecretStr("redis://")),
        tools=ToolSettings(),
        webhooks=WebhookSettings(secret_key=SecretStr("the-secret-key"), source="http://here"),
    )
    told = pickle.dumps(settings.for_workers())
    assert b"second" in told
    assert b"first" not in told
    assert b"the-secret-key" not in told
    assert b"the-secret-key" in pickle.dumps(settings)
