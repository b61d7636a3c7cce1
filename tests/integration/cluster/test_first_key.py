"""The key that `rayloom up` names opens the door, also after the one before it was revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.first_rows import first_key
from rayloom.cluster.home import Home
from rayloom.cluster.settings import Settings, load_settings
from rayloom.db.engine import make_engine
from rayloom.db.keys import create_key, identify, new_key, revoke_key
from rayloom.db.migrate import upgrade
from rayloom.db.settings import DatabaseSettings
from tests.integration.databases import administer, dropping


@pytest.fixture
async def database(server_url: str) -> AsyncIterator[DatabaseSettings]:
    server = await asyncpg.connect(server_url.replace("+asyncpg", ""))
    name = f"rl_{uuid7().hex}"
    await server.execute(f"CREATE DATABASE {name}")
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    made = DatabaseSettings(url=SecretStr(url))
    await upgrade(made.primary_dsn())
    yield made
    await server.close()
    await administer(server_url, *dropping(name))


@pytest.fixture
async def engine(database: DatabaseSettings) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=0, name="test")
    yield engine
    await engine.dispose()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def settings(home: Home, **environ: str) -> Settings:
    return load_settings(environ={"RAYLOOM_HOME": str(home.path), **environ})


async def revoke(engine: AsyncEngine, key: str) -> None:
    """As an admin does who has another key by now."""
    await create_key(engine, user="admin", role="admin", key=new_key())
    principal = await identify(engine, key)
    assert principal is not None
    assert await revoke_key(engine, principal.key_id)


async def test_a_revoked_key_of_the_home_is_replaced(
    database: DatabaseSettings, engine: AsyncEngine, home: Home
) -> None:
    first = await first_key(settings(home), home, database)
    assert await first_key(settings(home), home, database) == first
    await revoke(engine, first)
    second = await first_key(settings(home), home, database)
    assert second != first
    assert home.read_secret("api_key") == second
    principal = await identify(engine, second)
    assert principal is not None
    assert principal.is_admin
    assert await identify(engine, first) is None
    assert await first_key(settings(home), home, database) == second


async def test_a_revoked_key_that_was_given_is_refused(
    database: DatabaseSettings, engine: AsyncEngine, home: Home
) -> None:
    given = settings(home, RAYLOOM_API_KEY="a-key-that-somebody-chose-by-himself")
    await revoke(engine, await first_key(given, home, database))
    with pytest.raises(StartRefused, match="RAYLOOM_API_KEY was revoked") as refused:
        await first_key(given, home, database)
    assert "somebody-chose" not in str(refused.value)
    assert await asyncio.to_thread(home.read_secret, "api_key") is None
