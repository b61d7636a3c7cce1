"""Whoever calls a singleton in the scheduler's loop waits for it only briefly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from rayloom.actors import callers
from rayloom.actors.callers import RayTokens
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import Transient


class Hanging:
    """An actor that never answers."""

    class admit:
        @staticmethod
        def remote(*_arguments: object) -> Any:
            return Hanging.admit

        @staticmethod
        def future() -> Any:
            return asyncio.run_coroutine_threadsafe(asyncio.Event().wait(), asyncio.get_running_loop())


async def test_a_token_controller_that_is_away_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get_actor(name: str, namespace: str) -> None:
        asked.append(name)
        raise ValueError("no such name")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    with pytest.raises(Transient):
        await RayTokens(EngineSettings()).admit([], [])
    assert asked == [callers.TOKENS_NAME]


async def test_a_token_controller_that_hangs_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callers.ADMIT_TIMEOUT_S <= 3
    monkeypatch.setattr(callers, "ADMIT_TIMEOUT_S", 0.01)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", lambda _name, _namespace: Hanging)
    with pytest.raises(Transient):
        await RayTokens(EngineSettings()).admit([], [])
