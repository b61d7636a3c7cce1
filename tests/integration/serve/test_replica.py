"""Reads from a real streaming replica: what goes there, what a reader may count on, and what failures of it do."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from rayloom.db import replica_watch
from rayloom.db.reader import ReadSource, reading
from rayloom.db.settings import RedisSettings
from rayloom.db.standby import CHECK_TIMEOUT_S, StandbyRead
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.world import DIAMOND, Person, World, serving
from tests.integration.standby import READER, READER_PASSWORD, Pair, Standby, pair, run
from tests.integration.waiting import GENEROUS_S

SLOW_S = 8.0
"""What a request takes that waits for a silent server: more than all limits here, less than those of the primary."""


@pytest.fixture(scope="module")
def servers_of_pair(servers: tuple[str, str]) -> Iterator[Pair]:
    with pair(servers[1]) as made:
        yield made


@pytest.fixture(scope="module")
def standby(servers_of_pair: Pair) -> Standby:
    return servers_of_pair.standby()


def as_reader(standby: Standby) -> URL:
    return standby.url.set(username=READER, password=READER_PASSWORD)


@asynccontextmanager
async def looking(
    servers: Pair, replica: URL, redis: RedisSettings, settings: ServeSettings, *, max_lag_s: float = 60.0
) -> AsyncIterator[World]:
    """An API that reads at ``replica``, too."""
    async with serving(servers.settings(replica, max_lag_s=max_lag_s), redis, settings) as world:
        yield world


@pytest.fixture
async def world(
    servers_of_pair: Pair, standby: Standby, redis: RedisSettings, settings: ServeSettings
) -> AsyncIterator[World]:
    """An API that reads from the standby already."""
    async with looking(servers_of_pair, as_reader(standby), redis, settings) as world:
        await used(world)
        yield world


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it, also on a machine that is so busy that the replica is lost and found meanwhile."""
    async with asyncio.timeout(GENEROUS_S):
        for _ in itertools.count():
            if await look():
                return
            await asyncio.sleep(0.05)


async def replica_of(world: World) -> tuple[str, dict[str, Any]]:
    document = (await world.nobody().get("/readyz")).json()
    return document["status"], document["checks"]["replica"]


async def used(world: World) -> None:
    """Wait until the replica is read from."""

    async def look() -> bool:
        return bool((await replica_of(world))[1]["status"] == "ok")

    await until(look)


async def unused(world: World, why: str) -> None:
    """Wait until the replica is not read from, for this reason; all is well but for that."""

    async def look() -> bool:
        status, check = await replica_of(world)
        return status == "degraded" and why in check.get("error", "")

    await until(look)


async def asked_there(
    world: World, read: Callable[[ReadSource], Awaitable[str]], begun: asyncio.Event
) -> asyncio.Task[str]:
    """A read that is under way on the replica; asked again where a busy machine has lost that for a moment."""
    while True:
        await used(world)
        asked = asyncio.create_task(world.deps.backends.reads.current(read))
        beginning = asyncio.create_task(begun.wait())
        await asyncio.wait({asked, beginning}, return_when=asyncio.FIRST_COMPLETED)
        if begun.is_set():
            return asked
        beginning.cancel()
        await asked


async def reads(world: World) -> dict[tuple[str, str], int]:
    """How many reads were answered by what, and why."""
    told = (await world.nobody().get("/metrics")).text
    found = re.findall(r'rayloom_reads_total\{reason="(\w*)",source="(\w+)"\} ([\d.]+)', told)
    return {(source, reason): int(float(count)) for reason, source, count in found}


async def see_all(person: Person, task_id: str) -> None:
    """Look at a task that has ended in every way that may go to the replica: all of it is there."""
    assert [(item["task_id"], item["status"]) for item in (await person.get("/tasks"))["items"]] == [
        (task_id, "COMPLETED")
    ]
    spans = (await person.get(f"/tasks/{task_id}/trace"))["spans"]
    assert [span["finished_at"] for span in spans if span["kind"] == "task"] != [None]
    assert sum(span["kind"] == "attempt" for span in spans) == 4
    lines = (await person.get(f"/tasks/{task_id}/logs", limit=1000))["items"]
    assert lines[-1]["message"] == "task is COMPLETED"
    assert [item["tokens_in"] for item in (await person.get("/usage"))["items"]] == [9, 3]
    assert (await person.get("/tools"))["items"]


async def test_lists_logs_traces_and_reports_come_from_the_replica(world: World, standby: Standby) -> None:
    me, admin = await world.user(), await world.user("admin")
    task_id = await me.submit({"plan": DIAMOND})
    await world.run(task_id, tokens_used=3)

    async def all_there() -> bool:
        # On a machine that is busy the replica may be more than a moment late.
        before = (await reads(world)).get(("replica", ""), 0)
        await see_all(me, task_id)
        assert len((await admin.get("/audit", task_id=task_id))["items"]) == 4
        return (await reads(world)).get(("replica", ""), 0) >= before + 5

    await until(all_there)
    # The replica's own word for it: the last statement of each connection of the API.
    found = "SELECT string_agg(query, ' ') FROM pg_stat_activity WHERE application_name = 'rayloom-api'"
    asked = await asyncio.to_thread(run, standby.url, found)
    assert any(table in asked for table in ("task_events", "execution_logs", "FROM tasks"))
    metrics = (await me.http.get("/metrics")).text
    assert "rayloom_replica_used 1.0" in metrics
    assert "rayloom_replica_lag_seconds " in metrics
    assert "rayloom_replica_lag_bytes " in metrics


