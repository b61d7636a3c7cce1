"""A database for the API, and the API itself on a real port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.serve.settings import ServeSettings
from tests.integration.databases import copy_of
from tests.integration.serve.world import World, serving


@pytest.fixture(scope="session")
def database(server_url: str, template: str) -> Iterator[DatabaseSettings]:
    """A database with our schema. Tests keep apart by having users of their own."""
    with copy_of(server_url, template) as copied:
        yield copied.model_copy(update={"pool_size": 10, "max_overflow": 5})


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
