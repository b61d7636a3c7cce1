"""The ledger on a real PostgreSQL: what is reserved, settled and added up, by many at once and after a death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.actors.tokens import TokenController
from rayloom.dag.amount import Amount
from rayloom.dag.errors import UserError
from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.reservations import LEASE_S
from rayloom.dag.token_port import Quota, Share
from rayloom.db import keys
from rayloom.db.alerts import Alert, AlertStore, Limit, read_alerts
from rayloom.db.engine import driver
from rayloom.db.ledger import Ledger, Recorded, Released
from rayloom.db.quotas import QuotaStore
from tests.integration.actors.rows import Rows

CALLS = 500
TOKENS = 100
NOTHING_YET = ModelUse()


@pytest.fixture
def rows(engine: AsyncEngine) -> Rows:
    return Rows(engine)


@pytest.fixture
async def ledger(engine: AsyncEngine) -> AsyncIterator[Ledger]:
    ledger = Ledger(engine)
    yield ledger
    await ledger.close()


NewLife = Callable[[], Awaitable[TokenController]]


@pytest.fixture
async def new_life(engine: AsyncEngine) -> AsyncIterator[NewLife]:
    """Starts a controller on the database: the first one, or one that follows it."""
    ledgers = []

    async def begin() -> TokenController:
        ledgers.append(Ledger(engine))
        controller = TokenController(QuotaStore(engine), ledgers[-1], AlertStore(engine))
        await controller.reconcile()
        return controller

    yield begin
    for ledger in ledgers:
        await ledger.close()


def _ask(
    payer: Payer,
    *,
    tokens: int = TOKENS,
    cost_usd: float = 0.5,
    lease_s: float = 60.0,
    least: ModelUse = NOTHING_YET,
) -> Reservation:
    return Reservation(
        id=str(uuid7()), payer=payer, model="m", purpose="reason", tokens=tokens, cost_usd=cost_usd, lease_s=lease_s,
        least=least,
    )  # fmt: skip


async def _fetch(engine: AsyncEngine, sql: str, *arguments: Any) -> list[Any]:
    async with driver(engine) as connection:
        return list(await connection.fetch(sql, *arguments))


async def _sums(engine: AsyncEngine, payer: Payer) -> dict[str, tuple[int, float]]:
    """Tokens and cost as they are added up for each level."""
    found = {}
    for name, sql, id_ in (
        ("user", "SELECT tokens_used, cost_usd FROM token_totals WHERE user_id = $1", payer.user_id),
        ("key", "SELECT tokens_used, cost_usd FROM key_totals WHERE key_id = $1", payer.key_id),
        ("task", "SELECT tokens_used, cost_usd FROM tasks WHERE id = $1", payer.task_id),
        ("subtask", "SELECT tokens_used, 0.0::float8 AS cost_usd FROM sub_tasks WHERE id = $1", payer.sub_task_id),
    ):
        (row,) = await _fetch(engine, sql, id_)
        found[name] = (row["tokens_used"], row["cost_usd"])
    return found


async def _budget(engine: AsyncEngine, payer: Payer, max_tokens: int) -> None:
    """As a submission writes it, or a retry."""
    options = "jsonb_build_object('budget', jsonb_build_object('max_tokens', $2::int, 'deadline_s', 60))"
    await _fetch(engine, f"UPDATE tasks SET options = {options} WHERE id = $1", payer.task_id, max_tokens)


async def _payer(rows: Rows) -> Payer:
    user = await rows.user()
    task = await rows.task(user)
    return Payer(user_id=user, key_id=str(uuid7()), task_id=task, sub_task_id=await rows.subtask(user, task), attempt=1)


async def test_a_call_is_written_down_once_and_added_up_once(engine: AsyncEngine, ledger: Ledger, rows: Rows) -> None:
    payer = await _payer(rows)
    first, second, planning = _ask(payer), _ask(payer), _ask(replace(payer, sub_task_id="", attempt=0))
    assert await ledger.reserve([first, second, first, planning]) == {}
    assert await ledger.reserve([first]) == {}
    assert {each.id for each in await ledger.open_calls()} == {first.id, second.id, planning.id}
    use = ModelUse(tokens_in=10, tokens_out=5, cost_usd=0.25, is_estimated=True)
    unknown = _ask(payer)
    settled = [(first, use), (unknown, use), (planning, use)]
    assert await ledger.settle(settled) == dict.fromkeys((first.id, unknown.id, planning.id), Amount.of(15, 0.25))
    assert await ledger.settle([*settled, (second, ModelUse())]) == {second.id: Amount()}
    assert await ledger.reserve([first]) == {first.id: "settled"}
    assert await ledger.open_calls() == []
    assert await _sums(engine, payer) == {
        "user": (45, 0.75), "key": (45, 0.75), "task": (45, 0.75), "subtask": (30, 0.0),
    }  # fmt: skip
    standings = await ledger.tasks([payer.task_id, str(uuid7())])
    assert {id_: each.used for id_, each in standings.items()} == {payer.task_id: Amount.of(45, 0.75)}
    recent = await ledger.recent(window_s=61)
    assert (sum(each.calls for each in recent), sum(each.tokens for each in recent)) == (4, 45)
    assert {(each.key_id, each.model) for each in recent} == {(payer.key_id, "m")}


async def test_what_a_dead_caller_reserved_is_released_and_counts_for_what_it_used_at_least(
    engine: AsyncEngine, ledger: Ledger, rows: Rows
) -> None:
    payer = await _payer(rows)
    question = ModelUse(tokens_in=30, cost_usd=0.1)
    dead, alive = _ask(payer, lease_s=1e-6, least=question), _ask(payer, least=question)
    await ledger.reserve([dead, alive])
    assert await ledger.left(expired=False, limit=10) == {}
    assert await ledger.left(expired=True, limit=10) == {dead.id: True}
    used = Released(user_id=payer.user_id, used=Amount.of(30, 0.1))
    assert await ledger.release([dead.id]) == {dead.id: used}
    assert await ledger.release([dead.id]) == {}
    assert await ledger.reserve([dead]) == {dead.id: "released"}
    assert set((await _sums(engine, payer)).values()) == {(30, 0.1), (30, 0.0)}
    (recent,) = [each for each in await ledger.recent(window_s=61) if each.settled_s is not None]
    assert recent.tokens == 30
    # Its late word is what counts then.
    assert await ledger.settle([(dead, ModelUse(tokens_in=7))]) == {dead.id: Amount(tokens=-23, nano_usd=-100_000_000)}
    assert set((await _sums(engine, payer)).values()) == {(7, 0.0)}


async def test_what_is_written_down_of_calls_is_told(engine: AsyncEngine, ledger: Ledger, rows: Rows) -> None:
    payer = await _payer(rows)
    least = ModelUse(tokens_in=30, cost_usd=0.1)
    under_way, settled, released = _ask(payer), _ask(payer), _ask(payer, least=least)
    await ledger.reserve([under_way, settled, released])
    use = ModelUse(tokens_in=10, tokens_out=5, cost_usd=0.25)
    await ledger.settle([(settled, use)])
    await ledger.release([released.id])
    ids = [each.id for each in (under_way, settled, released)]
    assert await ledger.recorded([*ids, str(uuid7())]) == {
        under_way.id: Recorded(status="reserved", use=NOTHING_YET),
        settled.id: Recorded(status="settled", use=use),
        released.id: Recorded(status="released", use=replace(least, is_estimated=True)),
    }


async def test_a_renewal_lengthens_the_lease_and_says_what_was_used_so_far(
    engine: AsyncEngine, ledger: Ledger, rows: Rows
) -> None:
    payer = await _payer(rows)
    first = _ask(payer, lease_s=1e-6, least=ModelUse(tokens_in=30))
    heard = replace(first, lease_s=60.0, least=ModelUse(tokens_in=30, tokens_out=12))
    await ledger.reserve([first])
    # Both in one statement, in whichever order they were said.
    unknown = _ask(payer)
    assert await ledger.reserve([first, heard, unknown]) == {}
    assert await ledger.left(expired=True, limit=10) == {}
    released = await ledger.release([first.id])
    assert released[first.id].used == Amount(tokens=42)
    assert {each.id for each in await ledger.open_calls()} == {unknown.id}


async def test_calls_of_attempts_that_have_ended_and_of_tasks_that_nobody_plans_are_left(
    engine: AsyncEngine, ledger: Ledger, rows: Rows
) -> None:
    payer, other, planned = await _payer(rows), await _payer(rows), await _payer(rows)
    running, ended = _ask(payer), _ask(other)
    planning = _ask(replace(planned, sub_task_id="", attempt=0))
    elsewhere = _ask(Payer(user_id=payer.user_id))
    await _fetch(engine, "UPDATE tasks SET incarnation = id WHERE id = $1", planned.task_id)
    await ledger.reserve([running, ended, planning, elsewhere])
    assert await ledger.left(expired=False, limit=10) == {}
    ended_so = "status = 'FAILED', incarnation = NULL, error = '{}', not_before = now()"
    await _fetch(engine, f"UPDATE sub_tasks SET {ended_so} WHERE id = $1", other.sub_task_id)
    assert await ledger.left(expired=False, limit=10) == {ended.id: False}
    await _fetch(engine, "UPDATE sub_tasks SET attempt = 2 WHERE id = $1", payer.sub_task_id)
    await _fetch(engine, "UPDATE tasks SET incarnation = NULL WHERE id = $1", planned.task_id)
    left = {running.id, ended.id, planning.id}
    assert set(await ledger.left(expired=False, limit=10)) == left
    assert set(await ledger.left(expired=True, limit=10)) == left


async def test_budgets_and_limits_of_keys_are_read(engine: AsyncEngine, ledger: Ledger, rows: Rows) -> None:
    payer = await _payer(rows)
    await _budget(engine, payer, 9)
    assert (await ledger.tasks([payer.task_id]))[payer.task_id].quota == Quota(max_tokens=9)
    key = await keys.create_key(engine, user="ann", role="user", key=keys.new_key(), tools=None, max_level=None)
    quota = Quota(max_tokens=5, max_cost_usd=0.5, tokens_per_min=6, requests_per_min=7, max_concurrent=8)
    assert await ledger.key_quota(str(key.id)) == Quota()
    assert await ledger.write_key_quota(str(key.id).upper(), quota) == str(key.id)
    assert await ledger.key_quota(str(key.id)) == quota
    await ledger.settle([(_ask(replace(payer, key_id=str(key.id))), ModelUse(tokens_in=3, cost_usd=0.1))])
    (standing,) = (await ledger.limited_keys()).values()
    assert (standing.quota, standing.used) == (quota, Amount.of(3, 0.1))
    await ledger.write_key_quota(str(key.id), Quota())
    assert await ledger.limited_keys() == {}
    for id_, limits, code in (
        ("x", quota, "KEY_UNKNOWN"),
        (str(uuid7()), quota, "KEY_UNKNOWN"),
        (str(key.id), Quota(max_concurrent=2**40), "QUOTA_INVALID"),
    ):
        with pytest.raises(UserError) as refused:
            await ledger.write_key_quota(id_, limits)
        assert refused.value.code == code


async def test_of_many_at_once_exactly_what_fits_is_granted(engine: AsyncEngine, rows: Rows, new_life: NewLife) -> None:
    payer = await _payer(rows)
    controller = await new_life()
    await controller.set_quota(payer.user_id, Quota(max_tokens=TOKENS * 120, max_cost_usd=1e6))
    asked = [_ask(payer) for _ in range(CALLS)]
    answers = await asyncio.gather(*(controller.reserve(each) for each in asked))
    granted = [each for each, denied in zip(asked, answers, strict=True) if denied is None]
    assert len(granted) == 120
    assert {each.limit for each in answers if each is not None} == {"max_tokens"}
    use = ModelUse(tokens_in=TOKENS - 1, tokens_out=1, cost_usd=0.5)
    await asyncio.gather(*(controller.settle(each, use) for each in granted))
    assert (await _sums(engine, payer))["user"] == (TOKENS * 120, 60.0)
    last = await controller.reserve(_ask(payer, tokens=1))
    assert last is not None
    assert last.retry_in_s is None
    statuses = await _fetch(engine, "SELECT status, count(*) AS n FROM model_calls GROUP BY 1")
    assert [(row["status"], row["n"]) for row in statuses] == [("settled", 120)]


async def test_that_reservations_are_granted_ahead_is_known_to_the_next_controller(
    engine: AsyncEngine, ledger: Ledger, rows: Rows, new_life: NewLife
) -> None:
    payer = await _payer(rows)
    assert not await ledger.is_granted_ahead()
    first = await new_life()
    await first.set_quota(payer.user_id, Quota(max_tokens=TOKENS * 20))
    assert await first.reserve(_ask(payer)) is None
    await first.reconcile()
    assert await ledger.is_granted_ahead()
    # What it has granted since and not written down: nothing, here. But who follows it can't know that.
    second = await new_life()
    assert await second.reserve(_ask(payer, tokens=TOKENS * 18)) is None
    denied = await second.reserve(_ask(payer))
    assert denied is not None
    assert 0 < (denied.retry_in_s or 0) <= LEASE_S
    for is_ahead in (True, False, False):
        await ledger.grant_ahead(is_ahead)
    assert not await ledger.is_granted_ahead()
    assert await (await new_life()).reserve(_ask(payer)) is None


async def test_a_budget_that_was_raised_by_a_retry_is_seen_at_once(
    engine: AsyncEngine, rows: Rows, new_life: NewLife
) -> None:
    payer = await _payer(rows)
    await _budget(engine, payer, 150)
    controller = await new_life()
    first = _ask(payer)
    assert await controller.reserve(first) is None
    await controller.settle(first, ModelUse(tokens_in=100))
    denied = await controller.reserve(_ask(payer))
    assert denied is not None
    assert (denied.level, denied.limit, denied.retry_in_s) == ("task", "max_tokens", None)
    await _budget(engine, payer, 200)
    assert await controller.reserve(_ask(payer)) is None


async def test_the_windows_count_what_was_settled_before_a_restart(
    engine: AsyncEngine, rows: Rows, new_life: NewLife
) -> None:
    payer = await _payer(rows)
    first = await new_life()
    await first.set_quota(payer.user_id, Quota(tokens_per_min=250))
    reservation = _ask(payer)
    await first.reserve(reservation)
    await first.settle(reservation, ModelUse(tokens_in=100, tokens_out=80))
    await _fetch(engine, "DELETE FROM granting_ahead")
    second = await new_life()
    denied = await second.reserve(_ask(payer))
    assert denied is not None
    assert denied.limit == "tokens_per_min"
    assert 0 < (denied.retry_in_s or 0) <= 62
    assert await second.reserve(_ask(payer, tokens=70)) is None


async def test_what_is_nearly_used_up_stands_in_the_log_of_the_task(
    engine: AsyncEngine, rows: Rows, new_life: NewLife
) -> None:
    payer = await _payer(rows)
    await _budget(engine, payer, 100)
    controller = await new_life()
    reservation = _ask(payer, tokens=90)
    await controller.reserve(reservation)
    await controller.settle(reservation, ModelUse(tokens_in=85))
    for _ in range(2):
        await controller.reconcile()
    (line,) = await _fetch(engine, "SELECT level, message FROM log_lines WHERE task_id = $1", payer.task_id)
    assert (line["level"], line["message"]) == ("WARNING", "85% of the budget's max_tokens is used")
    # Another life tells nobody again.
    await new_life()
    (alert,) = await _alerts(engine, payer)
    assert (alert.level, str(alert.id), alert.limit, alert.share) == ("task", payer.task_id, "max_tokens", 0.85)
    assert alert.over_at is None
    assert await AlertStore(engine).alerts_of_ended([payer.task_id]) == frozenset()
    await AlertStore(engine).alerts_over([("task", payer.task_id, "max_tokens")])
    (alert,) = await _alerts(engine, payer)
    assert alert.over_at is not None
    assert await AlertStore(engine).open_alerts() == frozenset()


async def test_alerts_of_a_task_are_over_when_it_has_ended(engine: AsyncEngine, rows: Rows) -> None:
    payer, other = await _payer(rows), await _payer(rows)
    store = AlertStore(engine)
    near = [Share(level="task", id=each.task_id, limit="max_tokens", share=0.9) for each in (payer, other)]
    await store.alert(near)
    for each in (payer, other):
        ended = "status = 'CANCELLED', finished_at = now()"
        await _fetch(engine, f"UPDATE tasks SET {ended} WHERE id = $1", each.task_id)
    # An answer may be lost: it is the same each time.
    for _ in range(2):
        assert await store.alerts_of_ended([payer.task_id]) == {payer.task_id}
        assert await store.open_alerts() == {("task", other.task_id, "max_tokens")}
    # Nor is there ever anything more to hear of what was deleted.
    gone = str(uuid7())
    assert await store.alerts_of_ended([gone, other.task_id]) == {gone, other.task_id}
    assert await store.open_alerts() == frozenset()


async def test_alerts_are_those_of_a_user_and_of_its_keys_and_tasks(engine: AsyncEngine, rows: Rows) -> None:
    key = await keys.create_key(engine, user="ann", role="user", key=keys.new_key())
    payer = Payer(user_id=str(key.user_id), key_id=str(key.id))
    store = AlertStore(engine)
    near = [
        Share(level="user", id=payer.user_id, limit="tokens_per_min", share=0.8),
        Share(level="key", id=payer.key_id, limit="max_tokens", share=1.0),
        Share(level="key", id=str(uuid7()), limit="max_tokens", share=1.0),
    ]
    known: set[Limit] = {("user", payer.user_id, "tokens_per_min"), ("key", payer.key_id, "max_tokens")}
    assert await store.alert(near) == known
    assert await store.alert(near) == frozenset()
    assert await store.open_alerts() == known
    assert {(each.level, str(each.id), each.limit) for each in await _alerts(engine, payer)} == known
    assert await _alerts(engine, await _payer(rows)) == []


async def _alerts(engine: AsyncEngine, payer: Payer) -> list[Alert]:
    async with engine.connect() as connection:
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        return await read_alerts(connection, user_id=UUID(payer.user_id), since=first, until=last)
