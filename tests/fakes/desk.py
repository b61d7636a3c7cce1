"""A dispatch with everything around it in memory, on a node of four CPUs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.dispatch import Dispatch
from rayloom.actors.flight import Flight, Flying
from rayloom.actors.passing import Passing
from rayloom.actors.settings import EngineSettings
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import NodeShape
from tests.fakes.hand_lane import HandLane
from tests.fakes.memory_queue import MemoryQueue
from tests.fakes.memory_record import MemoryRecord
from tests.fakes.scripted_registry import ScriptedRegistry
from tests.fakes.scripted_tokens import ScriptedTokens

NOTHING: Any = None
"""In place of connections that the fakes don't use."""
PATIENCE = 1_000
"""So many turns without an end are a loop that never rests."""


@dataclass
class Desk:
    """See the module."""

    record: MemoryRecord
    queue: MemoryQueue
    tokens: ScriptedTokens
    lane: HandLane
    backlog: Backlog
    commits: Commits
    flight: Flight
    dispatch: Dispatch
    passing: Passing
    registry: ScriptedRegistry

    def running(self) -> list[str]:
        """What was handed over and has not ended."""
        return sorted(self.lane.held)

    async def turns(self, count: int = 3) -> None:
        """Some turns, with a look at the cluster before each: the first finds out which shapes there are."""
        for _ in range(count):
            self.dispatch.note_hopeless()
            await self.dispatch.turn()
            await asyncio.sleep(0)

    async def rest(self) -> int:
        """Turns as the scheduler takes them, until it would rest; answers how many."""
        for count in range(1, PATIENCE):
            if not await self.dispatch.turn() and not self.backlog.dirty:
                return count
            await asyncio.sleep(0)
        raise AssertionError("it never rests")

    @classmethod
    def set_up(cls, monkeypatch: pytest.MonkeyPatch) -> Desk:
        """A desk whose record stands in for the database until the test ends."""
        record, queue, tokens, lane = MemoryRecord().install(monkeypatch), MemoryQueue(), ScriptedTokens(), HandLane()
        settings = EngineSettings(batch_max=10)
        backlog = Backlog(NOTHING, queue)
        commits = Commits(NOTHING, backlog, settings, on_ended=lambda *ended: passing.ended(*ended), jitter=lambda: 0.0)

        def ended(flying: Flying, outcome: Outcome) -> None:
            dispatch.window.ended(flying.shape, flying.claimed.use, lasted_s=outcome.finished_at - outcome.started_at)
            commits.add(flying, outcome)

        flight = Flight(lane, ended)
        registry = ScriptedRegistry()
        passing = Passing(NOTHING, backlog, registry)
        dispatch = Dispatch(NOTHING, backlog, commits, flight, tokens, passing, settings)
        dispatch.incarnation = UUID(int=1)
        dispatch.window.nodes = dispatch.window.types = (NodeShape(total={"CPU": 4.0}, labels={}, count_max=1),)
        return cls(record, queue, tokens, lane, backlog, commits, flight, dispatch, passing, registry)
