"""A worker process is stopped, blocked, and goes on to the next attempt."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.actors.described import describe
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.actors.worker import OVERRUN_EXIT_CODE, Worker
from rayloom.dag.errors import RayloomError
from rayloom.dag.ports import ToolSnapshot
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.settings import ToolSettings

ROOT = Path(__file__).resolve().parents[3]


def _drill(*tools: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.actors.worker_drill", *tools],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def _told(*tools: str) -> dict[str, Any]:
    done = _drill(*tools)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_an_attempt_that_waits_is_stopped_and_cleans_up_and_the_worker_goes_on() -> None:
    told = _told("quick", "waiting", "quick", "waiting", "quick")
    assert [one["verdict"] for one in told["told"]] == ["succeeded", "cancelled", "succeeded", "cancelled", "succeeded"]
    assert told["cleaned"] == ["waiting", "waiting"]
    assert told["told"][0] == {"tool": "quick", "verdict": "succeeded", "output": '"quick"', "by": ["w", "n", "r"]}


def test_a_closed_worker_leaves_nothing_behind() -> None:
    done = _drill("quick", "leaving_something")
    assert json.loads(done.stdout)["left"] == []
    # Neither a socket nor a task: Python would tell.
    assert done.stderr == ""


def test_a_stop_that_comes_as_an_attempt_ends_does_not_stop_the_next() -> None:
    told = _told("interrupted_at_the_end", "quick", "quick")["told"]
    assert [one["verdict"] for one in told] == ["succeeded", "succeeded", "succeeded"]
    assert told[0]["output"] == '"just in time"'


@pytest.mark.parametrize("tool", ["blocking", "deaf"])
def test_a_tool_that_blocks_the_loop_is_ended_with_its_process(tool: str) -> None:
    done = _drill("quick", tool, "quick")
    assert done.returncode == OVERRUN_EXIT_CODE
    assert done.stdout == ""
    assert "attempt.blocked: t:k #1" in done.stderr


def test_a_worker_is_not_ended_while_it_keeps_what_was_done_in_time() -> None:
    [told] = _told("keeping_large")["told"]
    assert (told["verdict"], told["output"]) == ("succeeded", "70002")


NOOP = describe("core.noop", "builtin:core.noop", BUILTINS["core.noop"])
KNOWN = ToolSnapshot(version=3, tools={"core.noop": NOOP})
SWITCHED_OFF = ToolSnapshot(version=2, tools={"core.noop": replace(NOOP, is_active=False)})


@pytest.mark.parametrize(
    ("has", "registry", "code", "asked"),
    [
        (KNOWN, KNOWN, None, 0),
        (ToolSnapshot(version=2, tools={}), KNOWN, None, 1),
        (SWITCHED_OFF, KNOWN, None, 1),
        (ToolSnapshot(version=-1, tools={}), ToolSnapshot(version=3, tools={}), "TOOL_UNKNOWN", 1),
        (SWITCHED_OFF, SWITCHED_OFF, "TOOL_INACTIVE", 1),
    ],
)
async def test_a_tool_is_given_up_only_after_another_look_at_the_registry(
    has: ToolSnapshot, registry: ToolSnapshot, code: str | None, asked: int
) -> None:
    class Registry:
        looks = 0

        async def snapshot(self) -> ToolSnapshot:
            self.looks += 1
            return registry

    settings = WorkerSettings(
        engine=EngineSettings(), database=DatabaseSettings(url=SecretStr("")), redis=RedisSettings(url=SecretStr("")),
        tools=ToolSettings(),
    )  # fmt: skip
    # In a thread, since it makes its own event loop the current one.
    worker: Any = await asyncio.to_thread(Worker, settings, worker_id="w", node_id="n")
    worker._snapshot, worker._registry = has, Registry()
    said = None
    try:
        # The scheduler's list was no newer than this worker's.
        await worker.tool("core.noop", has.version)
    except RayloomError as error:
        said = error.code
    assert (said, worker._registry.looks) == (code, asked)
    await asyncio.to_thread(worker.close)
