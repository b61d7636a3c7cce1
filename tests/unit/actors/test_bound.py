"""A call that does not end is left, and the next ones don't even begin for a while."""

from __future__ import annotations

import asyncio

import pytest

from rayloom.actors import bound as module
from rayloom.actors.bound import Bound


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALL_S", 0.02)


async def _answer() -> int:
    return 1


async def _fail() -> int:
    raise ConnectionError("refused")


async def test_answers_and_errors_come_through() -> None:
    bound = Bound()
    with pytest.raises(ConnectionError):
        await bound.call(_fail)
    # A server that says no is not silent.
    assert await bound.call(_answer) == 1


async def test_one_that_swallows_its_cancellation_is_left_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, release, cancelled = Bound(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            await release.wait()

    with pytest.raises(TimeoutError):
        await bound.call(stubborn)
    await cancelled.wait()
    with pytest.raises(TimeoutError, match="a moment ago"):
        await bound.call(_answer)
    release.set()
    monkeypatch.setattr(module, "monotonic", lambda: 1e12)
    assert await bound.call(_answer) == 1


async def test_who_is_cancelled_takes_the_call_along() -> None:
    bound, cancelled = Bound(), asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await bound.call(endless)
    async with asyncio.timeout(60):
        await cancelled.wait()
