"""What the container sandbox alone promises: its image, its orphans, the containers that wait."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from rayloom.cluster.cli import program
from rayloom.dag.errors import Refused
from rayloom.dag.values import Json
from rayloom.tools.sandbox import container, image, measures, owner
from rayloom.tools.sandbox.container import Shape
from rayloom.tools.sandbox.docker import Docker
from rayloom.tools.sandbox.engine import Engine, EngineError
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec
from rayloom.tools.sandbox.select import Auto
from rayloom.tools.settings import DockerSettings, SandboxLimits
from tests.integration.tools.sandboxes import DOCKER, containers, docker_only, eventually

pytestmark = docker_only

HELLO = RunSpec(program="python", source=b"print('hello')", limits=SandboxLimits())


@pytest.fixture
async def docker() -> AsyncIterator[Docker]:
    """A sandbox of its own, which has not tried anything yet."""
    docker = Docker(DOCKER)
    yield docker
    await eventually(docker.is_settled)
    waiting = docker.waiting()
    docker.close()

    async def none_is_left() -> bool:
        return not waiting & set(await containers())

    await eventually(none_is_left)


@pytest.fixture
async def cold() -> Docker:
    """One that keeps nothing ready, so that every container there is belongs to a run."""
    cold = Docker(DOCKER.model_copy(update={"warm": 0}))
    await cold.probe()
    return cold


async def _begun(docker: Docker) -> tuple[asyncio.Future[RunResult], str]:
    """A run that goes on until it is stopped, and the id of its container."""
    before = set(await containers())
    started = asyncio.Event()
    spec = RunSpec(
        program="shell", source=b"echo up; sleep 1000", limits=SandboxLimits(), on_line=lambda *_: started.set()
    )
    running = asyncio.ensure_future(docker.run(spec))
    await started.wait()
    (identifier,) = set(await containers()) - before
    return running, identifier


async def test_a_run_takes_the_container_that_waits_and_leaves_another(docker: Docker) -> None:
    runs: list[measures.Run] = []
    measures.listen(runs.append)
    try:
        for _ in range(3):
            assert (await docker.run(HELLO)).stdout == "hello\n"
            await eventually(docker.waiting)
    finally:
        measures.ignore(runs.append)
    # The first one of all only tried whether it works, and printed nothing.
    assert runs.pop(0).first_output_s is None
    assert [run.warm for run in runs] == [False, True, True]
    assert all(run.total_s >= (run.first_output_s or 0) >= run.start_s for run in runs)


async def test_another_shape_gets_no_container_that_was_made_for_less(docker: Docker) -> None:
    await docker.run(HELLO)
    await eventually(docker.waiting)
    spec = RunSpec(
        program="shell",
        source=b"df -k /workspace | tail -1 | tr -s ' ' | cut -d' ' -f2",
        limits=SandboxLimits(disk_mb=9),
    )
    assert (await docker.run(spec)).stdout == f"{9 * 1024}\n"


async def test_the_limits_are_those_of_the_engine(docker: Docker) -> None:
    await docker.probe()
    engine = Engine(DOCKER.address)
    shape = Shape.of(image.NAME, "", SandboxLimits(memory_mb=100, pids=20, cpus=0.5, disk_mb=7))
    made = await container.start(engine, shape)
    try:
        found = await engine.ask("GET", f"/containers/{made.id}/json")
    finally:
        await made.discard()
    config, host = found["Config"], found["HostConfig"]
    assert (config["User"], host["NetworkMode"], host["ReadonlyRootfs"]) == ("65534:65534", "none", True)
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert (host["SecurityOpt"], host["PidsLimit"], host["NanoCpus"]) == (["no-new-privileges"], 21, 500_000_000)
    assert host["Memory"] == host["MemorySwap"] == 100 * 1024 * 1024
    assert (host["Binds"], found["Mounts"], host["IpcMode"]) == (None, [], "private")


async def test_a_container_that_ended_while_it_waited_is_not_taken(docker: Docker) -> None:
    await docker.run(HELLO)
    await eventually(docker.waiting)
    (waiting,) = docker.waiting()
    await container.remove(Engine(DOCKER.address), waiting)
    assert (await docker.run(HELLO)).stdout == "hello\n"


async def test_a_stopped_run_has_no_container(cold: Docker) -> None:
    running, identifier = await _begun(cold)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert identifier not in await containers()


async def test_a_container_killed_from_outside_is_no_success(cold: Docker) -> None:
    running, identifier = await _begun(cold)
    await container.remove(Engine(DOCKER.address), identifier)
    result = await running
    assert (result.exit_code, result.oom, result.timed_out) == (137, False, False)
    assert "ended before it" in result.stderr


_DIES = """
import asyncio, sys
from rayloom.tools.sandbox.docker import Docker
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.settings import DockerSettings, SandboxLimits
told = lambda *_: print("up", flush=True)
spec = RunSpec(program="shell", source=b"echo up; sleep 1000", limits=SandboxLimits(), on_line=told)
asyncio.run(Docker(DockerSettings(address=sys.argv[1], warm=0)).run(spec))
"""


async def test_containers_of_a_killed_worker_end_with_it(docker: Docker) -> None:
    await docker.probe()
    engine = Engine(DOCKER.address)
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", _DIES, DOCKER.address, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"up\n"
    label = f"{owner.PROCESS}={worker.pid}:"

    async def its_containers() -> list[str]:
        found = await engine.ask("GET", "/containers/json", query={"all": "1"})
        return [
            each["Id"] for each in found if f"{owner.PROCESS}={each['Labels'].get(owner.PROCESS)}".startswith(label)
        ]

    assert await its_containers()
    worker.send_signal(signal.SIGKILL)
    await worker.wait()

    async def none_is_left() -> bool:
        return not await its_containers()

    await eventually(none_is_left)


async def _stuck(labels: dict[str, str]) -> str:
    """A container that nothing ends, as an engine that was restarted may have kept it."""
    body: Json = {
        "Image": image.NAME,
        "Cmd": ["sleep", "1000"],
        "Labels": dict[str, Json](labels),
        "HostConfig": {"NetworkMode": "none"},
    }
    engine = Engine(DOCKER.address)
    made = await engine.ask("POST", "/containers/create", body=body)
    await engine.ask("POST", f"/containers/{made['Id']}/start")
    return str(made["Id"])


async def test_orphans_are_removed_and_nobody_else_s(docker: Docker) -> None:
    await docker.probe()
    engine = Engine(DOCKER.address)
    dead = await asyncio.create_subprocess_exec("true")
    await dead.wait()
    ours = owner.labels()
    orphans = [
        await _stuck({**ours, owner.PROCESS: f"{dead.pid}:1"}),
        await _stuck({**ours, owner.PLACE: "elsewhere", owner.EXPIRES: "1"}),
    ]
    others = [
        await _stuck(ours),
        await _stuck({**ours, owner.PLACE: "elsewhere", owner.PROCESS: "1:1"}),
        await _stuck({"somebody": "else"}),
    ]
    try:
        assert await docker.sweep() == 2
        for identifier in orphans:
            with pytest.raises(EngineError, match="404"):
                await engine.ask("GET", f"/containers/{identifier}/json")
        for identifier in others:
            assert (await engine.ask("GET", f"/containers/{identifier}/json"))["State"]["Running"]
    finally:
        for identifier in (*orphans, *others):
            await container.remove(engine, identifier)


async def test_auto_takes_the_engine_that_has_the_image(docker: Docker) -> None:
    await docker.probe()  # makes the image where it is missing
    auto = Auto(DOCKER)
    report = await auto.probe()
    assert (report.backend, auto.name) == ("docker", "docker")
    elsewhere = Auto(DockerSettings(address=DOCKER.address, image="rayloom-no-such-image"))
    assert (await elsewhere.probe()).backend == "bubblewrap"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image": "rayloom-no-such-image"}, "no image"),
        ({"runtime": "no-such-runtime"}, "no runtime"),
        ({"address": "unix:///nowhere/docker.sock"}, "no container engine answers"),
        ({"address": "tcp://127.0.0.1:2375"}, "other sockets are not supported"),
    ],
)
async def test_what_is_not_there_is_refused_with_its_reason(settings: dict[str, str], said: str) -> None:
    docker = Docker(DockerSettings(**{"address": DOCKER.address, **settings}))  # type: ignore[arg-type]  # only strings
    with pytest.raises(Refused, match=said) as error:
        await docker.run(HELLO)
    assert error.value.code == "SANDBOX_UNAVAILABLE"


def test_the_image_is_made_and_tried_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # rayloom takes no variable that it doesn't know, and this one is of the tests.
    monkeypatch.delenv("RAYLOOM_TEST_DOCKER_ADDRESS", raising=False)
    monkeypatch.setenv("RAYLOOM_DOCKER_ADDRESS", DOCKER.address)
    monkeypatch.setenv("RAYLOOM_SANDBOX", "docker")
    assert program.run(["sandbox", "build", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["image"] == image.NAME
    assert 10_000_000 < built["size_bytes"] < 200_000_000
    assert program.run(["sandbox", "check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "ok"
    assert found["detail"].startswith("docker ")
    assert image.NAME in found["detail"]
