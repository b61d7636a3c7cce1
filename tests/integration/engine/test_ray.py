"""rayloom as a guest of Ray sees it: Ray tasks and resources in the State API, a batch as a Ray job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.instance import Instance
from tests.integration.runs import Run, sleep
from tests.integration.waiting import wait_until

LINES = 50


@pytest.mark.parametrize(
    ("asked", "required"),
    [({}, {"CPU": 0.25}), ({"num_cpus": 0.5, "custom": {"sandbox": 2}}, {"CPU": 0.5, "sandbox": 2.0})],
    ids=["by default", "as asked"],
)
def test_ray_shows_an_attempt_by_its_ray_task_with_its_resources(
    asked: dict[str, object], required: dict[str, float], instance: Instance
) -> None:
    with instance.client() as client:
        run = Run.submit(instance, client, [sleep("napping", 3600, resources=asked)])  # type: ignore[arg-type]
        run.until("napping", "RUNNING")

        def attempt() -> Any:
            # Empty for a moment, while it is stopped and has not ended.
            return next(iter(run.subtask("napping")["attempts"]), {})

        id_ = wait_until(lambda: attempt().get("ray_task_id"), what=run.details)

        def listed() -> list[dict[str, object]]:
            said = instance.ray("list", "tasks", "--filter", f"task_id={id_}", "--detail", "--format", "json")
            # Where it finds none, which is so until Ray's events have come in, it says so in words.
            found: list[dict[str, object]] = json.loads(said) if said.startswith("[") else []
            return [task for task in found if task["state"] == "RUNNING"]

        (task,) = wait_until(listed, every_s=0.5, what=run.details)
        assert task["name"] == "core.sleep", "named after its tool: each name costs Ray's processes memory for ever"
        assert task["required_resources"] == required
        client.cancel(run.task_id)
        ended = wait_until(lambda: attempt() if attempt().get("finished_at") else None, what=run.details)
        assert ended["ray_task_id"] == id_
        trace: Any = client.trace(run.task_id)
        assert [span["attributes"]["ray_task_id"] for span in trace["spans"] if span["kind"] == "attempt"] == [id_]
        assert id_ in instance.ray("get", "tasks", id_)


def test_a_batch_as_a_ray_job_in_a_folder_with_rooms_of_its_own(instance: Instance, tmp_path: Path) -> None:
    # What would break everything, were ours imported as `tools` or `db`, or the job's folder put before ours.
    for room in ("tools", "db", "dag", "actors", "serve", "cluster", "rayloom"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise ImportError('the job has a room of this name')\n")
    (tmp_path / "rayloom" / "__init__.py").unlink()
    lines = [
        {
            "title": f"line {i}",
            "plan": {
                "subtasks": [
                    {"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": i}},
                    {"id": "b", "type": "TOOL", "tool": "core.echo", "input": {"value": {"n": {"$ref": "a.output"}}}},
                ]
            },
        }
        for i in range(LINES)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "results.jsonl"
    command = (
        "job", "submit", "--working-dir", ".", "--",
        "python", "-m", "rayloom.cluster.batch", "tasks.jsonl", "--out", str(out),
    )  # fmt: skip
    said = instance.ray(*command, folder=tmp_path)
    assert "succeeded" in said
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["line"] for result in results] == list(range(1, LINES + 1))
    assert [(result["status"], result["result"]) for result in results] == [
        ("COMPLETED", {"n": i}) for i in range(LINES)
    ]
    assert f"{LINES}" in said, "the job's log tells the progress"
    # Started again it makes no new task.
    first = out.read_bytes()
    instance.ray(*command, folder=tmp_path)
    assert out.read_bytes() == first
    (count,) = instance.sql("SELECT count(*) AS n FROM tasks WHERE title LIKE 'line %'")
    assert count["n"] == LINES
