"""What the gate does with the scope of a request."""

from __future__ import annotations

import asyncio

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
