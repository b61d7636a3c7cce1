"""What the gate does with a request, and with what goes wrong behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from rayloom.serve.gate import CALL_KEY, Gate
from rayloom.serve.measures import Measures
from rayloom.serve.settings import ServeSettings


def test_the_scope_of_whoever_stands_around_the_gate_stays_as_it_is() -> None:
    methods: list[str] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        methods.append(scope["method"])
        await PlainTextResponse("text")(scope, receive, send)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD", "path": "/x", "query_string": b"", "headers": []}
    asyncio.run(Gate(app, settings=ServeSettings(), measures=Measures())(scope, receive, send))
    assert methods == ["GET"]
    assert sent[-1]["body"] == b""
    assert scope["method"] == "HEAD"
    assert CALL_KEY not in scope


def _client(error: BaseException) -> tuple[httpx2.AsyncClient, Gate]:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    gate = Gate(broken, settings=ServeSettings(), measures=Measures())
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(gate), base_url="http://rayloom"), gate


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
