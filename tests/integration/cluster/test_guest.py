"""On a Ray cluster that is not ours: we take away what we brought, also half way, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayloom.cluster import head_process
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.head import Order
from rayloom.cluster.head_process import HeadProcess
from rayloom.cluster.settings import load_settings
from tests.integration.fake_autoscaling import FakeAutoscalingCluster
from tests.integration.instance import PROGRAM, START_S, STOP_S, Instance, given_services, running
from tests.integration.runs import Run, echo
from tests.integration.waiting import wait_until

PROGRAM_OF_THEIRS = Path(__file__).with_name("neighbour.py")
STARTING_FOR_EVER = """
import asyncio, ray, sys
from rayloom.cluster import bringup, head

async def start(settings, *_, **__):
    ray.init(settings.ray_address, logging_level="ERROR", log_to_driver=False)
    (settings.home / "joined").touch()
    await asyncio.Event().wait()

bringup.start = start
head.main(sys.argv[1:])
"""
NOTHING_OF_OURS = {"actors": [], "applications": ["theirs"]}


class Neighbour:
    """Who uses the cluster besides us."""

    def __init__(self, cluster: FakeAutoscalingCluster) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM_OF_THEIRS), cluster.address],
            env={**os.environ, **cluster.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def asked(self, command: str) -> Any:
        """The answer to a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def leave(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeAutoscalingCluster]:
    with FakeAutoscalingCluster((), head_cpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def neighbour(cluster: FakeAutoscalingCluster) -> Iterator[Neighbour]:
    started = Neighbour(cluster)
    yield started
    started.leave()


def environ(cluster: FakeAutoscalingCluster) -> dict[str, str]:
    return {**cluster.environment, "RAYLOOM_RAY_ADDRESS": cluster.address}


def test_the_applications_of_others_outlive_us(cluster: FakeAutoscalingCluster, neighbour: Neighbour) -> None:
    with running(**environ(cluster)):
        assert neighbour.asked("deploy") == "still here"
        assert neighbour.asked("seen")["applications"] == ["rayloom", "theirs"]
    assert neighbour.asked("seen") == NOTHING_OF_OURS
    assert neighbour.asked("ask") == "still here"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_stopped_half_way_leaves_nothing(
    cluster: FakeAutoscalingCluster, neighbour: Neighbour, number: int
) -> None:
    """Serve keeps the port that the first test gave it, so this one waits in vain for its API to become ready."""
    assert neighbour.asked("ask") == "still here"
    with given_services() as services:
        instance = Instance(Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp")), services, environ(cluster))
        try:
            with instance.log.open("wb") as sink:
                process = subprocess.Popen(
                    [*PROGRAM, "up"], cwd=instance.folder, env=instance.environ, stdout=sink, stderr=sink
                )
            wait_until(lambda: neighbour.asked("seen")["applications"] == ["rayloom", "theirs"], within_s=START_S)
            assert len(neighbour.asked("seen")["actors"]) == 4
            process.send_signal(number)
            assert process.wait(STOP_S) == 0, instance.said()
        finally:
            instance.destroy()
    assert neighbour.asked("seen") == NOTHING_OF_OURS
    assert neighbour.asked("ask") == "still here"


def test_up_waits_for_a_cluster_that_is_gone_and_serves_again_when_it_is_back() -> None:
    with FakeAutoscalingCluster((), head_cpus=2) as cluster, running(**environ(cluster)) as instance:
        cluster.kill()
        wait_until(lambda: "waiting for it" in instance.said(), within_s=START_S, what=instance.said)
        status = json.loads(instance.rayloom("status", "--json", code=1))
        assert (status["state"], status["serve"]["state"]) == ("restarting Ray", "down")
        with cluster:
            wait_until(lambda: "serving again" in instance.said(), within_s=START_S, what=instance.said)
            assert "(failure 1 of 3 in 5 minutes)" in instance.said()
            with instance.client() as client:
                assert Run.submit(instance, client, [echo("a", "back")]).completed()["result"] == "back"
            # Before its cluster, or it would go on to wait.
            instance.stop()


async def test_cluster_that_goes_during_a_start_is_noticed_though_ray_itself_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_process, "PROGRAM", ("-P", "-c", STARTING_FOR_EVER))
    with FakeAutoscalingCluster((), head_cpus=2) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        settings = load_settings(None, environ={"RAYLOOM_HOME": str(tmp_path), "RAYLOOM_RAY_ADDRESS": cluster.address})
        order = Order(
            settings=settings, database=settings.database, redis=settings.redis, exclusive=True, llama=None
        )  # fmt: skip
        driver = HeadProcess(order, tell=print, services=list, quiet=True)
        starting = asyncio.create_task(driver.start())
        try:
            await asyncio.to_thread(wait_until, (tmp_path / "joined").exists, within_s=START_S)
            cluster.kill()
            async with asyncio.timeout(START_S):
                # Asked whether it is there, Ray may end the driver itself.
                with cluster, pytest.raises(StartRefused, match=r"is gone|the driver of Ray .* ended"):
                    await starting
        finally:
            await driver.destroy()


@pytest.fixture(scope="module")
def newcomer(cluster: FakeAutoscalingCluster) -> Iterator[Instance]:
    """A rayloom that is to join the cluster, and is not started."""
    with given_services() as services:
        made = Instance(Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp")), services, environ(cluster))
        yield made
        made.destroy()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and RAY_AUTH_MODE is not token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN": "another"}, "refuses the token of RAY_AUTH_TOKEN: let RAY_AUTH_TOKEN_PATH name"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "there is no token for the Ray cluster"),
    ],
    ids=["mode is not token", "wrong token", "no token"],
)
def test_cluster_that_refuses_the_token_is_one_line(
    cluster: FakeAutoscalingCluster, newcomer: Instance, given: dict[str, str], said: str
) -> None:
    ended = subprocess.run(
        [*PROGRAM, "up"], cwd=newcomer.folder, env=newcomer.environ | given, capture_output=True, text=True,
        timeout=START_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("rayloom: ")
    assert said in line
    assert "another" not in line
