"""A database for the API, and the API itself on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from uuid_utils.compat import uuid7

from rayloom.db.migrate import upgrade
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.world import World, serving


async def _administer(url: str, *statements: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture(scope="session")
def database(servers: tuple[str, str]) -> Iterator[DatabaseSettings]:
    """A database with our schema. Tests keep apart by having users of their own."""
    name = f"rl_{uuid7().hex}"
    asyncio.run(_administer(servers[0], f"CREATE DATABASE {name}"))
    url = make_url(servers[0]).set(database=name).render_as_string(hide_password=False)
    asyncio.run(upgrade(url))
    yield DatabaseSettings(url=SecretStr(url), pool_size=10, max_overflow=5)
    asyncio.run(_administer(servers[0], f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def redis(servers: tuple[str, str]) -> RedisSettings:
    return RedisSettings(url=SecretStr(servers[1]))


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(max_body_bytes=2_000_000, request_timeout_s=60, secret_key=SecretStr("secret"))


@pytest.fixture
async def world(database: DatabaseSettings, redis: RedisSettings, settings: ServeSettings) -> AsyncIterator[World]:
    async with serving(database, redis, settings) as world:
        yield world
