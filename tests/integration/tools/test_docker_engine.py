"""Engines that go and come back, lack the image, or are asked for too little; what the dead have left in them."""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayloom.cluster import checks
from rayloom.cluster.settings import Settings
from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.sandbox import docker, image, owner, select
from rayloom.tools.sandbox.docker import Docker
from rayloom.tools.sandbox.engine import Engine, EngineError
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.sandbox.select import Auto
from rayloom.tools.sandbox.tidy import tidy
from rayloom.tools.settings import DockerSettings, SandboxLimits, ToolSettings
from tests.integration.tools.sandboxes import DOCKER, docker_only
from tests.integration.tools.wheels import store_of_its_own

pytestmark = docker_only

HELLO = RunSpec(program="python", source=b"print('hello')", limits=SandboxLimits())


@pytest.fixture
def way() -> Iterator[Path]:
    """A path that leads to the engine's socket."""
    # Not below pytest's folder: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="rlw") as folder:
        path = Path(folder, "docker.sock")
        _lead(path)
        yield path


def _lead(path: Path) -> None:
    path.symlink_to(DOCKER.address.removeprefix("unix://"))


def _lose(path: Path) -> None:
    path.unlink()


async def test_auto_goes_to_bubblewrap_while_the_engine_is_lost(
    way: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=select.__name__)
    await Docker(DOCKER).probe()  # makes the image where it is missing
    # One that is busy is not lost yet.
    monkeypatch.setattr(docker, "PING_S", 30)
    auto = Auto(DockerSettings(address=f"unix://{way}", warm=0))

    async def backends(count: int) -> list[str]:
        return [(await auto.run(HELLO)).backend for _ in range(count)]

    assert await backends(1) == ["docker"]
    _lose(way)
    assert await backends(3) == ["bubblewrap"] * 3
    _lead(way)
    # Not each run looks whether it is back.
    assert await backends(1) == ["bubblewrap"]
    monkeypatch.setattr(select, "LOOK_AGAIN_S", 0)
    auto._look_at = 0
    assert await backends(2) == ["docker"] * 2
    # One that listens and says nothing is no better.
    monkeypatch.setattr(docker, "PING_S", 0.2)
    _lose(way)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(way))
        silent.listen()
        assert await backends(1) == ["bubblewrap"]
    assert [each.message for each in caplog.records] == [
        "sandbox.engine_lost",
        "sandbox.engine_back",
        "sandbox.engine_lost",
    ]


async def test_a_program_of_somebody_s_own_image_waits_for_the_engine(way: Path) -> None:
    await Docker(DOCKER).probe()
    auto = Auto(DockerSettings(address=f"unix://{way}", image=image.NAME, warm=0))
    assert (await auto.run(HELLO)).backend == "docker"
    _lose(way)
    with pytest.raises(Transient, match="no container engine answers"):
        await auto.run(HELLO)


async def test_who_only_looks_makes_no_image(way: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "NAME", "rayloom-sandbox-of-a-test:1")
    # By a way of its own: a process tries each engine once.
    settings = Settings(sandbox="docker", docker_address=f"unix://{way}")
    found = await asyncio.to_thread(checks.sandbox, settings)
    assert found.level == "warn"
    assert "`rayloom sandbox build` makes one" in found.detail
    with pytest.raises(EngineError, match="404"):
        await Engine(DOCKER.address).ask("GET", f"/images/{image.NAME}/json")


@pytest.mark.parametrize("memory_mb", [1, 6, 7])
async def test_too_little_memory_for_any_program_is_said_to_its_author(memory_mb: int) -> None:
    cold = Docker(DOCKER.model_copy(update={"warm": 0}))
    spec = RunSpec(program="python", source=b"print(1)", limits=SandboxLimits(memory_mb=memory_mb))
    with pytest.raises(UserError, match="memory_mb") as error:
        await cold.run(spec)
    assert error.value.code == "LIMITS_TOO_SMALL"


async def test_orphans_are_removed_by_whoever_comes_by() -> None:
    engine = Engine(DOCKER.address)
    await Docker(DOCKER).probe()
    dead = await asyncio.create_subprocess_exec("true")
    await dead.wait()
    labels = {**owner.labels(), owner.PROCESS: f"{dead.pid}:1"}
    # Made, and never started: nothing ends such a one, and no engine removes it.
    body: Json = {"Image": image.NAME, "Cmd": ["true"], "Labels": dict[str, Json](labels)}
    made = await engine.ask("POST", "/containers/create", body=body)
    with store_of_its_own():
        assert await tidy(ToolSettings(sandbox="bubblewrap", docker=DOCKER)) == {}
        assert (await tidy(ToolSettings(sandbox="auto", docker=DOCKER)))["containers"] == 1
    with pytest.raises(EngineError, match="404"):
        await engine.ask("GET", f"/containers/{made['Id']}/json")
    nowhere = DockerSettings(address="unix:///nowhere/docker.sock")
    with store_of_its_own():
        assert await tidy(ToolSettings(sandbox="docker", docker=nowhere)) == {}
    with pytest.raises(Refused):
        await Docker(nowhere).probe()