async def test_details_and_events_never_wait_for_the_replica(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    before = await reads(world)
    for path in ("", "/subtasks", "/subtasks/only"):
        await me.get(f"/tasks/{task_id}{path}")
    assert (await me.http.post(f"/api/v1/tasks/{task_id}/cancel")).status_code == 202
    assert "CANCELLED" in (await me.http.get(f"/api/v1/tasks/{task_id}/events")).text
    after = await reads(world)
    assert sum(after.values()) - sum(before.values()) <= 1, "none but that of /metrics itself"


async def test_who_wrote_or_saw_it_finds_it_though_nothing_is_replayed(
    world: World, servers_of_pair: Pair, standby: Standby, redis: RedisSettings, settings: ServeSettings
) -> None:
    me, admin = await world.user(), await world.user("admin")
    async with looking(servers_of_pair, as_reader(standby), redis, settings) as other:
        await used(other)
        await asyncio.to_thread(standby.pause)
        try:
            task_id = await me.submit({"plan": DIAMOND})
            paused = await reads(world)
            assert [item["task_id"] for item in (await me.get("/tasks"))["items"]] == [task_id]
            # Through another process, which knows nothing of the write; and somebody else than the one who wrote.
            headers = {"Authorization": f"Bearer {admin.key}"}
            params = {"user_id": str(me.id)}
            elsewhere = await other.nobody().get("/api/v1/tasks", params=params, headers=headers)
            assert [item["task_id"] for item in elsewhere.json()["items"]] == [task_id]
            # What others wrote, and the event stream told.
            await world.run(task_id, tokens_used=3)
            events = (await me.http.get(f"/api/v1/tasks/{task_id}/events")).text
            assert "COMPLETED" in events.splitlines()[-2]
            await see_all(me, task_id)
            followed = (await me.http.get(f"/api/v1/tasks/{task_id}/logs", params={"follow": "true"})).text
            assert "task is COMPLETED" in followed
            told = await reads(world)
            assert told.get(("replica", ""), 0) == paused.get(("replica", ""), 0)
            assert sum(told.values()) - sum(paused.values()) >= 5
        finally:
            await asyncio.to_thread(standby.resume)
        before = (await reads(world)).get(("replica", ""), 0)

        async def read_there() -> bool:
            await me.get("/tasks")
            return (await reads(world)).get(("replica", ""), 0) > before + 1

        await until(read_there)
        await see_all(me, task_id)


async def test_one_that_is_too_late_is_told_and_not_asked(
    servers_of_pair: Pair, standby: Standby, redis: RedisSettings, settings: ServeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger=replica_watch.__name__)
    async with looking(servers_of_pair, as_reader(standby), redis, settings, max_lag_s=1.0) as world:
        await used(world)
        me = await world.user()
        await asyncio.to_thread(standby.pause)
        try:
            task_id = await me.submit()
            await unused(world, "behind")
            before = await reads(world)
            assert [item["task_id"] for item in (await me.get("/tasks"))["items"]] == [task_id]
            after = await reads(world)
            assert after["primary", "unused"] > before.get(("primary", "unused"), 0)
            assert after.get(("replica", ""), 0) == before.get(("replica", ""), 0)
            assert "rayloom_replica_used 0.0" in (await me.http.get("/metrics")).text
        finally:
            await asyncio.to_thread(standby.resume)
        await used(world)
    came_and_went(caplog)


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message.partition(":")[0] for each in caplog.records if each.name == replica_watch.__name__]


def came_and_went(caplog: pytest.LogCaptureFixture) -> None:
    """It was lost and is back, with one line for each, however many requests there were."""
    told = _told(caplog)
    assert told[-2:] == ["replica.not_used", "replica.used"]
    assert all(one != next_ for one, next_ in itertools.pairwise(told))


async def _asked_for_a_while(me: Person, count: int) -> list[float]:
    """How long each of so many requests took; none of them fails."""
    took = []
    for _ in range(count):
        began = monotonic()
        await me.get("/tasks")
        took.append(monotonic() - began)
    return took


async def test_a_replica_that_is_killed_is_missed_by_nobody_and_comes_back(
    world: World, standby: Standby, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=replica_watch.__name__)
    me = await world.user()
    task_id = await me.submit()
    await me.get("/tasks")
    await asyncio.to_thread(standby.kill)
    for _ in range(10):
        assert [item["task_id"] for item in (await me.get("/tasks"))["items"]] == [task_id]
    await unused(world, "did not answer")
    assert _told(caplog)[-1:] == ["replica.not_used"]
    standby.launch()
    await asyncio.to_thread(standby.wait)
    await used(world)
    came_and_went(caplog)
    before = await reads(world)

    async def read_there() -> bool:
        assert [item["task_id"] for item in (await me.get("/tasks"))["items"]] == [task_id]
        return (await reads(world))["replica", ""] > before.get(("replica", ""), 0) + 1

    await until(read_there)
    failed = ("primary", "failed")
    assert (await reads(world)).get(failed, 0) == before.get(failed, 0), "no dead connection was left"


