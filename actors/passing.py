"""Past the breakers or not: what becomes of a queued subtask whose tool's breaker is not closed.

And the way back: how calls went, told to the registry in batches, after their commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rayloom.actors.backlog import Backlog
from rayloom.actors.flight import Flying, StandIn
from rayloom.dag.breaker import Call, said_of_callee
from rayloom.dag.errors import RayloomError, Transient
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import RegistryPort, ToolSnapshot
from rayloom.dag.tool_scope import ALL_TOOLS, ToolScope
from rayloom.db import leases
from rayloom.db.engine import Line
from rayloom.db.leases import NextCall
from rayloom.db.queue import Queued

_log = logging.getLogger(__name__)

CALLS_KEPT = 10_000
TELL_EVERY_S = 0.05
BY_HAND_WAIT_S = 60.0
"""How long to wait for a breaker that only a person closes, where a time must be named."""
ASK_AGAIN_S = 0.5
"""A registry that did not answer for a breaker is not asked for that one again before: commits wait for the answer."""
KNOWN_S = 2.0
"""Longer than this nobody waits until a change of the registry has come here."""


class Passing:
    """See the module. ``tools``: as the registry last told."""

    def __init__(
        self, line: Line, backlog: Backlog, registry: RegistryPort, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._line, self._backlog, self._registry, self._clock = line, backlog, registry, clock
        self.tools = ToolSnapshot(version=0, tools={})
        self._alternatives: dict[str, StandIn] = {}
        self._turning: dict[str, str] = {}
        self._probes: dict[str, str] = {}
        self._no_asking_before: dict[str, float] = {}
        self._calls: deque[Call] = deque(maxlen=CALLS_KEPT)
        self._told, self._news = asyncio.Event(), asyncio.Event()

    def news(self, snapshot: ToolSnapshot) -> None:
        """The registry has something new: whom it concerns is let out with the next turn."""
        self.tools = snapshot
        # What waits for a tool that was removed is let out, and fails as it should.
        known = {tool.breaker_key for tool in snapshot.tools.values()}
        breakers = {key: view for key, view in snapshot.breakers.items() if key in known}
        self._backlog.halted.news(replace(snapshot, breakers=breakers))
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def known(self, version: int) -> bool:
        """Wait until the registry's list is known at this version or a newer one; False: it was not in time."""
        try:
            async with asyncio.timeout(KNOWN_S):
                while self.tools.version < version:
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def through(self, items: Sequence[Queued]) -> list[Queued]:
        """Those that may start; the others are halted, unclaimed. Raises Transient, with nothing lost."""
        if not self.tools.breakers or not items:
            return list(items)
        call_of = await leases.calls_of(self._line, [item.sub_task_id for item in items])
        # There may be news while somebody is asked.
        tools, passed = self.tools, list[Queued]()
        scopes = await self._scopes(call_of, tools)
        asked: set[str] = set()
        for item in items:
            call = call_of.get(item.sub_task_id)
            view = None if call is None else tools.breaker_of(call.tool)
            if call is None or view is None:
                passed.append(item)
                continue
            key, wait_s = tools.tools[call.tool].breaker_key, view.wait_s(self._clock())
            if await self._is_let_through(item, key, wait_s, asked) or self._goes_around(
                item, call, wait_s, tools, scopes.get(item.sub_task_id, ALL_TOOLS)
            ):
                passed.append(item)
            else:
                self._backlog.halted.add(item, key, call, version=tools.version)
        return passed

    async def _scopes(self, call_of: Mapping[str, NextCall], tools: ToolSnapshot) -> Mapping[str, ToolScope]:
        """What their tasks may use, of those for which it matters: something could stand in for their tools."""
        asked = [
            sub_task_id
            for sub_task_id, call in call_of.items()
            if tools.breaker_of(call.tool) is not None and any(tools.stand_ins(call.tool))
        ]
        return await leases.scopes_of(self._line, asked) if asked else {}

    async def _is_let_through(self, item: Queued, key: str, wait_s: float | None, asked: set[str]) -> bool:
        """Whether it is the one that looks for all: also of those that could go around it, else nobody ever would."""
        if wait_s != 0 or key in asked or self._clock() < self._no_asking_before.get(key, 0.0):
            return False
        asked.add(key)
        try:
            may = await self._registry.probe(key, item.sub_task_id)
        except Transient as error:
            _log.warning("breaker.probe_unasked", extra={"breaker": key, "error": error.message})
            self._no_asking_before[key] = self._clock() + ASK_AGAIN_S
            return False
        if may:
            self._probes[item.sub_task_id] = key
        return may

    def _goes_around(
        self, item: Queued, call: NextCall, wait_s: float | None, tools: ToolSnapshot, scope: ToolScope
    ) -> bool:
        """Whether a subtask need not wait although its tool's breaker is not closed. The place for every way around it.

        These are: the subtask's own fallback, once; and the tool's alternative, if its task may use that.
        """
        if tools.may_stand_in(call.fallback):
            self._turning[item.sub_task_id] = call.fallback
            return True
        stand_in = next(filter(scope.takes, tools.stand_ins(call.tool)), None)
        if stand_in is not None:
            again_s = BY_HAND_WAIT_S if wait_s is None else wait_s
            self._alternatives[item.sub_task_id] = StandIn(stand_in, again_s)
        return stand_in is not None

    def is_probe(self, sub_task_id: str) -> bool:
        """Whether this one was let through to see whether the callee is back."""
        return sub_task_id in self._probes

    def stand_in(self, sub_task_id: str) -> StandIn | None:
        """What is called in place of the tool of one that has passed, if anything."""
        return self._alternatives.pop(sub_task_id, None)

    def turns_to(self, sub_task_id: str) -> str:
        """The tool of the fallback that one which has passed turns to, without an attempt at its own; else ""."""
        return self._turning.pop(sub_task_id, "")

    def settle(self, is_started: Callable[[str], bool]) -> None:
        """At the end of a turn: a probe that was not started after all makes room for the next.

        ``is_started``: whether an attempt of this subtask is in flight, or its end not yet written down.
        """
        self._alternatives.clear()
        self._turning.clear()
        for sub_task_id in [id_ for id_ in self._probes if not is_started(id_)]:
            self._add(Call(key=self._probes.pop(sub_task_id), by=sub_task_id, succeeded=None))

    def ended(self, flying: Flying, outcome: Outcome) -> None:
        """An attempt has ended, and that is written down."""
        probe = self._probes.pop(flying.claimed.sub_task_id, None)
        tool = self.tools.tools.get(flying.calls)
        said = said_of_callee(outcome)
        counts = tool is not None and tool.has_breaker and said is not None
        key = tool.breaker_key if tool is not None else ""
        if counts or probe is not None:
            said = said if probe in (None, key) else None
            self._add(Call(key=probe or key, by=flying.claimed.sub_task_id, succeeded=said))

    def _add(self, call: Call) -> None:
        self._calls.append(call)
        self._told.set()

    def take(self) -> list[Call]:
        """What has not been told yet."""
        calls = list(self._calls)
        self._calls.clear()
        return calls

    async def tell(self) -> None:
        """Tell the registry how calls went, for ever. What it does not take is dropped: it counts only what is new."""
        while True:
            await self._told.wait()
            self._told.clear()
            calls = self.take()
            try:
                await self._registry.report(calls)
            except RayloomError as error:
                _log.warning("breaker.calls_untold", extra={"count": len(calls), "error": error.message})
            await asyncio.sleep(TELL_EVERY_S)
