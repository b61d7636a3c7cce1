"""A small real HTTP server that speaks the contract's shapes, for the tests of client, command line and batch.

Tasks end at once, unless a test holds them back. Answers can be scripted: the next call of a route gets the next one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "rl_test"
PLAN = {
    "subtasks": [
        {"id": "left", "name": "Left", "tool": "core.echo", "depends_on": []},
        {"id": "right", "name": "Right", "tool": "core.echo", "depends_on": []},
        {"id": "join", "name": "Join", "tool": "text.template", "depends_on": ["left", "right"]},
    ]
}


@dataclass
class FakeTask:
    """A task and its story."""

    details: dict[str, Any]
    events: list[dict[str, Any]]
    held: bool = False


@dataclass
class FakeApi:
    """The server's state; a test reads and writes it."""

    url: str = ""
    tasks: dict[str, FakeTask] = field(default_factory=dict)
    keys: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    """The query and the body of each request."""
    script: dict[str, deque[Response]] = field(default_factory=lambda: defaultdict(deque))
    cuts: deque[int] = field(default_factory=deque)
    """After how many events the next streams break off."""
    log: list[dict[str, Any]] = field(default_factory=list)
    decided: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Verb and body of every approval and rejection."""
    released: bool = False
    """Whether tasks with the label ``hold`` end, too."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def reset(self) -> None:
        """Forget everything but the address."""
        self.release()
        fresh = FakeApi()
        self.released = False
        self.tasks, self.keys, self.requests, self.sent = fresh.tasks, fresh.keys, fresh.requests, fresh.sent
        self.script, self.cuts, self.log, self.decided = fresh.script, fresh.cuts, fresh.log, fresh.decided

    def wait_for_tasks(self, count: int) -> None:
        """Until so many tasks were submitted."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.tasks) >= count, timeout=120)

    def release(self) -> None:
        """Let every task end."""
        with self.changed:
            self.released = True
            for task in self.tasks.values():
                task.held = False
            self.changed.notify_all()

    def add(self, body: Mapping[str, Any]) -> str:
        """A new task, in the state in which it ends: by its label ``ends``, or COMPLETED."""
        number = len(self.tasks) + 1
        task_id = f"00000000-0000-7000-8000-{number:012d}"
        status = (body.get("labels") or {}).get("ends", "COMPLETED")
        result = {"answer": body.get("title")} if status == "COMPLETED" else None
        error = None if status == "COMPLETED" else {"code": "ENDED", "class": "user", "message": f"it is {status}"}
        subtasks = [
            {**s, "type": "TOOL", "status": "COMPLETED", "phase": None, "attempts": 1, "duration_ms": 12, "error": None}
            for s in PLAN["subtasks"]
        ]
        details = {
            "task_id": task_id,
            "title": body.get("title"),
            "prompt": body.get("prompt"),
            "status": status,
            "priority": body.get("priority", 5),
            "created_at": "2026-01-01T00:00:00Z",
            "progress": {"total": 3, "completed": 3, "running": 0, "percent": 100.0},
            "usage": {"tokens": 0, "cost_usd": 0},
            "subtasks": subtasks,
            "result": result,
            "error": error,
        }
        with self.changed:
            held = "hold" in (body.get("labels") or {}) and not self.released
            self.tasks[task_id] = FakeTask(details=details, events=_story(task_id, status), held=held)
            self.changed.notify_all()
        return task_id


def problem(status: int, detail: str, *, errors: list[dict[str, str]] | None = None, retry_after: str = "") -> Response:
    """A problem document."""
    body: dict[str, Any] = {"type": "about:blank", "title": "No", "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    headers = {"Retry-After": retry_after} if retry_after else {}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _story(task_id: str, status: str) -> list[dict[str, Any]]:
    moves: list[tuple[str, str | None, str | None, str]] = [
        ("task", None, "PENDING", "SPLITTING"),
        ("plan", None, None, "READY"),
        ("task", None, "READY", "PROCESSING"),
    ]
    for subtask in PLAN["subtasks"]:
        moves.append(("subtask", str(subtask["id"]), "QUEUED", "RUNNING"))
        moves.append(("subtask", str(subtask["id"]), "RUNNING", "COMPLETED"))
    moves.append(("task", None, "PROCESSING", status))
    return [
        {
            "event": kind,
            "data": {
                "id": number,
                "at": f"2026-01-01T00:00:{number:02d}Z",
                "task_id": task_id,
                "subtask": subtask,
                "from": source,
                "to": target,
                "phase": None,
                "attempt": 1,
                "reason": None,
            },
        }
        for number, (kind, subtask, source, target) in enumerate(moves, start=1)
    ]


class _Cut(Exception):
    """The connection breaks off."""


def build_app(api: FakeApi) -> FastAPI:
    """The application over a state."""
    app = FastAPI()

    async def submit(request: Request) -> Response:
        raw = await request.body()
        key = request.headers["Idempotency-Key"]
        if key in api.keys:
            known, task_id = api.keys[key]
            if known != raw:
                return problem(422, "another body was sent with this Idempotency-Key")
            return JSONResponse({"task_id": task_id}, 202, {"Idempotent-Replayed": "true"})
        body = orjson.loads(raw)
        if body.get("title") == "refused":
            return problem(422, "the request is invalid", errors=[{"pointer": "/title", "message": "not that one"}])
        task_id = api.add(body)
        api.keys[key] = (raw, task_id)
        return JSONResponse({"task_id": task_id}, 202)

    async def list_tasks(request: Request) -> Response:
        items = [task.details for task in api.tasks.values()]
        begin, size = int(request.query_params.get("cursor", "0")), int(request.query_params["limit"])
        more = str(begin + size) if begin + size < len(items) else None
        return JSONResponse({"items": items[begin : begin + size], "next_cursor": more})

    async def show(request: Request) -> Response:
        task = api.tasks.get(request.path_params["task_id"])
        if task is None:
            return problem(404, "no such task")
        return JSONResponse({**task.details, "status": "PROCESSING"} if task.held else task.details)

    async def cancel(request: Request) -> Response:
        return problem(409, "the task is COMPLETED")

    async def decide(request: Request) -> Response:
        verb, body = request.url.path.rpartition("/")[2], orjson.loads(await request.body())
        api.decided.append((verb, body))
        subtasks = [body["subtask"]] if "subtask" in body else []
        said = {"approve": "approved", "reject": "rejected"}[verb]
        status = "CANCELLED" if verb == "reject" and not subtasks else "PROCESSING"
        answer = {"status": status, "decision": said, "plan": not subtasks, "subtasks": subtasks}
        return JSONResponse({"task_id": request.path_params["task_id"], **answer})

    async def events(request: Request) -> Response:
        task = api.tasks.get(request.path_params["task_id"])
        if task is None:
            return problem(404, "no such task")
        after = int(request.headers.get("Last-Event-ID") or 0)
        return StreamingResponse(_stream(api, task, after), media_type="text/event-stream")

    async def logs(request: Request) -> Response:
        if "text/event-stream" in request.headers["Accept"]:
            return StreamingResponse(_logs(api), media_type="text/event-stream")
        return JSONResponse({"items": api.log, "next_cursor": None})

    async def other(request: Request) -> Response:
        return problem(501, "this comes with a later version")

    routes = {
        ("POST", "/api/v1/tasks"): submit,
        ("GET", "/api/v1/tasks"): list_tasks,
        ("GET", "/api/v1/tasks/{task_id}"): show,
        ("POST", "/api/v1/tasks/{task_id}/cancel"): cancel,
        ("POST", "/api/v1/tasks/{task_id}/approve"): decide,
        ("POST", "/api/v1/tasks/{task_id}/reject"): decide,
        ("GET", "/api/v1/tasks/{task_id}/events"): events,
        ("GET", "/api/v1/tasks/{task_id}/logs"): logs,
        ("GET", "/{rest:path}"): other,
        ("POST", "/{rest:path}"): other,
        ("DELETE", "/{rest:path}"): other,
        ("PATCH", "/{rest:path}"): other,
        ("PUT", "/{rest:path}"): other,
    }
    for (method, path), handler in routes.items():

        async def endpoint(request: Request, *, _handler: Any = handler) -> Response:
            api.requests.append((request.method, request.url.path, dict(request.headers)))
            api.sent.append((request.url.query, await request.body()))
            if request.url.path.startswith("/api/") and request.headers.get("Authorization") != f"Bearer {KEY}":
                return problem(401, "a key is wanted")
            scripted = api.script[f"{request.method} {request.url.path}"]
            if scripted:
                return scripted.popleft()
            response: Response = await _handler(request)
            return response

        app.router.routes.append(Route(path, endpoint, methods=[method]))
    return app


async def _stream(api: FakeApi, task: FakeTask, after: int) -> AsyncIterator[bytes]:
    cut = api.cuts.popleft() if api.cuts else -1
    yield b": hello\n\n"
    for sent, event in enumerate(task.events[after:]):
        last = event is task.events[-1]
        while last and task.held:
            await asyncio.to_thread(_wait_released, api, task)
        if sent == cut:
            raise _Cut
        data = orjson.dumps(event["data"]).decode()
        yield f"id: {event['data']['id']}\nevent: {event['event']}\ndata: {data}\n\n".encode()


async def _logs(api: FakeApi) -> AsyncIterator[bytes]:
    for line in api.log:
        yield f"id: {line['id']}\nevent: log\ndata: {orjson.dumps(line).decode()}\n\n".encode()


def _wait_released(api: FakeApi, task: FakeTask) -> None:
    with api.changed:
        api.changed.wait_for(lambda: not task.held, timeout=0.2)


class Server:
    """The application on a port of its own, in a thread."""

    def __init__(self, api: FakeApi) -> None:
        config = uvicorn.Config(build_app(api), port=0, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._api = api

    def __enter__(self) -> FakeApi:
        started = threading.Event()
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            started.wait(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._api.url = f"http://127.0.0.1:{port}"
        return self._api

    def __exit__(self, *_exc: object) -> None:
        self._api.release()
        self._server.should_exit = True
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
