"""A database for each module of tests, copied from one that was migrated once; every test ends with an audit of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from uuid_utils.compat import uuid7

from rayloom.db import blob_cache
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import make_engine
from rayloom.db.migrate import upgrade
from rayloom.db.queue import make_redis
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from tests.integration.db.spine import Spine


async def administer(url: str, *statements: str) -> None:
    """Statements that no transaction may hold, each by itself."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


def url_of(server_url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database, to copy."""
    name = f"rl_template_{uuid7().hex}"
    asyncio.run(administer(server_url, f"CREATE DATABASE {name}"))
    asyncio.run(upgrade(url_of(server_url, name)))
    yield name
    asyncio.run(administer(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def database(server_url: str, template: str) -> Iterator[DatabaseSettings]:
    """A database of this module's own, with our schema."""
    name = f"rl_{uuid7().hex}"
    asyncio.run(administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield DatabaseSettings(url=SecretStr(url_of(server_url, name)))
    asyncio.run(administer(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def engine(database: DatabaseSettings) -> AsyncIterator[AsyncEngine]:
    """Connections of the test itself."""
    engine = make_engine(database.primary_dsn(), pool_size=4, max_overflow=30, name="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def spine(engine: AsyncEngine) -> AsyncIterator[Spine]:
    """The engine's statements in a few words. Afterwards the whole record is held against its rules."""
    spine = await Spine.of_new_user(engine)
    yield spine
    await spine.audit()
    await spine.put_away()


@pytest.fixture
async def redis(servers: tuple[str, str]) -> AsyncIterator[Redis]:
    """A client of the Redis that tests share."""
    client = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def patient_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no Redis that is away: copies of blobs are where tests look for them."""
    monkeypatch.setattr(blob_cache, "REDIS_S", 60.0)


@pytest.fixture
def blobs(engine: AsyncEngine, redis: Redis) -> BlobStore:
    """The blob store, with all in PostgreSQL."""
    return BlobStore(engine, redis, BlobSettings())
