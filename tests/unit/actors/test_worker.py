"""A worker process is stopped, blocked, and goes on to the next attempt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayloom.actors.worker import OVERRUN_EXIT_CODE

ROOT = Path(__file__).resolve().parents[3]


def _drill(*tools: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.actors.worker_drill", *tools],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
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
