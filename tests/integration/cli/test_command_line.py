"""The command line against a real rayloom: a plan from submission to trace, the demonstration, a batch twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PROGRAM = [sys.executable, "-c", "from rayloom.cluster.cli import main; main()"]


class Place:
    """A rayloom of its own: a home, a port, a process."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            port, dashboard = (probe.getsockname()[1] for probe in (first, second))
        self.folder = folder
        self.environ = {
            "PATH": os.environ["PATH"],
            "RAYLOOM_HOME": str(folder / "home"),
            "RAYLOOM_PORT": str(port),
            "RAYLOOM_RAY_DASHBOARD_PORT": str(dashboard),
        }
        self.process = subprocess.Popen(
            [*PROGRAM, "up"], cwd=folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said: list[str] = []

    def until(self, text: str) -> None:
        """Read what it says up to ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))
            if text in line:
                return
        raise AssertionError(f"it never said {text!r} but:\n" + "\n".join(self.said))

    def rayloom(self, *arguments: str, code: int = 0) -> str:
        """One command; what it printed."""
        ended = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    def json(self, *arguments: str) -> Any:
        """One command with --json; its document."""
        return json.loads(self.rayloom(*arguments, "--json"))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="rl-") as folder:
        opened = Place(Path(folder))
        try:
            opened.until("serving until Ctrl-C")
            yield opened
        finally:
            opened.process.send_signal(signal.SIGINT)
            try:
                opened.process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                opened.process.kill()
                opened.process.communicate()


def test_the_demonstration_writes_its_report(place: Place) -> None:
    listed = place.json("list")["items"]
    assert listed, "\n".join(place.said)
    task = listed[-1]
    assert (task["title"], task["status"]) == ("rayloom reads its own source code", "COMPLETED")
    assert any(line.startswith("# rayloom") for line in place.said)
    assert any("Every import runs downwards" in line or "more lines" in line for line in place.said)


def test_a_diamond_from_submission_to_trace(place: Place) -> None:
    plan = str(EXAMPLES / "diamond-with-tail.json")
    said = place.rayloom("submit", "--plan", plan, "--title", "Weather", "--label", "a=b", "--watch")
    assert "PROCESSING -> COMPLETED" in said
    task_id = next(item["task_id"] for item in place.json("list")["items"] if item["title"] == "Weather")
    task = place.json("show", task_id)
    assert task["progress"]["completed"] == 7
    assert task["result"]["path"] == "weather.md"
    summary = next(subtask["output"]["text"] for subtask in task["subtasks"] if subtask["id"] == "summary")
    assert summary.startswith("Between 7.9 and 13.2 °C, 11.2 °C on average. Heavy rain at Airfield, Ridge.")
    spans = place.json("trace", task_id)["spans"]
    assert {span["subtask"] for span in spans if span["kind"] == "attempt"} == {s["id"] for s in task["subtasks"]}
    assert len(place.rayloom("trace", task_id).splitlines()) == len(spans)
    assert place.rayloom("logs", task_id) == place.rayloom("logs", task_id, "-f")
    assert place.rayloom("watch", task_id).count("RUNNING -> COMPLETED") == 7
    assert "resourceSpans" in place.rayloom("trace", task_id, "--format", "otlp")


def test_a_failure_is_exit_3_and_a_refusal_exit_1(place: Place) -> None:
    failing = {"id": "f", "type": "TOOL", "tool": "core.fail", "input": {"times": 9, "kind": "user"}}
    (place.folder / "failing.json").write_text(json.dumps({"subtasks": [failing]}))
    place.rayloom("submit", "--plan", "failing.json", "--watch", code=3)
    (place.folder / "wrong.json").write_text(json.dumps({"subtasks": [{**failing, "tool": "core.fial"}]}))
    place.rayloom("submit", "--plan", "wrong.json", code=1)


def test_a_batch_runs_once_however_often_it_is_started(place: Place) -> None:
    arguments = ("batch", str(EXAMPLES / "batch.jsonl"), "--out", "results.jsonl")
    place.rayloom(*arguments)
    out = place.folder / "results.jsonl"
    first = out.read_bytes()
    assert [json.loads(line)["status"] for line in first.splitlines()] == ["COMPLETED"] * 4
    out.write_bytes(first[: len(first) // 2])
    count = len(place.json("list", "--all")["items"])
    place.rayloom(*arguments)
    assert out.read_bytes() == first
    assert len(place.json("list", "--all")["items"]) == count


def test_tools_and_keys(place: Place) -> None:
    assert "python.run" in {tool["name"] for tool in place.json("tools")["items"]}
    assert place.rayloom("tools", "invoke", "core.echo", '{"value": "hello"}') == "hello\n"
    made = place.json("keys", "create", "--user", "ann")
    assert made["key"]
    assert made["id"] in {key["id"] for key in place.json("keys")["items"]}
    place.rayloom("keys", "delete", made["id"])
    assert made["id"] not in {key["id"] for key in place.json("keys")["items"]}
