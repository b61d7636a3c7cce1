"""An API that serves on a real port, its users, and somebody who runs subtasks as the engine would."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx2
import orjson
import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome
from rayloom.dag.values import Json, JsonObject
from rayloom.db import keys, leases
from rayloom.db.attempts import Claimed, Ending, claim, complete
from rayloom.db.blobs import Blob
from rayloom.db.incarnations import begin_incarnation
from rayloom.db.queue import Signals
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.serve.app import build_app
from rayloom.serve.deps import Deps, open_deps
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.fakes import Fakes
from tests.integration.waiting import GENEROUS_S

T = TypeVar("T")

DIAMOND: JsonObject = {
    "subtasks": [
        {"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": 1}},
        {"id": "b", "type": "TOOL", "tool": "core.echo", "input": {"value": {"$ref": "a.output"}}},
        {"id": "c", "type": "TOOL", "tool": "core.noop", "depends_on": ["a"]},
        {"id": "d", "type": "TOOL", "tool": "core.echo", "input": {"value": "${b.output}"}, "depends_on": ["c"]},
    ]
}


def one(**fields: Json) -> JsonObject:
    """A plan of one subtask."""
    return {"subtasks": [{"id": "only", "type": "TOOL", "tool": "core.noop", **fields}]}


class World:
    """What a test works with."""

    def __init__(self, url: str, deps: Deps, fakes: Fakes, make: Callable[[str], httpx2.AsyncClient]) -> None:
        self.url, self.deps, self.fakes = url, deps, fakes
        self.engine: AsyncEngine = deps.backends.primary
        self.signals = Signals(deps.backends.redis)
        self._make = make
        self.incarnation = uuid7()
        self._has_begun = False

    async def user(self, role: keys.Role = "user") -> Person:
        """A new user with a key."""
        key = keys.new_key()
        row = await keys.create_key(self.engine, user=f"u-{uuid7()}", role=role, key=key)
        return Person(self._make(key), key, row)

    def nobody(self) -> httpx2.AsyncClient:
        """A client without a key."""
        return self._make("")

    def nobody_with(self, key: str) -> httpx2.AsyncClient:
        """A client with a key that a test has made."""
        return self._make(key)

    async def claimed(self, task_id: str | None) -> list[Claimed]:
        """Take the leases of all that is QUEUED, and start it; gives what of it is a task's, or all."""
        if not self._has_begun:
            await begin_incarnation(self.engine, self.incarnation, actor="a test", exclusive=False)
            self._has_begun = True
        queued = await leases.queued_page(self.engine, after=None, limit=10_000)
        taken = await claim(self.engine, [(item.sub_task_id, True) for item in queued], incarnation=self.incarnation)
        return [item for item in taken if task_id in (None, item.task_id)]

    async def end(self, items: list[Claimed], output: Callable[[Claimed], Json], **fields: Any) -> None:
        """Record that attempts succeeded."""
        endings = [
            Ending(sub_task_id=item.sub_task_id, attempt=item.attempt, outcome=succeeded(output(item), **fields))
            for item in items
        ]
        committed = await complete(self.engine, endings)
        await self.signals.tell(sorted(committed.touched))

    async def fail(self, item: Claimed, *, retry_in_s: float | None = None, **fields: Any) -> None:
        """Record that an attempt failed."""
        error = ErrorInfo(code="BOOM", error_class="user", message="it went wrong", retryable=False)
        outcome = Outcome(verdict="failed", error=error, started_at=_now(), finished_at=_now(), worker_id="w", **fields)
        ending = Ending(sub_task_id=item.sub_task_id, attempt=item.attempt, outcome=outcome, retry_in_s=retry_in_s)
        committed = await complete(self.engine, [ending])
        await self.signals.tell(sorted(committed.touched))

    async def run(self, task_id: str, output: Callable[[Claimed], Json] = lambda item: item.key, **fields: Any) -> None:
        """Run a task to its end."""
        while items := await self.claimed(task_id):
            await self.end(items, output, **fields)


class Person:
    """A user, and the client with its key."""

    def __init__(self, client: httpx2.AsyncClient, key: str, row: keys.KeyRow) -> None:
        self.http, self.key, self.key_id = client, key, row.id
        self.id: UUID = row.user_id

    async def submit(self, body: JsonObject | None = None, **fields: Json) -> str:
        """Submit a task; gives its id."""
        answer = await self.http.post("/api/v1/tasks", json=body if body is not None else {"plan": one(), **fields})
        assert answer.status_code == 202, answer.text
        task_id = answer.json()["task_id"]
        assert isinstance(task_id, str)
        return task_id

    async def only_task(self) -> str:
        """The id of the user's task, as soon as there is one."""

        async def look() -> list[Any]:
            items: list[Any] = (await self.get("/tasks"))["items"]
            return items

        return str((await until(look))[0]["task_id"])

    async def get(self, path: str, **params: Any) -> Any:
        """The document at a path."""
        answer = await self.http.get(f"/api/v1{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def until(look: Callable[[], Awaitable[T | None]]) -> T:
    """What ``look`` gives as soon as it gives something; fails after two minutes."""
    async with asyncio.timeout(GENEROUS_S):
        for _ in itertools.count():
            if found := await look():
                return found
            await asyncio.sleep(0.01)
    raise AssertionError


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _span(name: str, kind: str, started_at: float, finished_at: float) -> JsonObject:
    """As workers tell it."""
    times: JsonObject = {"started_at": started_at, "finished_at": finished_at}
    return {"name": name, "kind": kind, **times, "ok": True, "attributes": {"n": 1}}


def succeeded(output: Json, *, blob: Blob | None = None, **fields: Any) -> Outcome:
    """The outcome of an attempt that gave ``output``, or what it put into the blob store."""
    text = orjson.dumps(output)
    now = _now()
    spans = [
        _span("PREPARE_ENV", "phase", now, now + 0.001),
        _span("EXECUTING", "phase", now + 0.001, now + 0.004),
        _span("core.echo", "tool", now + 0.002, now + 0.003),
        _span("POST_PROCESS", "phase", now + 0.004, now + 0.005),
    ]
    return Outcome(
        verdict="succeeded",
        output=text.decode() if blob is None else None,
        output_size=len(text) if blob is None else blob.size,
        output_blob="" if blob is None else blob.sha256,
        started_at=now,
        finished_at=now + 0.005,
        worker_id="worker-1",
        **{"spans": orjson.dumps(spans).decode(), **fields},
    )


@asynccontextmanager
async def serving(
    database: DatabaseSettings, redis: RedisSettings, settings: ServeSettings, blobs: BlobSettings | None = None
) -> AsyncIterator[World]:
    """A world, for the length of the block."""
    fakes = Fakes()
    held: list[Deps] = []

    def open_() -> Deps:
        held.append(open_deps(settings, database, redis, blobs or BlobSettings(), fakes.ports()))
        return held[0]

    # Named as TCP, so that asyncio sends small answers at once.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(build_app(settings, open_), log_config=None, timeout_graceful_shutdown=1, lifespan="on")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            assert not task.done(), task.result()
            await asyncio.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        clients: list[httpx2.AsyncClient] = []

        def make(key: str) -> httpx2.AsyncClient:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=GENEROUS_S, trust_env=False)
            clients.append(client)
            return client

        try:
            yield World(url, held[0], fakes, make)
        finally:
            for client in clients:
                await client.aclose()
            server.should_exit = True
            await task
