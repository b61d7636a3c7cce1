"""The same API behind Ray Serve: built in the replica, streams uncut, planning by the parser's deployment."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
from ray import serve
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from rayloom.dag.answer import opened
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.db import keys
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.serve.deployment import API_DEPLOYMENT, PARSER_DEPLOYMENT, bind
from rayloom.serve.deps import Ports
from rayloom.serve.settings import ServeSettings
from tests.integration.ports import free_ports
from tests.integration.serve.assistants import REVISIONS, ask, at
from tests.integration.serve.fakes import Fakes
from tests.integration.serve.world import one, until
from tests.integration.waiting import GENEROUS_S

APPLICATION = "api-test"


class _ByName(Fakes):
    """Fakes, but for the parser: that one is the deployment beside the API."""

    def ports(self) -> Ports:
        ports = super().ports()
        return Ports(
            scheduler=ports.scheduler,
            registry=ports.registry,
            tokens=ports.tokens,
            mcp=ports.mcp,
            parser=_Parser(),
            ray=ports.ray,
        )


class _Parser:
    async def plan(self, request: PlanRequest) -> Planned:
        handle = serve.get_deployment_handle(PARSER_DEPLOYMENT, APPLICATION)
        planned: Planned = opened(await handle.plan.remote(request))
        return planned


def _ports() -> Ports:
    return _ByName().ports()


@pytest.fixture(scope="module")
def url(database: DatabaseSettings, redis: RedisSettings) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="rls")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 1024 * 1024,
        _temp_dir=folder,
    )
    (port,) = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": None})
    settings = ServeSettings(port=port, max_body_bytes=100_000)
    serve.run(bind(settings, database, redis, BlobSettings(), _ports), name=APPLICATION, route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def client(url: str, database: DatabaseSettings) -> AsyncIterator[httpx2.AsyncClient]:
    engine = create_async_engine(database.primary_dsn(), poolclass=NullPool)
    key = keys.new_key()
    await keys.create_key(engine, user=key, role="user", key=key)
    await engine.dispose()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=GENEROUS_S, trust_env=False) as client:
        yield client


async def test_the_api_serves_behind_ray_serve(client: httpx2.AsyncClient) -> None:
    assert set(serve.status().applications[APPLICATION].deployments) == {API_DEPLOYMENT, PARSER_DEPLOYMENT}
    assert (await client.get("/readyz")).json()["status"] == "ready"
    made = await client.post("/api/v1/plans", json={"prompt": "1. @core.noop {}\n2. @core.noop {}"})
    assert made.status_code == 200, made.text
    assert len(made.json()["plan"]["subtasks"]) == 2
    submitted = await client.post("/api/v1/tasks", json={"plan": made.json()["plan"]})
    assert submitted.status_code == 202
    path = submitted.headers["location"]
    async with client.stream("GET", f"{path}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("retry: ")
        assert (await client.post(f"{path}/cancel")).status_code == 202
        rest = [line async for line in lines]
    assert '"to":"CANCELLED"' in rest[-2]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_assistants_are_served_behind_ray_serve(url: str, client: httpx2.AsyncClient, revision: str) -> None:
    began = asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        began.set()

    key = client.headers["authorization"].removeprefix("Bearer ")
    async with at(url, key, revision) as assistant:
        task_id = (await ask(assistant, "submit_task", plan=one()))["task_id"]
        # What is told on the way is not held back until the end.
        waiting = asyncio.create_task(ask(assistant, "wait_for_task", hear=hear, task_id=task_id))
        await asyncio.wait_for(began.wait(), GENEROUS_S)
        assert not waiting.done()
        assert (await ask(assistant, "cancel_task", task_id=task_id))["status"] == "CANCELLED"
        assert (await waiting)["task"]["status"] == "CANCELLED"

        # Who goes away leaves nothing behind, also with a proxy in between.
        task_id = (await ask(assistant, "submit_task", plan=one()))["task_id"]
        began.clear()
        waiting = asyncio.create_task(ask(assistant, "wait_for_task", hear=hear, task_id=task_id, timeout_s=300))
        await asyncio.wait_for(began.wait(), GENEROUS_S)
        assert await _metric(client, "rayloom_http_streams_open 1.0")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert await until(lambda: _metric(client, "rayloom_http_streams_open 0.0"))
    assert (await client.post(f"/api/v1/tasks/{task_id}/cancel")).status_code == 202


async def _metric(client: httpx2.AsyncClient, line: str) -> bool:
    return line in (await client.get("/metrics")).text.splitlines()


async def test_refusals_behind_ray_serve_are_ours(client: httpx2.AsyncClient) -> None:
    large = await client.post("/api/v1/tasks", content=b'{"prompt": "' + b" " * 200_000 + b'"}')
    for answer, status in (
        (large, 413),
        (await client.get("/nowhere"), 404),
        (await client.delete("/api/v1/tasks"), 405),
        (await client.get("/api/v1/tasks", headers={"Authorization": "Bearer x"}), 401),
        (await client.post("/api/v1/tasks", content=b"{"), 400),
        (await client.get("/mcp"), 405),
        (await client.post("/mcp", headers={"Host": "evil.example"}), 421),
        (await client.post("/mcp", headers={"Authorization": "Bearer x"}), 401),
        (await client.post("/mcp", content=b" " * 200_000), 413),
        (await client.get("/api/v1/tasks?limit=0", headers={"x-request-timeout-seconds": "nonsense"}), 422),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
