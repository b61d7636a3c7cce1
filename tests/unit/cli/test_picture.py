"""The live picture: what the tree shows, how events move it, and that it fits the terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from rayloom.cluster.cli.progress import WatchedTask
from rayloom.cluster.cli.tree import TaskPicture, rows, window

DEPENDENCIES = {"start": [], "left": ["start"], "right": ["start"], "join": ["left", "right"], "tail": ["join"]}


def _task(**statuses: str) -> WatchedTask:
    now = [100.0]
    task = WatchedTask(task_id="t-1", clock=lambda: now[0])
    subtasks: list[dict[str, Any]] = [
        {"id": key, "name": key.title(), "tool": "core.echo", "depends_on": depends, "attempts": 1}
        | {"status": statuses.get(key, "READY"), "duration_ms": 1_500 if statuses.get(key) == "COMPLETED" else None}
        for key, depends in DEPENDENCIES.items()
    ]
    task.load({"status": "PROCESSING", "title": "Tea \x1b[31m", "progress": {"total": 5}, "subtasks": list(subtasks)})
    return task


def _drawn(task: WatchedTask, *, height: int = 40, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=False).print(TaskPicture(task))
    return out.getvalue()


def test_every_subtask_is_drawn_once_under_its_last_dependency() -> None:
    drawn = [(row.subtask.id, row.depth, row.also) for row in rows(_task().subtasks)]
    assert drawn == [
        ("start", 0, ()),
        ("left", 1, ()),
        ("right", 1, ()),
        ("join", 2, ("left",)),
        ("tail", 3, ()),
    ]


def test_the_picture_tells_states_durations_and_progress() -> None:
    drawn = _drawn(_task(start="COMPLETED", left="RUNNING"))
    assert "PROCESSING" in drawn
    assert "\x1b" not in drawn
    assert "1/5  1 running" in drawn
    assert "✔ Start  core.echo  COMPLETED · 1.5 s" in drawn
    assert "  ▶ Left  core.echo  RUNNING · 0 ms" in drawn
    assert "    · Join  core.echo  READY  + left" in drawn


def test_a_plan_that_is_not_whole_is_never_drawn_as_done() -> None:
    task = WatchedTask(task_id="t")
    rows: list[Any] = [{"id": "a", "status": "COMPLETED", "depends_on": []}]
    details: dict[str, Any] = {"status": "PROCESSING", "progress": {"total": 1}, "subtasks": rows}
    task.load({**details, "plan_open": True})
    beginning = _drawn(task)
    assert "1/1  the plan is not whole" in beginning
    task.load(details)
    whole = _drawn(task)
    assert "the plan is not whole" not in whole
    assert 0 < beginning.count("━") < whole.count("━")


def test_events_move_it() -> None:
    task = _task(start="COMPLETED")
    move: dict[str, Any] = {"subtask": "left", "to": "RUNNING", "phase": "EXECUTING", "attempt": 2, "reason": None}
    task.apply("subtask", dict(move))
    assert "RUNNING EXECUTING · 0 ms · attempt 2" in _drawn(task)
    task.apply("subtask", {**move, "to": "BLOCKED", "phase": None, "reason": "no\nluck"})
    assert "BLOCKED · 0 ms · attempt 2 · no luck" in _drawn(task)
    task.apply("subtask", {**move, "subtask": "start"})
    assert task.subtasks["start"].status == "COMPLETED", "an event from before is no news"
    task.apply("task", {"to": "FAILED"})
    assert task.status == "FAILED"
    assert not task.stale


def test_what_waits_for_approval_says_how_to_give_it() -> None:
    task = _task(start="COMPLETED")
    assert "rayloom approve" not in _drawn(task)
    task.apply("subtask", {"subtask": "left", "to": "AWAITING_APPROVAL", "reason": None})
    task.apply("approval", {"subtask": "left", "to": "AWAITING_APPROVAL", "reason": "asked"})
    drawn = _drawn(task)
    assert "1/5  1 awaiting approval" in drawn
    assert "  ? Left  core.echo  AWAITING_APPROVAL" in drawn
    assert "waits for approval: rayloom approve t-1, or reject" in drawn
    task.apply("subtask", {"subtask": "left", "to": "QUEUED", "reason": "approved by ann"})
    assert "rayloom approve" not in _drawn(task)
    task.apply("task", {"to": "READY"})
    task.apply("approval", {"subtask": None, "to": "READY", "reason": "asked"})
    assert "rayloom approve t-1" in _drawn(task)
    assert not task.stale


def test_a_plan_that_appears_makes_it_read_again() -> None:
    task = WatchedTask(task_id="t")
    task.load({"status": "PENDING", "prompt": "p", "progress": {"total": 0}, "subtasks": []})
    task.apply("plan", {"to": "READY"})
    assert task.stale


def test_a_large_plan_shows_what_matters_in_the_lines_that_there_are() -> None:
    task = WatchedTask(task_id="t")
    listed: list[Any] = [
        {"id": f"s{n}", "status": "RUNNING" if n == 900 else "COMPLETED", "depends_on": []} for n in range(1_000)
    ]
    task.load({"status": "PROCESSING", "progress": {"total": 5_000}, "subtasks": listed})
    drawn = _drawn(task, height=12).splitlines()
    assert len(drawn) <= 12
    assert any("s900" in line for line in drawn)
    assert "more" in drawn[-1]
    assert [row.subtask.id for row in window(rows(task.subtasks), 3)] == ["s0", "s900"]


def test_a_deep_chain_is_drawn_without_recursion() -> None:
    task = WatchedTask(task_id="t")
    chain: list[Any] = [
        {"id": f"s{n}", "status": "READY", "depends_on": [f"s{n - 1}"] if n else []} for n in range(1_000)
    ]
    task.load({"status": "PROCESSING", "progress": {"total": 1_000}, "subtasks": chain})
    assert [row.depth for row in rows(task.subtasks)] == list(range(1_000))
    assert max(len(line) for line in _drawn(task, width=60).splitlines()) <= 60
