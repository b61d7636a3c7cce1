"""Bodies that arrive slowly, by a real clock with short times: silence ends them, and so does having too many."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from rayloom.serve import uploads
from rayloom.serve.gate import Gate, call_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.measures import Measures
from rayloom.serve.settings import ServeSettings
from tests.integration.waiting import GENEROUS_S

SLOW_AFTER_S = 0.05
IDLE_S = 0.2


@pytest.fixture(autouse=True)
def _soon_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SLOW_AFTER_S", SLOW_AFTER_S)


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body for the user that the header names."""
    request = Request(scope, receive)
    user = request.headers.get("user")
    if user is not None:
        call_of(request).upload.sender = user
    body = await request.body()
    await json_answer({"bytes": len(body)})(scope, receive, send)


class _Sender:
    """A client whose body arrives as the test says."""

    def __init__(self, gate: Gate, user: str | None = None, host: str = "10.0.0.1") -> None:
        headers = [] if user is None else [(b"user", user.encode())]
        scope = {
            "type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": headers,
            "client": (host, 1),
        }  # fmt: skip
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._sent: list[Message] = []
        self._task = asyncio.create_task(gate(scope, self._messages.get, self._send))

    async def _send(self, message: Message) -> None:
        self._sent.append(message)

    def give(self, body: bytes, *, more: bool) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    @property
    def is_waiting(self) -> bool:
        return not self._task.done()

    async def answer(self) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
        """The status, headers and document of the answer."""
        async with asyncio.timeout(GENEROUS_S):
            await self._task
        start, body = self._sent
        return start["status"], dict(start["headers"]), json.loads(body["body"])


def _gate(**settings: Any) -> Gate:
    return Gate(_app, settings=ServeSettings(**settings), measures=Measures())


async def _until_slow(gate: Gate, sender: str, count: int) -> None:
    async with asyncio.timeout(GENEROUS_S):
        for _ in itertools.count():
            if gate.admission.uploads.slow[sender] == count:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("parts", [0, 3])
async def test_body_that_stands_still_is_answered_408(parts: int) -> None:
    sender = _Sender(_gate(body_idle_s=IDLE_S))
    for _ in range(parts):
        sender.give(b"x", more=True)
    status, headers, problem = await sender.answer()
    assert (status, headers[b"content-type"]) == (408, b"application/problem+json")
    assert headers[b"connection"] == b"close"
    assert problem["type"] == "urn:rayloom:problem:body-too-slow"


async def test_body_that_goes_on_may_take_longer_than_a_silence() -> None:
    sender = _Sender(_gate(body_idle_s=IDLE_S))
    for _ in range(6):
        sender.give(b"x", more=True)
        await asyncio.sleep(IDLE_S / 4)
    assert sender.is_waiting
    sender.give(b"x", more=False)
    status, _, document = await sender.answer()
    assert (status, document) == (200, {"bytes": 7})


async def test_body_that_takes_too_long_in_all_is_answered_408() -> None:
    sender = _Sender(_gate(request_timeout_s=IDLE_S))
    status, headers, problem = await sender.answer()
    assert (status, headers[b"connection"]) == (408, b"close")
    assert problem["type"] == "urn:rayloom:problem:body-too-slow"


@pytest.mark.parametrize("user", ["u1", None])
async def test_slow_bodies_beyond_the_limit_of_their_sender_are_answered_429(user: str | None) -> None:
    gate = _gate(bodies_per_user=2)
    name = user or "10.0.0.1"
    slow = [_Sender(gate, user) for _ in range(2)]
    await _until_slow(gate, name, 2)

    status, headers, problem = await _Sender(gate, user).answer()
    assert (status, headers[b"content-type"]) == (429, b"application/problem+json")
    assert headers[b"connection"] == b"close"
    assert int(headers[b"retry-after"]) >= 1
    assert problem["type"] == "urn:rayloom:problem:too-many-bodies"

    # Quick bodies do not count, nor do those of others.
    quick = _Sender(gate, user)
    quick.give(b"x", more=False)
    assert (await quick.answer())[0] == 200
    other = _Sender(gate, "u2", host="10.0.0.2")
    await _until_slow(gate, "u2", 1)

    # Room is given back when a body has arrived.
    for each in (slow.pop(), other):
        each.give(b"x", more=False)
        assert (await each.answer())[0] == 200
    slow.append(_Sender(gate, user))
    await _until_slow(gate, name, 2)
    for each in slow:
        each.give(b"x", more=False)
        assert (await each.answer())[0] == 200
    assert not gate.admission.uploads.slow


async def test_client_that_leaves_gives_its_room_back() -> None:
    gate = _gate()
    sender = _Sender(gate, "u1")
    await _until_slow(gate, "u1", 1)
    sender._messages.put_nowait({"type": "http.disconnect"})
    async with asyncio.timeout(GENEROUS_S):
        await sender._task
    assert not gate.admission.uploads.slow
