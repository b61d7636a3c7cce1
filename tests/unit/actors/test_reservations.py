"""Reserving and settling against a ledger held in memory: who is granted what, and what is counted where."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest

from rayloom.actors.accounts import GRACE_S
from rayloom.actors.ahead import REST_S
from rayloom.actors.call_accounts import IDLE_S
from rayloom.actors.promises import PROMISE_S
from rayloom.dag.amount import Amount
from rayloom.dag.errors import Bug, Transient, UserError
from rayloom.dag.model import Denied, ModelUse, Payer, ProviderLimits, Reservation
from rayloom.dag.reservations import LEASE_S, RENEW_EVERY_S
from rayloom.dag.token_port import Ask, Finished, Quota, Share, Used
from rayloom.db.alerts import Limit
from tests.fakes.controlled import ANN, KEY, SUBTASK, TASK, Controlled, identity


async def _world(quota: Quota | None = None, *, models: Mapping[str, Quota] | None = None) -> Controlled:
    world = Controlled(quota, models=models)
    await world.controller.reconcile()
    return world


def _granted(answer: Reservation | Denied) -> Reservation:
    assert isinstance(answer, Reservation)
    return answer


def _denied(answer: Reservation | Denied) -> tuple[str, str, float | None]:
    assert isinstance(answer, Denied)
    return answer.level, answer.limit, answer.retry_in_s


async def test_what_is_reserved_leaves_no_room_and_what_was_not_used_gives_it_back() -> None:
    world = await _world(Quota(max_tokens=100))
    first = _granted(await world.reserve(80))
    assert _denied(await world.reserve(30)) == ("user", "max_tokens", 1.0)
    await world.controller.settle(first, ModelUse(tokens_in=10, tokens_out=5))
    second = _granted(await world.reserve(85))
    await world.controller.settle(second, ModelUse(tokens_in=85))
    assert _denied(await world.reserve(1)) == ("user", "max_tokens", None)
    assert world.ledger.used("user", ANN) == Amount(tokens=100)


async def test_who_has_no_limits_is_granted_everything_and_written_down() -> None:
    world = await _world()
    for _ in range(3):
        _granted(await world.reserve(10**9))
    await world.controller.settle(world.ask(1), ModelUse())
    assert sorted(row.status for row in world.ledger.rows.values()) == ["reserved"] * 3 + ["settled"]


async def test_saying_the_same_twice_changes_nothing() -> None:
    world = await _world(Quota(max_tokens=100))
    reservation, use = world.ask(60), ModelUse(tokens_in=30)
    for _ in range(2):
        assert await world.controller.reserve(reservation) is None
    assert _denied(await world.reserve(50)) == ("user", "max_tokens", 1.0)
    for _ in range(2):
        await world.controller.settle(reservation, use)
    # Asked for once more after its end: an answer that was lost on its way.
    assert await world.controller.reserve(reservation) is None
    assert (await world.controller.figures()).reserved_calls == 0
    _granted(await world.reserve(70))
    assert _denied(await world.reserve(1)) == ("user", "max_tokens", 1.0)


async def test_the_same_at_the_same_time_is_reserved_once() -> None:
    world = await _world(Quota(max_tokens=100))
    reservation = world.ask(60)
    assert await asyncio.gather(*(world.controller.reserve(reservation) for _ in range(5))) == [None] * 5
    _granted(await world.reserve(40))
    settled = world.controller.settle(reservation, ModelUse(tokens_in=1))
    again = world.controller.settle(reservation, ModelUse(tokens_in=1))
    await asyncio.gather(settled, again)
    assert world.ledger.used("user", ANN) == Amount(tokens=1)
    assert world.ledger.batches == [1, 1]


async def test_many_at_once_are_written_together_and_granted_as_they_fit() -> None:
    world = await _world(Quota(max_tokens=1000))
    answers = await asyncio.gather(*(world.reserve(10) for _ in range(500)))
    granted = [answer for answer in answers if isinstance(answer, Reservation)]
    assert len(granted) == 100
    assert sum(world.ledger.batches) == 100
    assert len(world.ledger.batches) <= 2
    await asyncio.gather(*(world.controller.settle(each, ModelUse(tokens_out=10)) for each in granted))
    assert world.ledger.used("user", ANN) == Amount(tokens=1000)
    assert world.ledger.reserved("user", ANN) == Amount()


async def test_what_could_not_be_written_is_not_reserved() -> None:
    world = await _world(Quota(max_tokens=100))
    # Its task is known by then.
    _granted(await world.reserve(1))
    world.ledger.away = True
    reservation = world.ask(60)
    with pytest.raises(Transient):
        await world.controller.reserve(reservation)
    world.ledger.away = False
    _granted(await world.reserve(90))


async def test_an_answer_that_was_lost_is_asked_for_again() -> None:
    world = await _world(Quota(max_tokens=100))
    reservation, use = world.ask(60), ModelUse(tokens_in=50)
    _granted(await world.reserve(1))
    world.ledger.loses_answers = True
    with pytest.raises(Transient):
        await world.controller.reserve(reservation)
    world.ledger.loses_answers = False
    assert await world.controller.reserve(reservation) is None
    world.ledger.loses_answers = True
    with pytest.raises(Transient):
        await world.controller.settle(reservation, use)
    world.ledger.loses_answers = False
    await world.controller.settle(reservation, use)
    assert world.ledger.used("user", ANN) == Amount(tokens=50)
    assert _denied(await world.reserve(50)) == ("user", "max_tokens", 1.0)
    _granted(await world.reserve(49))


async def test_the_levels_are_checked_together() -> None:
    world = await _world(Quota(max_tokens=1000), models={"m": Quota(max_concurrent=2)})
    world.ledger.budgets[TASK] = Quota(max_tokens=300, max_cost_usd=1.0)
    await world.controller.set_key_quota(KEY, Quota(requests_per_min=4))
    first = _granted(await world.reserve(100))
    _granted(await world.reserve(100))
    assert _denied(await world.reserve(50)) == ("model", "max_concurrent", 1.0)
    await world.controller.settle(first, ModelUse(tokens_in=90))
    assert _denied(await world.reserve(250)) == ("task", "max_tokens", None)
    expensive = world.ask(1, cost_usd=1.5)
    told = await world.controller.reserve(expensive)
    assert told is not None
    assert (told.level, told.limit, told.retry_in_s) == ("task", "max_cost_usd", None)
    # What was denied was reserved nowhere.
    assert world.ledger.reserved("user", ANN) == Amount(tokens=100)
    third = _granted(await world.reserve(50))
    await world.controller.settle(third, ModelUse())
    _granted(await world.reserve(50))
    level, limit, retry_in_s = _denied(await world.reserve(1))
    assert (level, limit) == ("key", "requests_per_min")
    assert retry_in_s == pytest.approx(61)
    assert await world.controller.key_quota(KEY) == Quota(requests_per_min=4)
    with pytest.raises(UserError):
        await world.controller.set_key_quota("unknown", Quota(max_tokens=1))
    await world.controller.set_key_quota(KEY, Quota())
    await world.controller.settle(first, ModelUse())
    assert _denied(await world.reserve(1)) == ("model", "max_concurrent", 1.0)


async def test_a_budget_that_was_raised_is_seen_at_once() -> None:
    world = await _world()
    world.ledger.budgets[TASK] = Quota(max_tokens=100)
    first = _granted(await world.reserve(60))
    await world.controller.settle(first, ModelUse(tokens_in=60))
    assert _denied(await world.reserve(60)) == ("task", "max_tokens", None)
    world.ledger.budgets[TASK] = Quota(max_tokens=200)
    _granted(await world.reserve(60))


async def test_what_tools_of_a_task_used_counts_too_and_a_task_that_rests_is_forgotten() -> None:
    world = await _world()
    world.ledger.budgets[TASK] = Quota(max_tokens=100)
    first = _granted(await world.reserve(10))
    world.ledger.tools[TASK] = 70
    await world.controller.reconcile()
    assert _denied(await world.reserve(31)) == ("task", "max_tokens", None)
    await world.controller.settle(first, ModelUse())
    world.clock.now_s += IDLE_S + 1
    readings = world.ledger.readings
    await world.controller.reconcile()
    assert world.ledger.readings == readings


async def test_a_dead_callers_reservation_expires_and_its_late_word_counts_all_the_same() -> None:
    world = await _world(Quota(max_tokens=100))
    dead = _granted(await world.reserve(80))
    world.clock.now_s += 61
    await world.controller.reconcile()
    assert world.ledger.rows[dead.id].status == "released"
    later = _granted(await world.reserve(90))
    await world.controller.settle(dead, ModelUse(tokens_in=30))
    await world.controller.settle(later, ModelUse(tokens_in=60))
    assert world.ledger.used("user", ANN) == Amount(tokens=90)
    _granted(await world.reserve(10))
    assert _denied(await world.reserve(1))[1] == "max_tokens"


async def test_a_dead_caller_has_used_at_least_what_it_said_last() -> None:
    world = await _world(Quota(max_tokens=100))
    dead = replace(world.ask(80), least=ModelUse(tokens_in=10))
    await world.controller.reserve(dead)
    world.clock.now_s += 50
    await world.controller.renew(replace(dead, least=ModelUse(tokens_in=10, tokens_out=15)))
    world.clock.now_s += 50
    await world.controller.reconcile()
    assert _denied(await world.reserve(30)) == ("user", "max_tokens", 1.0)
    world.clock.now_s += 11
    await world.controller.reconcile()
    assert world.ledger.used("user", ANN) == Amount(tokens=25)
    assert _denied(await world.reserve(76)) == ("user", "max_tokens", None)
    later = _granted(await world.reserve(75))
    # It was not dead after all, and its word is what counts.
    await world.controller.settle(dead, ModelUse(tokens_in=10, tokens_out=10))
    await world.controller.settle(later, ModelUse(tokens_in=75))
    assert world.ledger.used("user", ANN) == Amount(tokens=95)
    assert _denied(await world.reserve(6)) == ("user", "max_tokens", None)
    _granted(await world.reserve(5))


async def test_what_an_attempt_reserved_that_has_ended_is_released_before_its_lease_is_over() -> None:
    world = await _world(Quota(max_tokens=100))
    left = replace(world.ask(80), least=ModelUse(tokens_in=10))
    await world.controller.reserve(left)
    await world.controller.reconcile()
    world.ledger.ended.add(SUBTASK)
    await world.controller.reconcile()
    # It may be about to settle.
    assert world.ledger.rows[left.id].status == "reserved"
    world.clock.now_s += 5
    await world.controller.reconcile()
    assert world.ledger.rows[left.id].status == "released"
    _granted(await world.reserve(90))


async def test_nobody_is_taken_for_dead_by_a_controller_that_could_not_hear_it() -> None:
    world = await _world()
    alive = _granted(await world.reserve(80))
    world.clock.now_s += 600
    await world.anew().reconcile()
    world.clock.now_s += LEASE_S - 1
    await world.controller.renew(alive)
    world.clock.now_s += 2
    await world.controller.reconcile()
    assert world.ledger.rows[alive.id].status == "reserved"


async def test_a_call_of_no_task_is_renewed_by_a_controller_that_does_not_know_it() -> None:
    world = await _world()
    call = world.ask(80, payer=Payer(user_id=ANN))
    await world.controller.renew(call)
    assert world.ledger.rows[call.id].status == "reserved"


async def test_nobody_is_taken_for_dead_who_could_not_be_written_down() -> None:
    world = await _world()
    alive = _granted(await world.reserve(80))
    world.clock.now_s += LEASE_S + 10
    world.ledger.away = True
    with pytest.raises(Transient):
        await world.controller.renew(alive)
    world.ledger.away = False
    await world.controller.reconcile()
    assert world.ledger.rows[alive.id].status == "reserved"
    world.clock.now_s += LEASE_S + 1
    await world.controller.reconcile()
    assert world.ledger.rows[alive.id].status == "released"


async def test_what_is_released_of_a_call_that_is_not_known_is_counted_for_its_user() -> None:
    world = await _world(Quota(max_tokens=100))
    world.ledger.loses_answers = True
    unheard = replace(world.ask(80), least=ModelUse(tokens_in=30))
    with pytest.raises(Transient):
        await world.controller.reserve(unheard)
    world.ledger.loses_answers = False
    world.clock.now_s += LEASE_S + 1
    await world.controller.reconcile()
    await world.controller.reconcile()
    assert _denied(await world.reserve(71)) == ("user", "max_tokens", None)


async def test_what_was_over_before_it_was_renewed_is_counted_for_its_user() -> None:
    world = await _world(Quota(max_tokens=100))
    call = _granted(await world.reserve(60))
    # By another controller, which nobody hears of here.
    await world.ledger.settle([(call, ModelUse(tokens_in=40))])
    await world.controller.renew(call)
    await world.controller.reconcile()
    assert _denied(await world.reserve(61)) == ("user", "max_tokens", None)
    _granted(await world.reserve(60))


async def _ahead(quota: Quota) -> Controlled:
    """A controller that grants ahead by now."""
    world = await _world(quota)
    await world.controller.settle(_granted(await world.reserve(1)), ModelUse())
    assert await world.ledger.is_granted_ahead()
    return world


async def test_little_is_granted_before_it_is_written_down_and_the_rest_waits_for_that() -> None:
    world = await _ahead(Quota(max_tokens=1000))
    world.ledger.away = True
    first = _granted(await world.reserve(50))
    assert first.id not in world.ledger.rows
    # Two of it would be more than a twentieth of the limit.
    with pytest.raises(Transient):
        await world.reserve(1)
    assert _denied(await world.reserve(960)) == ("user", "max_tokens", 1.0)
    world.ledger.away = False
    await world.controller.reconcile()
    await asyncio.sleep(0)
    await world.controller.renew(first)
    assert world.ledger.rows[first.id].status == "reserved"
    world.ledger.away = True
    _granted(await world.reserve(50))


async def test_what_is_over_before_it_was_written_down_is_settled_all_the_same() -> None:
    world = await _ahead(Quota(max_tokens=1000))
    world.ledger.away = True
    first = _granted(await world.reserve(50))
    await asyncio.sleep(0)
    world.ledger.away = False
    await world.controller.settle(first, ModelUse(tokens_in=40))
    await world.controller.reconcile()
    assert world.ledger.rows[first.id].status == "settled"
    world.ledger.away = True
    _granted(await world.reserve(50))
    assert (await world.controller.figures()).reserved_tokens == 50


async def test_nothing_is_overspent_by_what_a_killed_controller_had_not_written_down() -> None:
    world = await _ahead(Quota(max_tokens=1000))
    world.ledger.away = True
    unknown = _granted(await world.reserve(50))
    assert unknown.id not in world.ledger.rows
    world.ledger.away = False
    await world.anew().reconcile()
    await world.controller.settle(_granted(await world.reserve(1)), ModelUse())
    await asyncio.sleep(0)
    world.ledger.away = True
    with pytest.raises(Transient):
        # Nothing is granted ahead meanwhile: who follows would withhold no more for two of them.
        await world.reserve(10)
    world.ledger.away = False
    known = _granted(await world.reserve(900))
    assert _denied(await world.reserve(51)) == ("user", "max_tokens", 1.0)
    await world.controller.settle(known, ModelUse(tokens_in=900))
    assert _denied(await world.reserve(51)) == ("user", "max_tokens", LEASE_S)
    # Nor is it admitted only to be denied again.
    (held,) = await world.controller.admit([Ask(sub_task_id=SUBTASK, user_id=ANN)], [])
    assert (held.limit, held.alone, held.free_in_s) == ("max_tokens", True, LEASE_S)
    assert _denied(await world.reserve(101)) == ("user", "max_tokens", None)
    _granted(await world.reserve(50))
    # Its caller lives, and says so.
    world.clock.now_s += RENEW_EVERY_S
    await world.controller.renew(unknown)
    world.clock.now_s += LEASE_S
    assert _denied(await world.reserve(1)) == ("user", "max_tokens", 1.0)
    await world.controller.settle(unknown, ModelUse(tokens_in=20))
    _granted(await world.reserve(30))


async def test_a_controller_that_could_not_read_the_ledger_for_long_has_heard_nobody_meanwhile() -> None:
    world = await _ahead(Quota(max_tokens=1000))
    world.ledger.away = True
    unknown = _granted(await world.reserve(50))
    world.anew()
    with pytest.raises(Transient):
        await world.controller.reconcile()
    world.clock.now_s += 2 * LEASE_S + REST_S
    world.ledger.away = False
    await world.controller.reconcile()
    assert _denied(await world.reserve(951)) == ("user", "max_tokens", LEASE_S)
    # A ledger that is away once more keeps others from being heard.
    world.clock.now_s += LEASE_S - 1
    world.ledger.away = True
    with pytest.raises(Transient):
        await world.controller.settle(unknown, ModelUse(tokens_in=40))
    world.ledger.away = False
    world.clock.now_s += LEASE_S - 1
    assert _denied(await world.reserve(951)) == ("user", "max_tokens", 1.0)
    # It still lives, though it can't be written down: that is known now.
    world.ledger.away = True
    with pytest.raises(Transient):
        await world.controller.renew(unknown)
    world.ledger.away = False
    world.clock.now_s += LEASE_S
    assert _denied(await world.reserve(951)) == ("user", "max_tokens", 1.0)
    assert world.ledger.used("user", ANN) == Amount()


async def test_who_follows_a_controller_that_has_rested_withholds_nothing() -> None:
    world = await _ahead(Quota(max_tokens=1000))
    first = _granted(await world.reserve(50))
    await world.controller.settle(first, ModelUse())
    world.clock.now_s += REST_S - 1
    await world.controller.reconcile()
    await asyncio.sleep(0)
    assert await world.ledger.is_granted_ahead()
    world.clock.now_s += 2
    await world.controller.reconcile()
    await asyncio.sleep(0)
    assert not await world.ledger.is_granted_ahead()
    # It says so anew before it does so again.
    world.ledger.away = True
    with pytest.raises(Transient):
        await world.reserve(50)
    world.ledger.away = False
    await world.anew().reconcile()
    _granted(await world.reserve(1000))


async def test_what_is_not_written_down_yet_is_no_rest() -> None:
    world = await _ahead(Quota(max_tokens=1000))
    await asyncio.sleep(0)
    reserve, world.ledger.reserve = world.ledger.reserve, _no_writing  # type: ignore[method-assign]
    _granted(await world.reserve(50))
    for _ in range(2):
        world.clock.now_s += REST_S
        await world.controller.reconcile()
        await asyncio.sleep(0)
        assert await world.ledger.is_granted_ahead()
    world.ledger.reserve = reserve  # type: ignore[method-assign]
    for _ in range(3):
        await world.controller.reconcile()
        await asyncio.sleep(0)
    assert not await world.ledger.is_granted_ahead()
    assert world.ledger.reserved("user", ANN) == Amount(tokens=50)


async def _no_writing(reservations: Sequence[Reservation]) -> Mapping[str, str]:
    raise Transient("DATABASE_UNAVAILABLE", "away")


async def test_a_new_life_of_the_controller_counts_what_the_last_one_reserved() -> None:
    world = await _world(Quota(max_tokens=100), models={"m": Quota(requests_per_min=3, max_concurrent=3)})
    await world.controller.set_key_quota(KEY, Quota(tokens_per_min=200))
    first, second = _granted(await world.reserve(40)), _granted(await world.reserve(40))
    await world.controller.settle(first, ModelUse(tokens_in=30))
    world.ledger.is_ahead = False
    await world.anew().reconcile()
    assert _denied(await world.reserve(31)) == ("user", "max_tokens", 1.0)
    third = _granted(await world.reserve(30))
    assert _denied(await world.reserve(0))[:2] == ("model", "requests_per_min")
    await world.controller.settle(second, ModelUse(tokens_in=40))
    await world.controller.settle(third, ModelUse(tokens_in=30))
    await world.controller.set_quota(ANN, Quota())
    world.clock.now_s += 30
    assert _denied(await world.reserve(101))[:2] == ("key", "tokens_per_min")
    world.clock.now_s += 31
    _granted(await world.reserve(200))


async def test_a_limit_that_is_new_counts_what_is_reserved_already() -> None:
    world = await _world()
    _granted(await world.reserve(80))
    await world.controller.set_quota(ANN, Quota(max_tokens=100))
    assert _denied(await world.reserve(30)) == ("user", "max_tokens", 1.0)


async def test_nothing_is_granted_to_a_user_of_whom_nothing_is_known_yet() -> None:
    world = Controlled(Quota(max_tokens=100))
    world.users.away = True
    await world.controller.reconcile()
    with pytest.raises(Transient) as told:
        await world.reserve(1)
    assert told.value.code == "TOKENS_STARTING"
    world.users.away = False
    _granted(await world.reserve(1))


async def test_what_an_endpoint_says_holds_for_all_who_call_it() -> None:
    world = await _world()
    await world.controller.learn("m", ProviderLimits(retry_after_s=5.0, requests_left=1, requests_reset_s=30.0))
    assert _denied(await world.reserve(1)) == ("model", "provider", 5.0)
    _granted(await world.reserve(1, model="other"))
    world.clock.now_s += 5
    _granted(await world.reserve(1))
    assert _denied(await world.reserve(1)) == ("model", "provider", 25.0)


async def _held(world: Controlled, *ids: str, ended: Sequence[str] = ()) -> list[tuple[str, str]]:
    asks = [Ask(sub_task_id=id_, user_id=ANN) for id_ in ids]
    ends = [Finished(sub_task_id=id_, user_id=ANN) for id_ in ended]
    return [(held.sub_task_id, held.limit) for held in await world.controller.admit(asks, ends)]


async def test_a_subtask_that_was_denied_is_not_admitted_before_there_is_room_for_what_it_asked() -> None:
    world = await _world(Quota(max_tokens=100))
    world.ledger.budgets[TASK] = Quota(max_tokens=1000)
    first = _granted(await world.reserve(60, payer=Payer(user_id=ANN)))
    assert _denied(await world.reserve(50)) == ("user", "max_tokens", 1.0)
    assert await _held(world, SUBTASK, "other") == [(SUBTASK, "max_tokens")]
    await world.controller.settle(first, ModelUse(tokens_in=20))
    assert await _held(world, SUBTASK) == []
    # Its room is kept for it, and for nobody else.
    assert _denied(await world.reserve(40, payer=Payer(user_id=ANN))) == ("user", "max_tokens", 1.0)
    _granted(await world.reserve(50))
    assert (await world.controller.figures()).reserved_tokens == 50


async def test_room_that_is_kept_counts_once_against_what_an_endpoint_has_left() -> None:
    world = await _world()
    told = ProviderLimits(retry_after_s=5.0, requests_left=3, requests_reset_s=30.0, tokens_left=100)
    await world.controller.learn("m", told)
    assert _denied(await world.reserve(40)) == ("model", "provider", 5.0)
    world.clock.now_s += 5
    assert await _held(world, SUBTASK) == []
    others = Payer(user_id=ANN)
    # 40 of 100 are kept: by then nobody has called for them.
    assert _denied(await world.reserve(61, payer=others))[:2] == ("model", "provider")
    _granted(await world.reserve(40))
    _granted(await world.reserve(60, payer=others))
    await world.controller.learn("m", ProviderLimits(tokens_left=1000))
    _granted(await world.reserve(1, payer=others))
    assert _denied(await world.reserve(1, payer=others)) == ("model", "provider", 25.0)


async def test_who_waited_for_room_and_got_it_is_held_no_more() -> None:
    world = await _world(Quota(max_tokens=100))
    first = _granted(await world.reserve(90, payer=Payer(user_id=ANN)))
    assert _denied(await world.reserve(20))[1] == "max_tokens"
    await world.controller.settle(first, ModelUse())
    second = _granted(await world.reserve(20))
    await world.controller.settle(second, ModelUse())
    _granted(await world.reserve(90, payer=Payer(user_id=ANN)))
    assert await _held(world, SUBTASK) == []


async def test_room_that_was_kept_in_vain_is_given_back() -> None:
    world = await _world(Quota(max_tokens=100))
    hungry = identity(9)
    for how in ("its attempt has ended", "it never came"):
        first = _granted(await world.reserve(100, payer=Payer(user_id=ANN)))
        assert _denied(await world.reserve(90))[1] == "max_tokens"
        await world.controller.settle(first, ModelUse())
        assert await _held(world, SUBTASK) == []
        assert _denied(await world.reserve(90, payer=Payer(user_id=ANN, task_id=TASK, sub_task_id=hungry)))
        if how == "it never came":
            world.clock.now_s += max(PROMISE_S, GRACE_S) + 1
            await world.controller.reconcile()
        else:
            assert await _held(world, ended=[SUBTASK]) == []
        last = _granted(await world.reserve(95, payer=Payer(user_id=ANN)))
        await world.controller.settle(last, ModelUse())


async def test_others_than_users_hold_a_subtask_back_too_but_a_spent_budget_does_not() -> None:
    world = await _world(models={"m": Quota(max_concurrent=1)})
    first = _granted(await world.reserve(1))
    assert _denied(await world.reserve(1))[0] == "model"
    assert await _held(world, SUBTASK) == [(SUBTASK, "model.max_concurrent")]
    await world.controller.settle(first, ModelUse())
    assert await _held(world, SUBTASK) == []
    world.ledger.budgets[TASK] = Quota(max_tokens=10)
    await world.controller.reconcile()
    assert _denied(await world.reserve(11)) == ("task", "max_tokens", None)
    # Its next attempt is told, and ends it.
    assert await _held(world, SUBTASK) == []


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"}, {"tokens": -1}, {"tokens": 2**60}, {"cost_usd": float("nan")}, {"cost_usd": -1.0},
        {"lease_s": 0.0}, {"payer": Payer(user_id="x")}, {"payer": Payer(user_id=ANN, key_id="x")},
        {"payer": Payer(user_id=ANN, sub_task_id=SUBTASK)}, {"payer": Payer(user_id=ANN, attempt=-1)},
    ],
    ids=str,
)  # fmt: skip
async def test_what_can_not_be_written_down_is_refused_by_itself(change: dict[str, object]) -> None:
    world = await _world()
    values = {name: getattr(world.ask(1), name) for name in Reservation.__slots__} | change
    with pytest.raises(Bug):
        await world.controller.reserve(Reservation(**values))


async def test_what_is_nearly_used_up_is_told_once() -> None:
    world = await _world(Quota(max_tokens=1000, max_cost_usd=10.0))
    world.ledger.budgets[TASK] = Quota(max_tokens=100)
    for _ in range(2):
        reservation = _granted(await world.reserve(40))
        await world.controller.settle(reservation, ModelUse(tokens_in=40, cost_usd=0.5))
        await world.controller.reconcile()
        await world.controller.reconcile()
    assert world.ledger.alerted == [(("task", TASK, "max_tokens"), 0.8)]
    figures = await world.controller.figures()
    assert figures.used == (Used(model="m", purpose="reason", calls=2, tokens_in=80, tokens_out=0, cost_usd=1.0),)
    assert figures.shares[0] == Share(level="task", id=TASK, limit="max_tokens", share=0.8)
    assert [(each.level, each.share) for each in figures.shares[1:]] == [("user", 0.1), ("user", 0.08)]
    assert figures.warn_share == 0.8
    assert _denied(await world.reserve(60))[0] == "task"
    assert (await world.controller.figures()).denied == (("task", "max_tokens", 1),)


async def test_a_window_is_told_of_once_until_it_has_been_far_from_its_limit_for_a_minute() -> None:
    world = await _world()
    await world.controller.set_key_quota(KEY, Quota(tokens_per_min=100))
    told = (("key", KEY, "tokens_per_min"), 0.9)

    async def use(tokens: int) -> None:
        await world.controller.settle(_granted(await world.reserve(tokens)), ModelUse(tokens_in=tokens))
        await world.controller.reconcile()

    await use(90)
    assert world.ledger.alerted == [told]
    # Another life knows it from the record; and what is used again a moment later is no news.
    world.clock.now_s += 55
    await world.anew().reconcile()
    world.clock.now_s += 7
    await use(85)
    world.clock.now_s += 55
    await world.controller.reconcile()
    assert (world.ledger.alerted, set(world.ledger.alerts)) == ([told], {told[0]})
    world.clock.now_s += 62
    await world.controller.reconcile()
    assert world.ledger.alerts == {}
    await use(90)
    assert world.ledger.alerted == [told, told]


async def test_a_task_that_rests_is_told_of_no_second_time_before_its_budget_is_raised_or_it_has_ended() -> None:
    world = await _world()
    world.ledger.budgets[TASK] = Quota(max_tokens=100)
    limit = ("task", TASK, "max_tokens")

    async def use(tokens: int) -> None:
        await world.controller.settle(_granted(await world.reserve(tokens)), ModelUse(tokens_in=tokens))
        await world.controller.reconcile()

    async def rest() -> None:
        for _ in range(3):
            world.clock.now_s += IDLE_S + 1
            await world.controller.reconcile()

    await use(80)
    await rest()
    await use(1)
    # Nor where another controller has it from the record alone.
    await world.anew().reconcile()
    await rest()
    await use(1)
    assert world.ledger.alerted == [(limit, 0.8)]
    await rest()
    world.ledger.budgets[TASK] = Quota(max_tokens=1000)
    await use(1)
    assert world.ledger.alerts == {}
    await use(800)
    assert [each for each, _ in world.ledger.alerted] == [limit, limit]
    await rest()
    assert set(world.ledger.alerts) == {limit}
    world.ledger.ended.add(TASK)
    await rest()
    assert world.ledger.alerts == {}


async def test_a_task_that_has_ended_is_asked_after_until_the_answer_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await _world()
    world.ledger.budgets[TASK] = Quota(max_tokens=100)
    await world.controller.settle(_granted(await world.reserve(80)), ModelUse(tokens_in=80))
    await world.controller.reconcile()
    asked, lost, ended = 0, 1, world.ledger.alerts_of_ended

    async def asking(tasks: Collection[str]) -> frozenset[str]:
        nonlocal asked
        asked += 1
        answer = await ended(tasks)
        if asked <= lost:
            raise Transient("DATABASE_UNAVAILABLE", "the answer was lost")
        return answer

    monkeypatch.setattr(world.ledger, "alerts_of_ended", asking)
    world.ledger.ended.add(TASK)
    for _ in range(6):
        world.clock.now_s += IDLE_S + 1
        await world.controller.reconcile()
    assert (world.ledger.alerts, asked) == ({}, lost + 1)


async def test_what_could_not_be_written_is_told_later() -> None:
    world = await _world(Quota(max_tokens=100))
    await world.controller.settle(_granted(await world.reserve(90)), ModelUse(tokens_in=90))
    alert, world.ledger.alert = world.ledger.alert, _away  # type: ignore[method-assign]
    await world.controller.reconcile()
    assert world.ledger.alerted == []
    world.ledger.alert = alert  # type: ignore[method-assign]
    await world.controller.reconcile()
    assert world.ledger.alerted == [(("user", ANN, "max_tokens"), 0.9)]


async def _away(near: Sequence[Share]) -> frozenset[Limit]:
    raise Transient("DATABASE_UNAVAILABLE", "away")
