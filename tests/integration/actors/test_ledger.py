"""The ledger on a real PostgreSQL: what is reserved, settled and added up, by many at once and after a death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.actors.tokens import TokenController
from rayloom.dag.amount import Amount
from rayloom.dag.errors import UserError
from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.token_port import Quota
from rayloom.db import keys
from rayloom.db.engine import driver
from rayloom.db.ledger import Ledger
from rayloom.db.quotas import QuotaStore
from tests.integration.actors.rows import Rows

CALLS = 500
TOKENS = 100


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
        controller = TokenController(QuotaStore(engine), ledgers[-1])
        await controller.reconcile()
        return controller

    yield begin
    for ledger in ledgers:
        await ledger.close()


def _ask(payer: Payer, *, tokens: int = TOKENS, cost_usd: float = 0.5, lease_s: float = 60.0) -> Reservation:
    return Reservation(
        id=str(uuid7()), payer=payer, model="m", purpose="reason", tokens=tokens, cost_usd=cost_usd, lease_s=lease_s
    )


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
    assert await ledger.reserve([first]) == {first.id: "reserved"}
    assert {each.id for each in await ledger.open_calls()} == {first.id, second.id, planning.id}
    use = ModelUse(tokens_in=10, tokens_out=5, cost_usd=0.25, is_estimated=True)
    unknown = _ask(payer)
    settled = [(first, use), (unknown, use), (planning, use)]
    assert await ledger.settle(settled) == {first.id, unknown.id, planning.id}
    assert await ledger.settle([*settled, (second, ModelUse())]) == {second.id}
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


async def test_what_an_attempt_reserved_that_is_over_is_released_at_once(
    engine: AsyncEngine, ledger: Ledger, rows: Rows
) -> None:
    payer = await _payer(rows)
    over = await rows.subtask(payer.user_id, payer.task_id, status="QUEUED")
    lost, earlier = _ask(replace(payer, sub_task_id=over)), _ask(replace(payer, attempt=0))
    running, planning = _ask(payer), _ask(replace(payer, sub_task_id="", attempt=0))
    await ledger.reserve([lost, earlier, running, planning])
    assert set(await ledger.release_expired(limit=10)) == {lost.id, earlier.id}
    assert {each.id for each in await ledger.open_calls()} == {running.id, planning.id}


async def test_what_a_dead_caller_reserved_is_released_and_its_late_word_is_written(
    engine: AsyncEngine, ledger: Ledger, rows: Rows
) -> None:
    payer = await _payer(rows)
    dead, alive = _ask(payer, lease_s=1e-6), _ask(payer)
    await ledger.reserve([dead, alive])
    assert await ledger.release_expired(limit=10) == [dead.id]
    assert await ledger.release_expired(limit=10) == []
    assert await ledger.reserve([dead]) == {dead.id: "released"}
    assert await ledger.settle([(dead, ModelUse(tokens_in=7))]) == {dead.id}
    assert (await _sums(engine, payer))["user"] == (7, 0.0)


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


async def test_a_controller_that_dies_in_the_middle_is_followed_by_one_that_counts_on(
    engine: AsyncEngine, rows: Rows, new_life: NewLife
) -> None:
    payer = await _payer(rows)
    limit = TOKENS * 120
    first = await new_life()
    await first.set_quota(payer.user_id, Quota(max_tokens=limit))
    asked = [_ask(payer) for _ in range(CALLS)]
    half, rest = asked[: CALLS // 5], asked[CALLS // 5 :]
    await asyncio.gather(*(first.reserve(each) for each in half))
    use = ModelUse(tokens_in=TOKENS)
    await asyncio.gather(*(first.settle(each, use) for each in half[:50]))
    # It dies in the middle of these: nobody knows which of them it has written.
    dying = [asyncio.create_task(first.reserve(each)) for each in rest[:30]]
    await asyncio.sleep(0)
    second = await new_life()
    answers = await asyncio.gather(*(second.reserve(each) for each in asked))
    await asyncio.gather(*dying, return_exceptions=True)
    granted = [each for each, denied in zip(asked, answers, strict=True) if denied is None]
    assert set(half[50:]) <= set(granted), "what was granted stays so"
    await asyncio.gather(*(second.settle(each, use) for each in granted))
    used, _ = (await _sums(engine, payer))["user"]
    (row,) = await _fetch(engine, "SELECT sum(tokens_in) AS used FROM model_calls WHERE status = 'settled'")
    assert used == row["used"]
    assert used <= limit


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
