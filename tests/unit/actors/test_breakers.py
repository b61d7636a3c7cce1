"""The breakers of the cluster as the registry holds them: told, asked, kept."""

from __future__ import annotations

import logging

import pytest

from rayloom.actors.breakers import Breakers
from rayloom.dag.breaker import BreakerPolicy, BreakerView, Call
from rayloom.dag.errors import Transient
from tests.fakes.memory_breakers import MemoryBreakers

POLICY = BreakerPolicy(failures_in_a_row=2, cooldown_s=5)


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryBreakers:
    return MemoryBreakers()


@pytest.fixture
def breakers(store: MemoryBreakers, clock: Clock) -> Breakers:
    return Breakers(store, POLICY, clock=clock)


def _calls(*results: bool, key: str = "http.request") -> list[Call]:
    return [Call(key=key, by=f"s{n}", succeeded=succeeded) for n, succeeded in enumerate(results)]


async def test_only_a_breaker_that_changes_is_news_and_kept(
    breakers: Breakers, store: MemoryBreakers, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert not breakers.report(_calls(True, False, True))
    assert breakers.unkept == frozenset()
    assert breakers.report(_calls(False, False))
    assert breakers.views() == {"http.request": BreakerView(state="open", retry_at=clock.now + 5)}
    await breakers.keep()
    assert list(store.rows) == ["http.request"]
    assert "breaker.open" in caplog.messages


async def test_a_probe_closes_it_and_the_row_is_gone(
    breakers: Breakers, store: MemoryBreakers, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    breakers.report(_calls(False, False))
    await breakers.keep()
    assert not breakers.probe("http.request", "a")
    clock.now += 5
    assert breakers.probe("http.request", "a")
    assert not breakers.probe("http.request", "b")
    assert breakers.unkept == frozenset()
    assert breakers.report([Call(key="http.request", by="a", succeeded=True)])
    await breakers.keep()
    assert (breakers.views(), store.rows) == ({}, {})
    assert [line for line in caplog.messages if line.startswith("breaker.")] == [
        "breaker.open", "breaker.half_open", "breaker.closed",
    ]  # fmt: skip


async def test_the_next_life_knows_what_is_open(breakers: Breakers, store: MemoryBreakers, clock: Clock) -> None:
    breakers.report(_calls(False, False))
    await breakers.keep()
    later = Breakers(store, POLICY, clock=clock)
    await later.load()
    assert later.views() == breakers.views()
    clock.now += 5
    assert later.probe("http.request", "a")
    # Its cooldown goes on growing.
    later.report([Call(key="http.request", by="a", succeeded=False)])
    assert later.views()["http.request"].retry_at == clock.now + 10


async def test_by_hand(breakers: Breakers, store: MemoryBreakers) -> None:
    breakers.open("a")
    await breakers.keep()
    assert breakers.views() == {"a": BreakerView(state="open", retry_at=None)}
    assert not breakers.probe("a", "s")
    breakers.close("a")
    await breakers.keep()
    assert (breakers.views(), store.rows) == ({}, {})


async def test_what_can_not_be_kept_now_is_kept_later(breakers: Breakers, store: MemoryBreakers) -> None:
    breakers.report(_calls(False, False))
    store.away = True
    with pytest.raises(Transient):
        await breakers.keep()
    assert breakers.unkept == {"http.request"}
    store.away = False
    await breakers.keep()
    assert breakers.unkept == frozenset()
    assert list(store.rows) == ["http.request"]
