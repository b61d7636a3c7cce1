"""The kinds of sandbox that this machine has, runs in them, and what a run might leave behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import orjson
import pytest

from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.sandbox import owner, processes
from rayloom.tools.sandbox.engine import Engine
from rayloom.tools.sandbox.sandbox import Sandbox
from rayloom.tools.sandbox.select import sandbox_for
from rayloom.tools.settings import DockerSettings, E2bSettings
from tests.integration.tools import e2b_rig
from tests.unit.tools.context import KeptLog, make_context

Kind = Literal["bubblewrap", "docker", "e2b"]

_GIVEN: Final = os.environ.get("RAYLOOM_TEST_DOCKER_ADDRESS", "")
DOCKER: Final = DockerSettings(address=_GIVEN or DockerSettings().address)
GONE_S: Final = 120.0

_no_engine = not _GIVEN and not os.access(DOCKER.address.removeprefix("unix://"), os.W_OK)
docker_only = pytest.mark.skipif(_no_engine, reason="no container engine: RAYLOOM_TEST_DOCKER_ADDRESS may name one")
ids_only = pytest.mark.skipif(os.geteuid() != 0, reason="the local E2B service gives out ids of users: root's right")
# Those that see folders and sockets of this host; the machines of E2B are elsewhere.
HERE: Final = ("bubblewrap", pytest.param("docker", marks=docker_only))
here = pytest.mark.parametrize("kind", HERE, indirect=True)
KINDS: Final = (*HERE, pytest.param("e2b", marks=ids_only))


def sandbox_of(kind: Kind) -> Sandbox:
    """The sandbox of a kind, which must work here."""
    return sandbox_for(kind, DOCKER, e2b_rig.settings() if kind == "e2b" else E2bSettings())


async def run(kind: Kind, tool: str = "python.run", *, log: KeptLog | None = None, **input: Json) -> Any:
    """The output of a call."""
    e2b = e2b_rig.settings() if kind == "e2b" else E2bSettings()
    context = make_context(log=log, sandbox=kind, docker=DOCKER, e2b=e2b)
    return (await call_tool(BUILTINS[tool], dict(input), context)).output


def children() -> frozenset[int]:
    """The processes that this one has started itself: runs, and raylooms of other tests with all that is below them."""
    pids: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):
            pids += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return frozenset(pids)


def traces(others: frozenset[int]) -> frozenset[str]:
    """What a run could leave behind: children beside those of ``others``, open descriptors, control groups."""
    # Not by a glob: an engine removes groups meanwhile.
    groups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
    found = {f"process {pid}" for child in children() - others for pid in processes.tree(child)}
    found |= {f"control group {name}" for name in groups if name.startswith(f"rayloom-{os.getpid()}-")}
    for descriptor in os.listdir("/proc/self/fd"):
        # That of the look itself is closed by now.
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            # Of a kind that a run opens. Fixtures of the session open sockets and files meanwhile.
            if target.startswith(("pipe:", "anon_inode:[pidfd]", "/memfd:", "/sys/fs/cgroup", "/proc/")):
                found.add(f"descriptor {descriptor}: {target}")
    return frozenset(found)


async def containers() -> dict[str, str]:
    """The containers of sandboxes that this process made and that are there, with their states."""
    query = {"all": "1", "filters": orjson.dumps({"label": [owner.SANDBOX]}).decode()}
    found = await Engine(DOCKER.address).ask("GET", "/containers/json", query=query)
    ours = owner.labels()[owner.PROCESS]
    return {each["Id"]: each["State"] for each in found if each["Labels"].get(owner.PROCESS) == ours}


async def eventually(holds: Callable[[], Any], *, within_s: float = GONE_S) -> None:
    """Wait until something holds; what an engine tidies up by itself gives no other sign."""
    until = time.monotonic() + within_s
    while True:
        found = holds()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < until, f"it did not come to be within {within_s:g} s"
        await asyncio.sleep(0.02)
