"""Equal calls share one result, and Redis is never needed for a call to be made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from rayloom.actors import shared_calls
from rayloom.actors.shared_calls import LARGEST_CHARS, UNKEPT, SharedCalls
from rayloom.dag.errors import Transient
from rayloom.db.result_cache import Look
from rayloom.tools.tool import ToolResult


@dataclass
class Memory:
    """``Cache`` of one process."""

    kept: dict[str, str] = field(default_factory=dict)
    making: dict[str, str] = field(default_factory=dict)
    away: bool = False
    silent: bool = False
    goes_on: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def _answer(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.away:
            raise RedisConnectionError("away")

    async def look(self, key: str, token: str) -> Look:
        await self._answer()
        if key in self.kept:
            return Look(kept=self.kept[key])
        return Look(is_mine=self.making.setdefault(key, token) == token)

    async def go_on(self, key: str, token: str) -> bool:
        self.goes_on.release()
        await self._answer()
        return self.making.get(key) == token

    async def give_up(self, key: str, token: str) -> None:
        await self._answer()
        if self.making.get(key) == token:
            del self.making[key]

    async def keep(self, key: str, token: str, result: str, *, ttl_s: float) -> None:
        await self._answer()
        self.kept[key] = result
        await self.give_up(key, token)


@dataclass
class Callee:
    """Counts its calls, and lets each end when the test says so."""

    output: object = "fine"
    made: int = 0
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    all_begun: asyncio.Event = field(default_factory=asyncio.Event)
    fails: int = 0

    async def __call__(self) -> ToolResult:
        self.made += 1
        self.begun.set()
        if self.made == 2:
            self.all_begun.set()
        await self.may_end.wait()
        if self.made <= self.fails:
            raise Transient("AWAY", "not now")
        return ToolResult(output=self.output, stdout="said", stderr="warned", tokens_used=7)  # type: ignore[arg-type]


def free(output: object = "fine") -> Callee:
    callee = Callee(output)
    callee.may_end.set()
    return callee


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def calls(memory: Memory) -> SharedCalls:
    return SharedCalls(memory, ttl_s=60)


async def test_the_second_call_is_given_what_the_first_one_made(calls: SharedCalls) -> None:
    callee = free({"a": [1, None, "é"]})
    first, source = await calls.call("k", callee)
    assert (first.output, first.tokens_used, source) == ({"a": [1, None, "é"]}, 7, "made")
    second, source = await calls.call("k", callee)
    assert (second.output, second.stdout, second.stderr, source) == (first.output, "said", "warned", "hit")
    # They were used once.
    assert second.tokens_used == 0
    assert callee.made == 1
    assert (await calls.call("other", callee))[1] == "made"


async def test_calls_that_come_together_are_made_once(calls: SharedCalls, memory: Memory) -> None:
    callee = Callee()
    together = [asyncio.ensure_future(calls.call("k", callee)) for _ in range(20)]
    await callee.begun.wait()
    callee.may_end.set()
    sources = [source for _, source in await asyncio.gather(*together)]
    assert callee.made == 1
    assert sorted(sources) == ["hit"] * 19 + ["made"]
    assert memory.making == {}


async def test_a_failure_is_not_kept_and_the_next_one_tries(calls: SharedCalls, memory: Memory) -> None:
    callee = Callee(fails=1)
    together = [asyncio.ensure_future(calls.call("k", callee)) for _ in range(3)]
    await callee.begun.wait()
    callee.may_end.set()
    ends = await asyncio.gather(*together, return_exceptions=True)
    assert sum(isinstance(end, Transient) for end in ends) == 1
    assert callee.made == 2
    assert memory.making == {}


async def test_one_that_is_stopped_leaves_the_call_to_the_others(calls: SharedCalls, memory: Memory) -> None:
    callee = Callee()
    stopped = asyncio.ensure_future(calls.call("k", callee))
    await callee.begun.wait()
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    assert memory.making == {}


@pytest.mark.parametrize("output", ["x" * (LARGEST_CHARS + 1), {"no": {"json"}}])
async def test_what_can_not_be_kept_makes_nobody_wait(calls: SharedCalls, memory: Memory, output: object) -> None:
    callee = free(output)
    assert (await calls.call("k", callee))[1] == "alone"
    assert memory.kept["k"] == UNKEPT
    slow = Callee()
    together = [asyncio.ensure_future(calls.call("k", slow)) for _ in range(2)]
    await slow.all_begun.wait()
    slow.may_end.set()
    assert [source for _, source in await asyncio.gather(*together)] == ["alone", "alone"]


def gone(memory: Memory) -> None:
    memory.away = True


def silent(memory: Memory) -> None:
    memory.silent = True


@pytest.mark.parametrize("break_", [gone, silent])
async def test_without_redis_a_call_is_made_all_the_same(
    calls: SharedCalls, memory: Memory, monkeypatch: pytest.MonkeyPatch, break_: Callable[[Memory], None]
) -> None:
    monkeypatch.setattr(shared_calls, "REDIS_S", 0.05)
    break_(memory)
    result, source = await calls.call("k", free())
    assert (result.output, source) == ("fine", "alone")


@pytest.mark.parametrize("fails", [0, 1])
async def test_redis_may_go_while_a_call_is_made(calls: SharedCalls, memory: Memory, fails: int) -> None:
    callee = Callee(fails=fails)
    made: Awaitable[tuple[ToolResult, str]] = asyncio.ensure_future(calls.call("k", callee))
    await callee.begun.wait()
    memory.away = True
    callee.may_end.set()
    if fails:
        with pytest.raises(Transient, match="not now"):
            await made
    else:
        assert (await made)[1] == "alone"


async def test_who_is_at_it_says_so(calls: SharedCalls, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_calls, "MAKING_MS", 30)
    callee = Callee()
    made = asyncio.ensure_future(calls.call("k", callee))
    for memory.away in (False, False, True, True, False):
        await memory.goes_on.acquire()
    callee.may_end.set()
    assert (await made)[1] == "made"
