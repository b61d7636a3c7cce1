"""A database for each module of tests, copied from one that was migrated once; every test ends with an audit of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db import blob_cache
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import make_engine
from rayloom.db.queue import make_redis
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from tests.integration.databases import copy_of
from tests.integration.db.spine import Spine


@pytest.fixture(scope="module")
def database(server_url: str, template: str) -> Iterator[DatabaseSettings]:
    """A database of this module's own, with our schema."""
    with copy_of(server_url, template) as copied:
        yield copied


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
