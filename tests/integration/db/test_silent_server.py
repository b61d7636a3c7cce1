"""A PostgreSQL that falls silent, though every connection stands: each wait ends, and what follows finds it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import Transient
from rayloom.db import engine as module
from rayloom.db.engine import Line, driver, make_engine
from rayloom.db.reader import reading
from rayloom.db.settings import DatabaseSettings
from tests.integration.silence import Way

TIMEOUT_S = 2.0
"""Of each wait. A server that is not silent keeps it, however busy the machine is."""
PATIENCE_S = 60.0


@pytest.fixture
async def way(database: DatabaseSettings) -> AsyncIterator[Way]:
    url = make_url(database.primary_dsn())
    assert url.host is not None
    async with Way(url.host, url.port or 5432).open() as way:
        yield way


@pytest.fixture
async def far(database: DatabaseSettings, way: Way, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    """An engine with one connection, over that way."""
    monkeypatch.setattr(module, "COMMAND_TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", TIMEOUT_S)
    url = make_url(database.primary_dsn()).set(host="127.0.0.1", port=way.port)
    engine = make_engine(url.render_as_string(hide_password=False), pool_size=1, max_overflow=0, name="test")
    yield engine
    await engine.dispose()


async def _on_a_line(line: Line) -> None:
    async with driver(line) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def _straight(engine: AsyncEngine) -> None:
    async with driver(engine) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def _read(engine: AsyncEngine) -> None:
    async with reading(engine) as connection:
        assert await connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("how", ["a line", "straight", "a read"])
async def test_a_wait_for_a_silent_server_ends(far: AsyncEngine, way: Way, how: str) -> None:
    line = Line(far)

    async def ask() -> None:
        async with asyncio.timeout(PATIENCE_S):
            if how == "a line":
                await _on_a_line(line)
            else:
                await (_straight if how == "straight" else _read)(far)

    await ask()
    way.silent = True
    for _ in range(2):
        with pytest.raises(Transient) as told:
            await ask()
        assert told.value.code == "DATABASE_UNAVAILABLE"
    way.silent = False
    await ask()
    await line.drop()


@pytest.mark.parametrize("open_connection", [driver, reading])
async def test_a_server_that_falls_silent_in_the_middle_of_a_connection(
    far: AsyncEngine, way: Way, open_connection: Any
) -> None:
    async def fall_silent() -> None:
        async with open_connection(far) as connection:
            way.silent = True
            await connection.execute("SELECT 1" if open_connection is driver else text("SELECT 1"))

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Transient):
            await fall_silent()
        way.silent = False
        await _straight(far)


# ErrorResponse of PostgreSQL's protocol: what a backend says when its postmaster has died, before its socket is closed.
FAREWELL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to unexpected postmaster exit\0\0"


@pytest.mark.parametrize("open_connection", [driver, reading])
@pytest.mark.parametrize("is_line", [True, False])
async def test_a_server_that_has_taken_leave_and_not_hung_up_yet_is_away(
    far: AsyncEngine, way: Way, open_connection: Any, is_line: bool
) -> None:
    line = Line(far)
    source = line if is_line and open_connection is driver else far

    async def hear_it_in_the_middle() -> None:
        async with open_connection(source) as connection:
            await way.say(b"E" + (len(FAREWELL) + 4).to_bytes(4, "big") + FAREWELL)
            # Until the driver has read it.
            await asyncio.sleep(0.1)
            if open_connection is driver:
                await connection.fetchval("SELECT $1::int", 1)
            else:
                await connection.scalar(text("SELECT 1"))

    with pytest.raises(Transient):
        await hear_it_in_the_middle()
    await (_on_a_line(line) if source is line else _straight(far))
    await line.drop()


async def test_connections_that_the_server_has_closed_are_replaced_before_use(
    database: DatabaseSettings, engine: AsyncEngine
) -> None:
    pooled = make_engine(database.primary_dsn(), pool_size=2, max_overflow=0, name="test")
    try:
        async with driver(pooled) as first, driver(pooled) as second:
            closed = [first, second]
            pids = [await each.fetchval("SELECT pg_backend_pid()") for each in closed]
        async with driver(engine) as connection:
            await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) AS pid", pids)
        async with asyncio.timeout(PATIENCE_S):
            while not all(each.is_closed() for each in closed):  # noqa: ASYNC110 - asyncpg has no event for it
                await asyncio.sleep(0.01)
        async with driver(pooled) as first, driver(pooled) as second:
            fresh = [await each.fetchval("SELECT pg_backend_pid()") for each in (first, second)]
        assert not set(fresh) & set(pids)
    finally:
        await pooled.dispose()
