"""The models of a worker: an attempt that finds no room for a call has the time of its own in view."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.actors.worker import Worker
from rayloom.dag.errors import Transient
from rayloom.dag.model import Denied
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.models.settings import ModelSettings, ModelsSettings
from rayloom.tools.settings import ToolSettings
from tests.integration.models.conftest import Serve, question
from tests.integration.models.endpoint import PATIENCE_S, Reply
from tests.integration.models.test_metered import Account
from tests.unit.actors.test_attempt import order


@pytest.mark.parametrize(("timeout_s", "retry_in_s"), [(60.0, 31.0), (5.0, 2.6)])
async def test_who_has_paid_goes_back_to_the_queue_before_the_wait_for_room_takes_its_time(
    serve: Serve, timeout_s: float, retry_in_s: float
) -> None:
    model = ModelSettings(base_url=serve(lambda _: Reply()).url, model="scripted")
    settings = WorkerSettings(
        # Nobody kills this process, however slow the machine is.
        engine=EngineSettings(timeout_grace_s=3_600.0), database=DatabaseSettings(url=SecretStr("")),
        redis=RedisSettings(url=SecretStr("")), tools=ToolSettings(), models=ModelsSettings(models=(model,)),
    )  # fmt: skip
    # In a thread, since it makes its own event loop the current one.
    worker: Any = await asyncio.to_thread(Worker, settings, worker_id="w", node_id="n")
    account = worker._accounts = Account()

    async def think(order: AttemptOrder) -> str:
        models = worker.models(order, lambda call: None)
        await models.complete(question())
        account.answers = [Denied(level="user", limit="tokens_per_min", detail="spent", retry_in_s=retry_in_s)]
        try:
            await models.complete(question())
        except Transient as error:
            return error.code
        return "waited"

    # The signals of this process are none of its business here.
    worker._attempt, worker._listening = think, True
    run = asyncio.to_thread(worker.run, order(timeout_s=timeout_s), ray_task_id="r")
    assert await asyncio.wait_for(run, PATIENCE_S) == "QUOTA_EXCEEDED"
    worker._listening = False
    await asyncio.to_thread(worker.close)
