"""FLUSHALL in the middle of a thousand subtasks: nothing lost, nothing committed twice, nothing run twice."""

from __future__ import annotations

import pytest
import redis

from tests.integration.instance import Instance
from tests.integration.runs import Run, sleep
from tests.integration.waiting import wait_until

WIDTH = 998


@pytest.mark.timeout(600)
def test_a_thousand_subtasks_survive_that_redis_forgets_everything(private_instance: Instance) -> None:
    plan = [
        sleep("source", 0),
        *(sleep(f"n{i}", 0.02, "source", resources={"num_cpus": 0.1}) for i in range(WIDTH)),
        sleep("sink", 0, *(f"n{i}" for i in range(WIDTH))),
    ]
    with private_instance.client() as client:
        run = Run.submit(private_instance, client, plan, title="a thousand")
        # Once while nearly all of them are queued, and once when half of them are done.
        for completed in (1, WIDTH // 2):
            wait_until(lambda least=completed: run.progress()["completed"] >= least, every_s=0.01, what=run.progress)  # type: ignore[misc]  # mypy infers no lambda with a default
            with redis.Redis.from_url(private_instance.redis_url) as cache:
                # Of a server that is not ours, only what is ours.
                cache.flushall() if private_instance.services is None else cache.flushdb()
        task = run.completed(within_s=300)
        assert task["progress"]["completed"] == WIDTH + 2
        assert run.attempts() == {1: WIDTH + 2}
        run.expect_sound()
