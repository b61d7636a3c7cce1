"""What registry and token controller read and write, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.actors.breakers import Breakers
from rayloom.actors.described import describe
from rayloom.actors.registry import ToolRegistry
from rayloom.actors.tokens import TokenController
from rayloom.dag.breaker import Breaker, BreakerPolicy
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.ports import Ask, Finished, Quota, RegisteredTool
from rayloom.db.alerts import AlertStore
from rayloom.db.breaker_rows import BreakerRows
from rayloom.db.catalogue import Catalogue
from rayloom.db.engine import make_engine
from rayloom.db.ledger import Ledger
from rayloom.db.quotas import QuotaStore, Standing
from rayloom.db.settings import DatabaseSettings
from rayloom.tools.builtin.catalogue import BUILTINS
from tests.integration.actors.rows import Rows

EVERY_LIMIT = Quota(max_tokens=2**40, max_cost_usd=1.5, tokens_per_min=5, requests_per_min=6, max_concurrent=7)
WEATHER = replace(
    describe("acme.weather", "weather", BUILTINS["core.echo"]),
    output_schema={"type": ["object", "null"], "title": "晴 ☀"},
    config={"unit": "K", "nested": {"a": [1, 2.5, None]}},
)


@pytest.fixture
def catalogue(engine: AsyncEngine) -> Catalogue:
    return Catalogue(engine)


@pytest.fixture
def quotas(engine: AsyncEngine) -> QuotaStore:
    return QuotaStore(engine)


@pytest.fixture
def rows(engine: AsyncEngine) -> Rows:
    return Rows(engine)


async def _tools(catalogue: Catalogue) -> dict[str, RegisteredTool]:
    return {row.tool.name: row.tool for row in (await catalogue.read()).rows}


async def test_a_tool_is_read_as_it_was_written(catalogue: Catalogue) -> None:
    await catalogue.add(WEATHER)
    (row,) = (await catalogue.read()).rows
    assert row.tool == WEATHER
    assert not row.built_in


async def test_every_built_in_tool_is_read_as_it_was_written_and_stays_switched_off(catalogue: Catalogue) -> None:
    tools = [describe(name, f"builtin:{name}", tool) for name, tool in BUILTINS.items()]
    await catalogue.write_built_in(tools)
    assert await _tools(catalogue) == {tool.name: tool for tool in tools}
    await catalogue.set_active("core.echo", False)
    await catalogue.write_built_in([replace(tool, version="next") for tool in tools])
    found = await _tools(catalogue)
    assert {tool.version for tool in found.values()} == {"next"}
    assert [name for name, tool in found.items() if not tool.is_active] == ["core.echo"]


async def test_what_an_admin_set_in_a_config_stays(catalogue: Catalogue) -> None:
    mine = describe("core.echo", "builtin:core.echo", BUILTINS["core.echo"])
    await catalogue.write_built_in([mine])
    await catalogue.set_config("core.echo", {"alternative": "core.noop", "breaker": True})
    await catalogue.write_built_in([mine])
    assert (await _tools(catalogue))["core.echo"].config == {
        "alternative": "core.noop", "breaker": True, "breaker_default": False,
    }  # fmt: skip
    await catalogue.set_config("core.echo", {"alternative": None})
    assert (await _tools(catalogue))["core.echo"].alternative is None
    with pytest.raises(UserError):
        await catalogue.set_config("nothing", {})


async def test_breakers_that_are_not_closed_are_kept(engine: AsyncEngine) -> None:
    rows = BreakerRows(engine)
    open_ = Breaker(state="open", retry_at=1_800_000_000.5, openings=3)
    by_hand = Breaker(state="open", retry_at=None, openings=0)
    await rows.keep("a", Breaker(state="open", retry_at=1.0, openings=1))
    await rows.keep("a", open_)
    await rows.keep("b", by_hand)
    await rows.keep("c", by_hand)
    await rows.keep("c", Breaker())
    assert await rows.read() == {"a": open_, "b": by_hand}


async def test_a_built_in_tool_takes_its_name_from_another(catalogue: Catalogue) -> None:
    await catalogue.add(WEATHER)
    await catalogue.set_active(WEATHER.name, False)
    mine = describe(WEATHER.name, "builtin:acme.weather", BUILTINS["core.echo"])
    await catalogue.write_built_in([mine])
    (row,) = (await catalogue.read()).rows
    assert (row.tool, row.built_in) == (mine, True)


async def test_a_renewed_tool_keeps_what_its_admin_decided(catalogue: Catalogue) -> None:
    await catalogue.add(WEATHER)
    await catalogue.set_active(WEATHER.name, False)
    newer = replace(WEATHER, version="2", schema={"type": "object", "required": ["city"]}, config={}, lane="own")
    await catalogue.renew([newer, replace(newer, name="acme.other")])
    assert await _tools(catalogue) == {
        WEATHER.name: replace(newer, config=WEATHER.config, is_active=False),
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, "TOOL_EXISTS"),
        ({"name": "acme.nul", "description": "a\0b"}, "TOOL_INVALID"),
        ({"name": "acme.level", "permission_level": "god"}, "TOOL_INVALID"),
        ({"name": "acme.schema", "schema": {"default": object()}}, "TOOL_INVALID"),
    ],
)
async def test_what_can_not_be_added(catalogue: Catalogue, change: dict[str, Any], code: str) -> None:
    await catalogue.add(WEATHER)
    with pytest.raises(UserError) as refused:
        await catalogue.add(replace(WEATHER, **change))
    assert refused.value.code == code
    assert await _tools(catalogue) == {WEATHER.name: WEATHER}


async def test_unknown_and_built_in_tools(catalogue: Catalogue) -> None:
    await catalogue.write_built_in([describe("core.echo", "builtin:core.echo", BUILTINS["core.echo"])])
    await catalogue.add(WEATHER)
    for call in (catalogue.set_active("core.ecko", True), catalogue.remove("core.ecko")):
        with pytest.raises(UserError, match=r"did you mean core\.echo\?") as refused:
            await call
        assert refused.value.code == "TOOL_UNKNOWN"
    with pytest.raises(UserError) as refused:
        await catalogue.remove("core.echo")
    assert refused.value.code == "TOOL_BUILT_IN"
    await catalogue.remove(WEATHER.name)
    assert set(await _tools(catalogue)) == {"core.echo"}


async def test_registries_that_start_and_change_at_once_end_with_the_same_tools(database: DatabaseSettings) -> None:
    engines = [make_engine(database.primary_dsn(), pool_size=2, max_overflow=0, name="test") for _ in range(4)]
    registries = [
        ToolRegistry(Catalogue(engine), BUILTINS, Breakers(BreakerRows(engine), BreakerPolicy())) for engine in engines
    ]
    await asyncio.gather(*(registry.start() for registry in registries))
    names = sorted(BUILTINS)
    changes = zip(registries * 3, names, strict=False)
    await asyncio.gather(*(registry.set_active(name, False) for registry, name in changes))
    before = [(await registry.snapshot()).version for registry in registries]
    await asyncio.gather(*(registry.refresh() for registry in registries))
    snapshots = [await registry.snapshot() for registry in registries]
    assert all(snapshot.tools == snapshots[0].tools for snapshot in snapshots)
    assert sum(not tool.is_active for tool in snapshots[0].tools.values()) == min(12, len(names))
    assert all(snapshot.version >= version for snapshot, version in zip(snapshots, before, strict=True))
    for engine in engines:
        await engine.dispose()


async def test_a_quota_is_read_as_it_was_written(quotas: QuotaStore, rows: Rows) -> None:
    ann, bob, cid = await rows.user(), await rows.user(), await rows.user()
    assert await quotas.write(ann.upper(), EVERY_LIMIT) == ann
    await quotas.write(bob, EVERY_LIMIT)
    await quotas.write(bob, Quota(max_cost_usd=2))
    assert await quotas.quota(ann) == EVERY_LIMIT
    assert await quotas.quota(bob) == Quota(max_cost_usd=2)
    for nobody in (cid, str(uuid7()), "somebody"):
        assert await quotas.quota(nobody) == Quota()
    assert await quotas.limited() == {ann: EVERY_LIMIT, bob: Quota(max_cost_usd=2)}
    await quotas.write(bob, Quota())
    assert await quotas.limited() == {ann: EVERY_LIMIT}


@pytest.mark.parametrize(
    "quota",
    [
        Quota(max_tokens=-1),
        Quota(max_tokens=2**63),
        Quota(max_concurrent=2**31),
        Quota(requests_per_min=2**31),
        Quota(max_cost_usd=float("nan")),
        Quota(max_cost_usd=float("inf")),
    ],
)
async def test_a_quota_that_makes_no_sense_is_refused(quotas: QuotaStore, rows: Rows, quota: Quota) -> None:
    with pytest.raises(UserError) as refused:
        await quotas.write(await rows.user(), quota)
    assert refused.value.code == "QUOTA_INVALID"
    assert await quotas.limited() == {}


async def test_a_quota_needs_its_user(quotas: QuotaStore) -> None:
    for nobody in (str(uuid7()), "somebody"):
        with pytest.raises(UserError) as refused:
            await quotas.write(nobody, Quota(max_tokens=1))
        assert refused.value.code == "USER_UNKNOWN"


async def test_what_counts_against_a_user_is_found_in_the_record(quotas: QuotaStore, rows: Rows) -> None:
    ann, bob, cid = await rows.user(), await rows.user(), await rows.user()
    task = await rows.task(ann, tokens=30)
    await rows.task(ann, tokens=12)
    theirs = await rows.task(bob, tokens=1000)
    running = await rows.subtask(ann, task, started_s_ago=200)
    old = await rows.subtask(ann, task, started_s_ago=30_000)
    waiting = await rows.subtask(ann, task, status="QUEUED")
    await rows.release(await rows.subtask(ann, task, status="QUEUED"))
    other = await rows.subtask(bob, theirs)
    await rows.attempt(task, started_s_ago=200, ended_s_ago=100, tokens=5)
    await rows.attempt(task, started_s_ago=20_000, ended_s_ago=150, tokens=6)
    await rows.attempt(task, started_s_ago=900_000, ended_s_ago=250, tokens=9)
    await rows.attempt(task, started_s_ago=2_000, ended_s_ago=1_000, tokens=7)
    await rows.attempt(theirs, started_s_ago=200, ended_s_ago=100, tokens=8)

    assert await quotas.leased([ann, bob, cid]) == {ann: {running, old, waiting}, bob: {other}}
    standings = await quotas.standings([ann, cid], window_s=610)
    assert set(standings) == {ann, cid}
    assert standings[cid] == Standing()
    found = standings[ann]
    assert found.leased == {running, old, waiting}
    assert found.used.tokens == 42
    # Of two that were written one after the other a second may begin between; and all are read later.
    assert _by_50_s(found.starts) == {0: 1, 4: 2}
    assert _by_50_s(found.tokens) == {2: 5, 3: 6, 5: 9}


def _by_50_s(ages: Iterable[tuple[int, int]]) -> Counter[int]:
    """The amounts of each 50 seconds."""
    found = Counter[int]()
    for age_s, amount in ages:
        found[age_s // 50] += amount
    return found


async def test_the_controller_admits_by_the_record(engine: AsyncEngine, quotas: QuotaStore, rows: Rows) -> None:
    ann = await rows.user()
    task = await rows.task(ann, tokens=90)
    running = await rows.subtask(ann, task)
    controller = TokenController(quotas, Ledger(engine), AlertStore(engine))
    await controller.reconcile()
    await controller.set_quota(ann, Quota(max_concurrent=2, max_tokens=100))
    first, second = str(uuid7()), str(uuid7())
    asks = [Ask(sub_task_id=id_, user_id=ann) for id_ in (running, first, second)]
    assert [held.sub_task_id for held in await controller.admit(asks, ())] == [second]
    restarted = TokenController(quotas, Ledger(engine), AlertStore(engine))
    await restarted.reconcile()
    ended = [Finished(sub_task_id=running, user_id=ann, tokens=10)]
    assert [held.limit for held in await restarted.admit(asks[2:], ended)] == ["max_tokens"]


async def test_a_database_that_is_away_is_transient(database: DatabaseSettings) -> None:
    nowhere = DatabaseSettings(url=SecretStr("postgresql+asyncpg://rayloom:x@127.0.0.1:1/nothing"))
    engine = make_engine(nowhere.primary_dsn(), pool_size=1, max_overflow=0, name="test")
    for call in (
        Catalogue(engine).read(),
        QuotaStore(engine).limited(),
        TokenController(QuotaStore(engine), Ledger(engine), AlertStore(engine)).step(),
    ):
        with pytest.raises(Transient):
            await call
    await engine.dispose()


async def test_the_leases_are_found_without_reading_the_whole_table(engine: AsyncEngine, rows: Rows) -> None:
    from rayloom.db import quotas as statements
    from rayloom.db.engine import driver

    async with driver(engine) as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = await connection.fetch(f"EXPLAIN {statements._LEASED}", [uuid7()])
    assert "ix_sub_tasks_leased" in "\n".join(row[0] for row in plan)
