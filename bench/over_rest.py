"""rayloom as a client sees it: plans submitted over REST, their end read from the event stream.

The clock runs here, in the client: from before the first request to after the last result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Event
from typing import Any

import httpx2

from bench.shapes import BrokenRun, NodeRun, Run, Shape

TASK_TIMEOUT_S = 600
SUBMITTERS = 8
PAGE = 200


class OverRest:
    """The side of rayloom. ``cpus`` is what each node asks for; None leaves it to the tool."""

    def __init__(
        self, url: str, api_key: str, *, cpus: float | None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self._resources = {} if cpus is None else {"resources": {"num_cpus": cpus}}
        self._client = httpx2.Client(
            base_url=f"{url}/api/v1",
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=TASK_TIMEOUT_S,
            transport=transport,
            limits=httpx2.Limits(max_connections=SUBMITTERS * 2, max_keepalive_connections=SUBMITTERS * 2),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def run(self, shapes: Sequence[Shape]) -> Run:
        """See Side."""
        bodies = [json.dumps({"plan": self._plan(shape)}) for shape in shapes]
        begun = time.perf_counter()
        if len(bodies) == 1:
            tasks = [self._submit(bodies[0])]
            self._follow(tasks[0])
            for sink in shapes[0].sinks[:1]:
                self._get(f"/tasks/{tasks[0]}/subtasks/n{sink}")
        else:
            with ThreadPoolExecutor(SUBMITTERS) as pool:
                tasks = list(pool.map(self._submit, bodies))
            self._wait_for_all(set(tasks))
        seconds = time.perf_counter() - begun
        nodes = tuple(self._node_runs(task, shape) for task, shape in zip(tasks, shapes, strict=True))
        return Run(seconds=seconds, nodes=nodes)

    def _plan(self, shape: Shape) -> dict[str, Any]:
        subtasks = [
            {
                "id": f"n{node}",
                "type": "TOOL",
                "tool": "core.noop",
                "input": {},
                "depends_on": [f"n{each}" for each in dependencies],
                **self._resources,
            }
            for node, dependencies in enumerate(shape.dependencies)
        ]
        return {"subtasks": subtasks}

    def _submit(self, body: str) -> str:
        while True:
            answer = self._client.post("/tasks", content=body, headers={"Content-Type": "application/json"})
            if answer.status_code not in (429, 503):
                break
            # Overload is part of what is measured: a client waits as told, and the clock runs on.
            Event().wait(float(answer.headers.get("Retry-After", "1")))
        if answer.status_code != 202:
            raise BrokenRun(f"submitting: {answer.status_code} {answer.text[:300]}")
        task_id: str = answer.json()["task_id"]
        return task_id

    def _follow(self, task: str) -> None:
        kind = ""
        with self._client.stream("GET", f"/tasks/{task}/events", headers={"Accept": "text/event-stream"}) as stream:
            if stream.status_code != 200:
                raise BrokenRun(f"events: {stream.status_code}")
            for line in stream.iter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif kind == "task" and line.startswith("data:"):
                    status = json.loads(line[5:])["to"]
                    if status == "COMPLETED":
                        return
                    if status in ("FAILED", "CANCELLED"):
                        raise BrokenRun(f"task {task} is {status}: {self._get(f'/tasks/{task}').get('error')}")
        raise BrokenRun(f"the events of task {task} ended before it did")

    def _wait_for_all(self, tasks: set[str]) -> None:
        # One list serves all tasks; a stream each would measure the streams.
        end = time.monotonic() + TASK_TIMEOUT_S
        while tasks:
            if time.monotonic() > end:
                raise BrokenRun(f"{len(tasks)} tasks did not end in {TASK_TIMEOUT_S} s")
            cursor: str | None = None
            while True:
                page = self._get("/tasks", limit=PAGE, **({} if cursor is None else {"cursor": cursor}))
                ours = [item for item in page["items"] if item["task_id"] in tasks]
                broken = [item for item in ours if item["status"] in ("FAILED", "CANCELLED")]
                if broken:
                    raise BrokenRun(f"task {broken[0]['task_id']} is {broken[0]['status']}")
                tasks -= {item["task_id"] for item in ours if item["status"] == "COMPLETED"}
                cursor = page["next_cursor"]
                # Newest first: a page without any of ours is older than all of them.
                if not ours or cursor is None:
                    break
            if tasks:
                Event().wait(0.02)

    def _node_runs(self, task: str, shape: Shape) -> tuple[NodeRun, ...]:
        found: dict[str, dict[str, Any]] = {}
        cursor: str | None = None
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = self._get(f"/tasks/{task}/subtasks", limit=PAGE, **more)
            for item in page["items"]:
                if item["id"] in found:
                    raise BrokenRun(f"{item['id']} is listed twice")
                found[item["id"]] = item
            cursor = page["next_cursor"]
            if cursor is None:
                break
        if found.keys() != {f"n{node}" for node in range(len(shape.dependencies))}:
            raise BrokenRun(f"task {task} has {len(found)} subtasks, not {len(shape.dependencies)}")
        wrong = [item for item in found.values() if item["status"] != "COMPLETED" or item["output"] is not None]
        if wrong:
            raise BrokenRun(f"{wrong[0]['id']} is {wrong[0]['status']} with output {wrong[0]['output']}")
        return tuple(_node_run(found[f"n{node}"]) for node in range(len(shape.dependencies)))

    def _get(self, path: str, **parameters: str | int) -> dict[str, Any]:
        answer = self._client.get(path, params=parameters)
        if answer.status_code != 200:
            raise BrokenRun(f"{path}: {answer.status_code} {answer.text[:300]}")
        body: dict[str, Any] = answer.json()
        return body


def _node_run(item: dict[str, Any]) -> NodeRun:
    return NodeRun(
        started_at=datetime.fromisoformat(item["started_at"]).timestamp(),
        finished_at=datetime.fromisoformat(item["finished_at"]).timestamp(),
        attempts=item["attempts"],
    )