async def test_a_replica_that_is_stopped_costs_one_wait_at_most(
    world: World, standby: Standby, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=replica_watch.__name__)
    me = await world.user()
    await me.submit()
    await me.get("/tasks")
    standby.signal(signal.SIGSTOP)
    try:
        together = await asyncio.gather(*(_asked_for_a_while(me, 1) for _ in range(8)))
        took = sorted(await _asked_for_a_while(me, 20))
        assert max(seconds for each in together for seconds in each) < SLOW_S
        assert took[-1] < SLOW_S
        assert sum(took) < len(took) * CHECK_TIMEOUT_S / 2, "only those that were under way have waited"
        await unused(world, "")
    finally:
        standby.signal(signal.SIGCONT)
    await used(world)
    came_and_went(caplog)


async def test_a_read_that_stands_in_the_way_of_the_replay_goes_to_the_primary(
    world: World, servers_of_pair: Pair, standby: Standby, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(standby.set, max_standby_streaming_delay="200ms")
    begun = asyncio.Event()

    async def slow(source: ReadSource) -> str:
        async with reading(source) as connection:
            await connection.execute(text("SELECT count(*) FROM tasks"))
            if not isinstance(source, StandbyRead):
                return "from the primary"
            begun.set()
            await connection.execute(text("SELECT pg_sleep(60)"))
            return "from the replica"

    asked = await asked_there(world, slow, begun)
    lock = ("BEGIN", "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE", "COMMIT", "SELECT 1")
    await asyncio.to_thread(run, servers_of_pair.primary, *lock)
    assert await asked == "from the primary"
    await asyncio.to_thread(standby.set, max_standby_streaming_delay="30s")
    assert (await reads(world))["primary", "failed"] >= 1
    assert not [each for each in caplog.messages if "did not answer" in each], "the next one may go there"


async def test_a_read_under_way_on_a_server_that_falls_silent_is_asked_of_the_primary(
    world: World, standby: Standby
) -> None:
    begun = asyncio.Event()

    async def slow(source: ReadSource) -> str:
        async with reading(source) as connection:
            if not isinstance(source, StandbyRead):
                return "from the primary"
            begun.set()
            await connection.execute(text("SELECT pg_sleep(40)"))
            return "from the replica"

    asked = await asked_there(world, slow, begun)
    standby.signal(signal.SIGSTOP)
    try:
        # Long before it would have come to its end there.
        async with asyncio.timeout(20):
            assert await asked == "from the primary"
    finally:
        standby.signal(signal.SIGCONT)
    await used(world)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("the primary", "is no standby"),
        ("another database", "UndefinedTable"),
        ("a role without grants", "InsufficientPrivilege"),
        ("nowhere", "did not answer"),
    ],
)
async def test_what_is_no_good_replica_is_not_used(
    servers_of_pair: Pair, standby: Standby, redis: RedisSettings, settings: ServeSettings, where: str, why: str
) -> None:
    url = {
        "the primary": servers_of_pair.primary,
        "another database": standby.url.set(database="postgres"),
        "a role without grants": standby.url.set(username="nobody", password="x"),
        "nowhere": standby.url.set(port=1),
    }[where]
    if where == "a role without grants":
        make = (
            "DROP ROLE IF EXISTS nobody",
            "CREATE ROLE nobody LOGIN PASSWORD 'x'",
            "SELECT pg_current_wal_flush_lsn()",
        )
        await asyncio.to_thread(run, servers_of_pair.primary, *make)
    async with looking(servers_of_pair, url, redis, settings) as world:
        me = await world.user()
        task_id = await me.submit()
        await unused(world, why)
        assert [item["task_id"] for item in (await me.get("/tasks"))["items"]] == [task_id]
        assert ("replica", "") not in await reads(world)


@pytest.fixture
def another(servers_of_pair: Pair) -> Iterator[Standby]:
    standby = servers_of_pair.standby()
    yield standby
    standby.kill()


async def test_a_replica_that_was_promoted_is_read_from_no_more(
    servers_of_pair: Pair, another: Standby, redis: RedisSettings, settings: ServeSettings
) -> None:
    async with looking(servers_of_pair, as_reader(another), redis, settings) as world:
        await used(world)
        me = await world.user()
        await asyncio.to_thread(run, another.url, "SELECT pg_promote()")
        before = (await reads(world)).get(("replica", ""), 0)
        task_id = await me.submit()
        assert [item["task_id"] for item in (await me.get("/tasks"))["items"]] == [task_id]
        await unused(world, "is no standby")
        assert (await reads(world)).get(("replica", ""), 0) == before
