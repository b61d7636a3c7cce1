"""The word to the registry that something has changed."""

from __future__ import annotations

import asyncio

import pytest

from rayloom.actors.mcp_telling import Telling
from rayloom.dag.errors import Transient


class Registry:
    """One that looks when it is let, and fails when it is told to."""

    def __init__(self) -> None:
        self.looks = 0
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def look(self) -> None:
        self.looks += 1
        is_away = self.is_away
        await self.gate.wait()
        if is_away:
            raise Transient("ACTOR_UNAVAILABLE", "between two lives")


async def test_what_was_not_told_is_told_again_and_once() -> None:
    registry = Registry()
    telling = Telling(registry.look)
    registry.is_away = True
    await telling.tell()
    registry.is_away = False
    await telling.again()
    await telling.again()
    assert registry.looks == 2
    telling.changed()
    await telling.again()
    assert registry.looks == 3


async def test_what_changes_while_the_registry_looks_is_told_anew() -> None:
    registry = Registry()
    telling = Telling(registry.look)
    registry.gate.clear()
    first = asyncio.create_task(telling.tell())
    await asyncio.sleep(0)
    # The registry may have read already; the word of this change is lost, and the first one gets its answer last.
    registry.is_away = True
    second = asyncio.create_task(telling.tell())
    await asyncio.sleep(0)
    registry.gate.set()
    await asyncio.gather(second, first)
    registry.is_away = False
    await telling.again()
    assert registry.looks == 3


async def test_a_registry_that_never_answers_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.actors.mcp_telling.LOOK_S", 0.01)
    registry = Registry()
    telling = Telling(registry.look)
    registry.gate.clear()
    await telling.tell()
    registry.gate.set()
    await telling.again()
    assert registry.looks == 2
