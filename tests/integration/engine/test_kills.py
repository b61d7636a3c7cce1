"""kill -9, once each, in the middle of a run: it finishes by itself, every subtask committed once, in order."""

from __future__ import annotations

import pytest

from tests.integration.engine import chaos
from tests.integration.instance import Instance
from tests.integration.runs import Run, echo
from tests.integration.waiting import wait_until

VICTIMS: dict[str, chaos.Kill] = {
    "scheduler": chaos.process_called("ray::_SchedulerActor"),
    "workers": chaos.workers,
    "postgres": chaos.postgres,
    "redis": chaos.cache,
    "redis-flushed": chaos.flush_cache,
    "api": chaos.process_called("ray::ServeReplica:rayloom:Api"),
    "proxy": chaos.process_called("ray::ProxyActor"),
    "serve": chaos.process_called("ray::ServeController"),
    "registry": chaos.process_called("ray::_ToolRegistryActor"),
    "tokens": chaos.process_called("ray::_TokenControllerActor"),
    "agent": chaos.process_called("ray::RuntimeEnvAgent"),
    "dashboard": chaos.process_called("dashboard/dashboard.py"),
    "gcs": chaos.process_called("gcs/gcs_server"),
}

RUNS_ATTEMPTS = {"scheduler", "workers", "agent", "gcs"}
"""With these die attempts that were running."""
SAID = {
    "scheduler": "the scheduler is back",
    "agent": "serving again",
    "dashboard": "the dashboard of Ray is back",
    "gcs": "serving again",
}
"""What `rayloom up` says at last, of some."""


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_run_survives_the_death_of(victim: str, private_instance: Instance) -> None:
    with private_instance.client() as client:
        before = len(private_instance.said())
        run = chaos.begin(private_instance, client, seed=list(VICTIMS).index(victim))
        VICTIMS[victim](private_instance)
        chaos.expect_whole(run)
        if victim in SAID:
            wait_until(lambda: SAID[victim] in private_instance.said()[before:], what=private_instance.said)
        if victim not in RUNS_ATTEMPTS:
            chaos.expect_nothing_run_twice(run)
        # And it is as ready for new work as before.
        assert Run.submit(private_instance, client, [echo("a", victim)]).completed()["result"] == victim
        wait_until(lambda: client.get("/readyz")["status"] == "ready", what=lambda: client.get("/readyz"))


def test_a_run_survives_the_death_of_the_supervisor(private_instance: Instance) -> None:
    with private_instance.client() as client:
        run = chaos.begin(private_instance, client, seed=99)
        private_instance.kill()
        private_instance.start()
        chaos.expect_whole(run)
