"""What is counted of calls is what the ledger has, though answers of it were lost and callers are dead."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from rayloom.actors import comparison
from rayloom.actors.comparison import EVERY_S
from rayloom.dag.amount import Amount
from rayloom.dag.errors import Transient
from rayloom.dag.model import Denied, ModelUse, Payer, Reservation
from rayloom.dag.reservations import LEASE_S
from rayloom.dag.token_port import Quota, Used
from tests.fakes.controlled import ANN, KEY, PAYER, TASK, Controlled

HUNGRY = Payer(user_id=ANN)
PATIENCE_S = 60.0


async def _world(quota: Quota | None = None, **models: Quota) -> Controlled:
    world = Controlled(quota, models=models)
    await world.controller.reconcile()
    return world


async def _granted(world: Controlled, tokens: int, *, payer: Payer = PAYER) -> Reservation:
    answer = await world.reserve(tokens, payer=payer)
    assert isinstance(answer, Reservation)
    return answer


async def _denied(world: Controlled, tokens: int) -> str:
    answer = await world.reserve(tokens, payer=HUNGRY)
    assert isinstance(answer, Denied)
    return answer.limit


async def _pass(world: Controlled, seconds: float) -> None:
    """So much time goes by, and the controller looks twice: of a user it is read again the second time."""
    world.clock.now_s += seconds
    for _ in range(2):
        await world.controller.reconcile()


async def test_a_settlement_whose_answer_was_lost_and_whose_caller_died_holds_nothing_for_long() -> None:
    world = await _world(Quota(max_tokens=100), m=Quota(max_concurrent=1))
    world.ledger.budgets[TASK] = Quota(max_tokens=90)
    await world.controller.set_key_quota(KEY, Quota(max_tokens=80))
    dead = await _granted(world, 60)
    world.ledger.loses_answers = True
    with pytest.raises(Transient):
        await world.controller.settle(dead, ModelUse(tokens_in=30, tokens_out=20, cost_usd=0.5))
    world.ledger.loses_answers = False
    await _pass(world, EVERY_S - 1)
    assert (await world.controller.figures()).reserved_calls == 1
    assert isinstance(await world.reserve(1, payer=HUNGRY), Denied)
    await _pass(world, 1)
    figures = await world.controller.figures()
    assert (figures.reserved_calls, figures.reserved_tokens) == (0, 0)
    assert figures.used == (Used(model="m", purpose="reason", calls=1, tokens_in=30, tokens_out=20, cost_usd=0.5),)
    shares = {(each.level, each.limit): each.share for each in figures.shares}
    assert shares["user", "max_tokens"] == 50 / 100
    assert shares["key", "max_tokens"] == 50 / 80
    assert await _denied(world, 51) == "max_tokens"
    # Should the caller come back yet, it is counted already.
    await world.controller.settle(dead, ModelUse(tokens_in=30, tokens_out=20, cost_usd=0.5))
    await _granted(world, 50, payer=HUNGRY)


async def test_a_release_whose_answer_was_lost_is_found_out_too() -> None:
    world = await _world(Quota(max_tokens=100))
    dead = replace(world.ask(80), least=ModelUse(tokens_in=10))
    await world.controller.reserve(dead)
    world.clock.now_s += LEASE_S + 1
    world.ledger.loses_answers = True
    with pytest.raises(Transient):
        await world.controller.reconcile()
    world.ledger.loses_answers = False
    assert world.ledger.rows[dead.id].status == "released"
    await _pass(world, 1)
    assert await _denied(world, 91) == "max_tokens"
    await _granted(world, 90, payer=HUNGRY)
    assert (await world.controller.figures()).used == ()


async def test_what_is_granted_ahead_of_the_ledger_is_never_forgotten() -> None:
    world = await _world(Quota(max_tokens=1000))
    await world.controller.settle(await _granted(world, 1), ModelUse())
    reserve, written = world.ledger.reserve, asyncio.Event()

    async def writing(reservations: Sequence[Reservation]) -> Mapping[str, str]:
        written.set()
        return await reserve(reservations)

    world.ledger.reserve = _no_writing  # type: ignore[method-assign]
    ahead = await _granted(world, 50)
    for _ in range(3):
        await _pass(world, EVERY_S)
        assert await _denied(world, 951) == "max_tokens"
    world.ledger.reserve = writing  # type: ignore[method-assign]
    await world.controller.reconcile()
    await asyncio.wait_for(written.wait(), PATIENCE_S)
    assert world.ledger.rows[ahead.id].status == "reserved"
    assert await _denied(world, 951) == "max_tokens"


async def test_what_the_ledger_has_lost_is_written_down_again_and_ends_with_its_caller() -> None:
    world = await _world(Quota(max_tokens=100))
    alive, dead = await _granted(world, 40), await _granted(world, 40)
    for each in (alive, dead):
        del world.ledger.rows[each.id]
    await _pass(world, EVERY_S)
    assert {row.status for row in world.ledger.rows.values()} == {"reserved"}
    assert await _denied(world, 21) == "max_tokens"
    world.clock.now_s += LEASE_S / 2
    await world.controller.renew(alive)
    await _pass(world, LEASE_S / 2 + 1)
    assert [world.ledger.rows[each.id].status for each in (alive, dead)] == ["reserved", "released"]
    assert world.ledger.reserved("user", ANN) == Amount(tokens=40)
    await _granted(world, 60, payer=HUNGRY)


async def test_few_are_looked_up_at_a_time_and_each_but_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "AT_ONCE", 10)
    world = await _world()
    calls = [await _granted(world, 1) for _ in range(25)]
    for _ in range(4):
        world.clock.now_s += LEASE_S / 4
        for each in calls:
            await world.controller.renew(each)
    young = await _granted(world, 1)
    for _ in range(5):
        await world.controller.reconcile()
    assert world.ledger.compared == [10, 10, 5]
    world.clock.now_s += EVERY_S - 1
    await world.controller.reconcile()
    assert world.ledger.compared == [10, 10, 5]
    # What has ended since is none of them.
    await asyncio.gather(*(world.controller.settle(each, ModelUse()) for each in (*calls, young)))
    await _pass(world, 1)
    assert world.ledger.compared == [10, 10, 5]
    assert (await world.controller.figures()).reserved_calls == 0


async def _no_writing(reservations: Sequence[Reservation]) -> Mapping[str, str]:
    raise Transient("DATABASE_UNAVAILABLE", "away")
