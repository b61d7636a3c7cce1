"""What the way to a server over HTTP tells of and how long it waits, and how long a silent server is excused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from rayloom.tools.mcp.calls import SLACK_S, Calls
from rayloom.tools.mcp.way import Way


@pytest.mark.parametrize(
    ("status", "to", "expected"),
    [
        (202, "", 0),
        (307, "http://here/other", 0),
        (307, "http://elsewhere/", 1),
        (302, "http://here/other", 1),
        (404, "", 1),
    ],
)
async def test_a_message_that_was_not_taken_is_told(status: int, to: str, expected: int) -> None:
    told: list[str] = []
    answers = httpx2.MockTransport(lambda _: httpx2.Response(status, headers={"location": to} if to else {}))
    async with Way(on_broken=lambda: told.append(""), transport=answers) as way:
        await way.post("http://here/", json={})
    assert len(told) == expected


class Drip(httpx2.AsyncByteStream):
    """A body without an end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield b"."


async def test_the_end_of_a_session_has_a_limit_on_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.tools.mcp.way.END_S", 0.01)

    async def never(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    for transport in (httpx2.MockTransport(never), httpx2.MockTransport(lambda _: httpx2.Response(200, stream=Drip()))):
        async with Way(transport=transport) as way:
            with pytest.raises(TimeoutError):
                async with way.stream("DELETE", "http://here/"):
                    raise AssertionError("unreachable")


async def test_a_silent_server_is_excused_for_as_long_as_a_call_may_take() -> None:
    calls = Calls()
    calls.heard()
    assert not calls.excuse_silence()
    calls.begin("1").patience_s = 300.0
    assert calls.excuse_silence()
    calls.get("1").patience_s = -SLACK_S  # type: ignore[union-attr]
    assert not calls.excuse_silence()
