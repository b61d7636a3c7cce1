"""Whatever goes wrong behind the gate is answered with a document of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from rayloom.serve.gate import Gate
from rayloom.serve.measures import Measures
from rayloom.serve.settings import ServeSettings


def _client(error: BaseException) -> tuple[httpx.AsyncClient, Gate]:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    gate = Gate(broken, settings=ServeSettings(), measures=Measures())
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://rayloom"), gate


@pytest.mark.parametrize("kind", [ZeroDivisionError, TimeoutError, type("PanicException", (BaseException,), {})])
async def test_what_nobody_foresaw_is_told_as_json(kind: Callable[[str], BaseException]) -> None:
    client, gate = _client(kind("a secret"))
    async with client:
        answer = await client.get("/api/v1/tasks")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["detail"] == "something went wrong here; it was logged"
    assert gate.admission.requests == 0


@pytest.mark.parametrize("end", [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit])
async def test_what_ends_it_is_left_alone(end: type[BaseException]) -> None:
    _, gate = _client(end())

    async def nothing(*_: object) -> None:
        raise AssertionError("nobody is answered")

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    with pytest.raises(end):
        await gate(scope, nothing, nothing)  # type: ignore[arg-type]
    assert gate.admission.requests == 0
