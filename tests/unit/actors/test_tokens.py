"""The token controller against a record held in memory: who is admitted, what is counted, what is rebuilt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from rayloom.actors import tokens
from rayloom.actors.accounts import GRACE_S
from rayloom.actors.tokens import TokenController
from rayloom.actors.user_accounts import FAILED_READINGS_MAX
from rayloom.dag.amount import Amount
from rayloom.dag.errors import Transient
from rayloom.dag.limits import is_limited
from rayloom.dag.ports import Ask, Finished, Limited, Quota
from rayloom.db.quotas import Standing
from tests.fakes.memory_ledger import MemoryLedger

ANN, BOB, CID = "ann", "bob", "cid"


class Record:
    """What the database would say."""

    def __init__(self, **quotas: Quota) -> None:
        self.quotas = dict(quotas)
        self.standing: dict[str, Standing] = {}
        self.away = False
        self.unreadable: set[str] = set()
        self.readings = 0
        self.written = asyncio.Event()
        self.while_reading: Callable[[], Awaitable[object]] | None = None

    async def limited(self) -> Mapping[str, Quota]:
        self._answer()
        return {user: quota for user, quota in self.quotas.items() if is_limited(quota)}

    async def quota(self, user_id: str) -> Quota:
        self._answer()
        return self.quotas.get(user_id, Quota())

    async def write(self, user_id: str, quota: Quota) -> str:
        self._answer()
        self.quotas[user_id.lower()] = quota
        self.written.set()
        return user_id.lower()

    async def leased(self, users: Sequence[str]) -> Mapping[str, frozenset[str]]:
        self._answer()
        return {user: self._of(user).leased for user in users}

    async def standings(self, users: Sequence[str], *, window_s: float) -> Mapping[str, Standing]:
        self._answer()
        assert window_s >= 60
        if self.unreadable.intersection(users):
            raise Transient("DATABASE_UNAVAILABLE", "too slow")
        standings = {user: self._of(user) for user in users}
        if self.while_reading is not None:
            await self.while_reading()
        return standings

    def lease(self, user: str, *ids: str) -> None:
        self.standing[user] = replace(self._of(user), leased=frozenset(ids))

    def _of(self, user: str) -> Standing:
        return self.standing.get(user, Standing())

    def _answer(self) -> None:
        self.readings += 1
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "away")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def _controller(record: Record, clock: Clock | None = None) -> TokenController:
    controller = TokenController(record, MemoryLedger(), MemoryLedger(), clock=clock or Clock())
    await controller.reconcile()
    return controller


def _asks(user: str, *ids: str) -> list[Ask]:
    return [Ask(sub_task_id=id_, user_id=user) for id_ in ids]


async def _held(controller: TokenController, asked: Sequence[Ask], finished: Sequence[Finished] = ()) -> list[str]:
    return [held.sub_task_id for held in await controller.admit(asked, finished)]


def _end(user: str, id_: str, tokens_used: int = 0) -> Finished:
    return Finished(sub_task_id=id_, user_id=user, tokens=tokens_used)


async def test_a_user_without_limits_is_never_held_and_never_counted() -> None:
    controller = await _controller(Record(bob=Quota(max_concurrent=1)))
    many = [str(number) for number in range(500)]
    assert await _held(controller, _asks(ANN, *many) + _asks(CID, *many)) == []
    assert (await controller.health())["attempts"] == 0


async def test_places_are_given_in_the_order_of_asking() -> None:
    controller = await _controller(Record(ann=Quota(max_concurrent=2), bob=Quota(max_concurrent=1)))
    asked = _asks(ANN, "a1") + _asks(BOB, "b1", "b2") + _asks(ANN, "a2", "a3") + _asks(CID, "c1")
    held = await controller.admit(asked, ())
    assert [(one.sub_task_id, one.limit) for one in held] == [("b2", "max_concurrent"), ("a3", "max_concurrent")]
    assert all(0.25 <= one.ask_again_in_s <= 1 for one in held)


async def test_an_end_makes_room_in_the_same_call() -> None:
    controller = await _controller(Record(ann=Quota(max_concurrent=1)))
    assert await _held(controller, _asks(ANN, "a1", "a2")) == ["a2"]
    assert await _held(controller, _asks(ANN, "a2", "a3"), [_end(ANN, "a1")]) == ["a3"]


async def test_what_holds_a_user_back_is_told_without_taking_a_place() -> None:
    controller = await _controller(Record(ann=Quota(max_concurrent=1)))
    assert await controller.limited(ANN) is None
    assert await _held(controller, _asks(ANN, "a1")) == []
    assert await controller.limited(ANN) == Limited(limit="max_concurrent", free_in_s=0.0)
    assert await controller.limited(BOB) is None


async def test_asking_twice_counts_once() -> None:
    controller = await _controller(Record(ann=Quota(max_concurrent=2, requests_per_min=2)))
    for _ in range(3):
        assert await _held(controller, _asks(ANN, "a1", "a1")) == []
    assert await _held(controller, _asks(ANN, "a2", "a3")) == ["a3"]


async def test_an_end_told_twice_counts_once() -> None:
    controller = await _controller(Record(ann=Quota(max_concurrent=2, max_tokens=10)))
    assert await _held(controller, _asks(ANN, "a1", "a2", "a3")) == ["a3"]
    ends = [_end(ANN, "a1", 5), _end(ANN, "a1", 5), _end(ANN, "unknown", 5)]
    assert await _held(controller, _asks(ANN, "a3", "a4"), ends) == ["a4"]
    # 5 of the 10 tokens are spent, not 10 or 15.
    assert await _held(controller, _asks(ANN, "a4"), [_end(ANN, "a1", 5), _end(ANN, "a2")]) == []


async def test_the_rate_of_starts_is_kept_over_the_minute() -> None:
    clock = Clock()
    controller = await _controller(Record(ann=Quota(requests_per_min=3)), clock)
    ends = [_end(ANN, f"a{n}") for n in range(3)]
    assert await _held(controller, _asks(ANN, "a0", "a1", "a2", "a3")) == ["a3"]
    clock.now_s += 59
    held = await controller.admit(_asks(ANN, "a3"), ends)
    assert [one.limit for one in held] == ["requests_per_min"]
    assert held[0].ask_again_in_s == pytest.approx(2)
    clock.now_s += 2
    assert await _held(controller, _asks(ANN, "a3")) == []


async def test_what_never_started_is_no_request() -> None:
    clock = Clock()
    record = Record(ann=Quota(requests_per_min=2))
    record.lease(ANN, "old")
    controller = await _controller(record, clock)
    assert await _held(controller, _asks(ANN, "a1", "a2", "a3")) == ["a3"]
    clock.now_s += 5
    returned = [replace(_end(ANN, id_), started=False) for id_ in ("a1", "a1", "old", "unknown")]
    assert await _held(controller, _asks(ANN, "a3", "a4"), returned) == ["a4"]
    clock.now_s += GRACE_S + 1
    record.lease(ANN)
    await controller.reconcile()
    # Nobody said that these didn't start.
    assert await _held(controller, _asks(ANN, "a4"), [replace(_end(ANN, "a2"), started=False)]) == ["a4"]


async def test_a_spent_user_waits_for_a_raised_limit_which_holds_at_once() -> None:
    record = Record(ann=Quota(max_tokens=100))
    controller = await _controller(record)
    assert await _held(controller, _asks(ANN, "a1")) == []
    held = await controller.admit(_asks(ANN, "a2"), [_end(ANN, "a1", 130)])
    assert [one.limit for one in held] == ["max_tokens"]
    await controller.set_quota("ANN", Quota(max_tokens=131))
    assert record.quotas[ANN] == await controller.quota(ANN) == Quota(max_tokens=131)
    assert await _held(controller, _asks(ANN, "a2")) == []
    await controller.set_quota(ANN, Quota(max_tokens=1))
    assert await _held(controller, _asks(ANN, "a3")) == ["a3"]
    await controller.set_quota(ANN, Quota())
    assert await _held(controller, _asks(ANN, "a3", "a4", "a5")) == []


async def test_a_first_limit_counts_what_runs_already() -> None:
    record = Record()
    record.standing[ANN] = Standing(leased=frozenset({"a1", "a2"}), used=Amount(tokens=7))
    controller = await _controller(record)
    await controller.set_quota(ANN, Quota(max_concurrent=3))
    assert await _held(controller, _asks(ANN, "a2", "a3", "a4")) == ["a4"]


async def test_a_restarted_controller_counts_what_the_record_has() -> None:
    record = Record(ann=Quota(max_concurrent=3, requests_per_min=5, max_tokens=100), bob=Quota(tokens_per_min=10))
    record.standing[ANN] = Standing(leased=frozenset({"a1"}), starts=((50, 2), (1, 1)), used=Amount(tokens=99))
    record.standing[BOB] = Standing(tokens=((55, 4), (30, 6)))
    clock = Clock()
    controller = await _controller(record, clock)
    assert await _held(controller, _asks(ANN, "a1", "a2", "a3", "a4")) == ["a4"]  # two more places
    assert await _held(controller, _asks(ANN, "a4"), [_end(ANN, "a2")]) == ["a4"]  # five starts in this minute
    assert await _held(controller, _asks(BOB, "b1")) == ["b1"]
    clock.now_s += 11
    assert await _held(controller, _asks(BOB, "b1")) == []
    assert await _held(controller, _asks(ANN, "a4")) == []  # two starts are older than a minute now
    assert await _held(controller, _asks(ANN, "a5"), [_end(ANN, "a1", 1)]) == ["a5"]  # the hundredth token


async def test_an_end_that_nobody_told_is_found_in_the_record() -> None:
    record, clock = Record(ann=Quota(max_concurrent=1, max_tokens=10)), Clock()
    controller = await _controller(record, clock)
    assert await _held(controller, _asks(ANN, "a1")) == []
    record.lease(ANN, "a1")
    for _ in range(10):
        clock.now_s += GRACE_S - 1
        await controller.reconcile()
        assert await _held(controller, _asks(ANN, "a2")) == ["a2"], "it still holds its lease"
    record.standing[ANN] = Standing(used=Amount(tokens=9))
    clock.now_s += 1
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a2")) == ["a2"], "its end may be on its way"
    clock.now_s += GRACE_S
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a2")) == []
    # The nine tokens of the lost end are counted; should it be told yet, they are not counted again.
    assert await _held(controller, _asks(ANN, "a3"), [_end(ANN, "a1", 9), _end(ANN, "a2")]) == []
    assert await _held(controller, _asks(ANN, "a4"), [_end(ANN, "a3", 1)]) == ["a4"]


async def test_an_attempt_that_the_controller_forgot_is_counted_again() -> None:
    record = Record(ann=Quota(max_concurrent=1))
    controller = await _controller(record)
    record.lease(ANN, "a1")
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a2")) == ["a2"]


async def test_limits_changed_by_others_are_seen() -> None:
    record = Record(ann=Quota(max_concurrent=1))
    controller = await _controller(record)
    record.quotas = {ANN: Quota(), BOB: Quota(max_concurrent=0)}
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a1", "a2") + _asks(BOB, "b1")) == ["b1"]
    record.quotas[BOB] = Quota(max_concurrent=1)
    await controller.reconcile()
    assert await _held(controller, _asks(BOB, "b1")) == []


async def test_nothing_is_read_about_users_without_limits() -> None:
    record = Record()
    controller = await _controller(record)
    before = record.readings
    await controller.reconcile()
    await controller.admit(_asks(ANN, "a1"), [_end(ANN, "a1", 5)])
    assert record.readings == before + 1


async def test_before_the_record_was_read_nothing_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "START_PATIENCE_S", 0.01)
    record = Record(ann=Quota(max_concurrent=1))
    record.away = True
    controller = TokenController(record, MemoryLedger(), MemoryLedger(), clock=Clock())
    with pytest.raises(Transient, match="away"):
        await controller.step()
    assert (await controller.health())["ok"] is False
    with pytest.raises(Transient) as told:
        await controller.admit(_asks(ANN, "a1"), ())
    assert told.value.code == "TOKENS_STARTING"
    assert told.value.retry_after_s
    record.away = False
    assert await controller.step() > 0
    assert await _held(controller, _asks(ANN, "a1", "a2")) == ["a2"]
    assert await controller.health() == {"ok": True, "limited_users": 1, "attempts": 1, "reserved": 0}


async def test_what_could_not_be_stored_does_not_hold() -> None:
    record = Record(ann=Quota(max_concurrent=1))
    controller = await _controller(record)
    record.away = True
    with pytest.raises(Transient):
        await controller.set_quota(ANN, Quota(max_concurrent=5))
    assert await _held(controller, _asks(ANN, "a1", "a2")) == ["a2"]


async def test_many_callers_at_once_never_pass_the_limit() -> None:
    record = Record(ann=Quota(max_concurrent=7))
    controller = await _controller(record)
    calls = [controller.admit(_asks(ANN, *(f"{call}-{n}" for n in range(10))), ()) for call in range(50)]
    readings = [controller.reconcile() for _ in range(5)]
    answers = (await asyncio.gather(*calls, *readings))[:50]
    assert sum(10 - len(held or ()) for held in answers) == 7


async def test_a_user_who_can_not_be_read_holds_up_nobody_else() -> None:
    record = Record(ann=Quota(max_concurrent=1), bob=Quota(max_concurrent=1))
    record.standing[BOB] = Standing(leased=frozenset({"b0"}))
    record.unreadable = {ANN}
    controller = TokenController(record, MemoryLedger(), MemoryLedger(), clock=Clock())
    assert await controller.step() > 0
    assert (await controller.health()) == {"ok": True, "limited_users": 2, "attempts": 1, "reserved": 0}
    held = await controller.admit(_asks(ANN, "a1") + _asks(BOB, "b1") + _asks(CID, "c1"), ())
    assert [(one.sub_task_id, one.limit) for one in held] == [("a1", "standing_unknown"), ("b1", "max_concurrent")]
    assert all(one.ask_again_in_s > 0 for one in held)
    record.unreadable = set()
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a1", "a2")) == ["a2"]


async def test_when_many_can_not_be_read_the_next_turn_begins_with_others() -> None:
    bad = [f"bad{number}" for number in range(FAILED_READINGS_MAX + 1)]
    record = Record(**dict.fromkeys([*bad, ANN], Quota(max_concurrent=1)))
    record.unreadable = set(bad)
    controller = TokenController(record, MemoryLedger(), MemoryLedger(), clock=Clock())
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a1", "a2")) == ["a1", "a2"]
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a1", "a2")) == ["a2"]


async def test_a_limit_holds_before_the_standing_of_its_user_can_be_read() -> None:
    record = Record()
    controller = await _controller(record)
    record.unreadable = {ANN}
    await controller.set_quota(ANN, Quota(max_concurrent=5))
    assert await _held(controller, _asks(ANN, "a1")) == ["a1"]
    await controller.set_quota(ANN, Quota())
    assert await _held(controller, _asks(ANN, "a1")) == []
    await controller.set_quota(ANN, Quota(max_concurrent=5))
    record.quotas.clear()
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a1")) == []


async def test_an_end_while_the_standing_is_read_counts_once() -> None:
    record = Record(ann=Quota(max_concurrent=2, max_tokens=10))
    record.standing[ANN] = Standing(leased=frozenset({"a1", "a2"}), used=Amount(tokens=1))
    controller = TokenController(record, MemoryLedger(), MemoryLedger(), clock=Clock())

    async def end() -> None:
        record.while_reading = None
        record.lease(ANN, "a2")
        assert await _held(controller, _asks(ANN, "a3"), [_end(ANN, "a1", 8), _end(ANN, "a0", 8)]) == ["a3"]

    record.while_reading = end
    await controller.reconcile()
    # Nine tokens are spent and one place is free: a0 had ended before, and is in the total.
    assert await _held(controller, _asks(ANN, "a3", "a4")) == ["a4"]


async def test_a_limit_that_is_set_anew_meanwhile_is_read_anew() -> None:
    record = Record(ann=Quota(max_concurrent=2))
    controller = TokenController(record, MemoryLedger(), MemoryLedger(), clock=Clock())

    async def set_anew() -> None:
        record.while_reading = None
        await controller.set_quota(ANN, Quota())
        record.lease(ANN, "a1")
        record.written.clear()
        # Its own reading waits for the end of this one.
        later.append(asyncio.create_task(controller.set_quota(ANN, Quota(max_concurrent=1))))
        await record.written.wait()

    later: list[asyncio.Task[None]] = []
    record.while_reading = set_anew
    await controller.reconcile()
    await asyncio.gather(*later)
    assert await _held(controller, _asks(ANN, "a2")) == ["a2"]


async def test_tokens_of_lost_ends_are_asked_for_until_they_are_known() -> None:
    record, clock = Record(ann=Quota(max_tokens=10)), Clock()
    controller = await _controller(record, clock)
    assert await _held(controller, _asks(ANN, "a1")) == []
    clock.now_s += GRACE_S + 1
    record.standing[ANN] = Standing(used=Amount(tokens=10))
    record.unreadable = {ANN}
    with pytest.raises(Transient, match="too slow"):
        await controller.reconcile()
    record.unreadable = set()
    await controller.reconcile()
    assert await _held(controller, _asks(ANN, "a2")) == ["a2"]
