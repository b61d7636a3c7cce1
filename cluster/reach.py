"""Whether the servers that were given by URL answer, before anything is built on them."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import redis.asyncio
from redis.exceptions import AuthenticationError, RedisError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from rayloom.cluster.checks import StartRefused
from rayloom.db.settings import DatabaseSettings, RedisSettings

_TIMEOUT_S = 10.0
_WRONG_USER = ("28P01", "28000")
_NO_DATABASE = "3D000"


async def database(settings: DatabaseSettings) -> None:
    """Raises StartRefused when no session can be opened; no message holds the password."""
    url = settings.primary_dsn()
    try:
        parts = make_url(url)
        where = f"{parts.host or 'the local socket'}:{parts.port or 5432}"
        engine = create_async_engine(parts, connect_args={"timeout": _TIMEOUT_S})
    except (SQLAlchemyError, ValueError):
        raise StartRefused("RAYLOOM_DATABASE_URL is not a URL of a PostgreSQL database") from None
    try:
        async with asyncio.timeout(_TIMEOUT_S), engine.connect():
            pass
    except (OSError, TimeoutError, DBAPIError) as error:
        state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
        if state in _WRONG_USER:
            raise StartRefused(f"PostgreSQL at {where} refuses the user or password of RAYLOOM_DATABASE_URL") from None
        if state == _NO_DATABASE:
            raise StartRefused(f"PostgreSQL at {where} has no database {parts.database}: create it first") from None
        raise StartRefused(
            f"PostgreSQL at {where} does not answer ({state or type(error).__name__}): "
            "start it, or correct RAYLOOM_DATABASE_URL"
        ) from None
    finally:
        await engine.dispose()


async def cache(settings: RedisSettings) -> None:
    """The same for Redis. Raises StartRefused."""
    parts = urlsplit(settings.dsn())
    where = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
    try:
        client = redis.asyncio.from_url(
            settings.dsn(), socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S, retry=None
        )
    except ValueError:
        raise StartRefused("RAYLOOM_REDIS_URL is not a URL of a Redis server") from None
    try:
        await client.ping()
    except AuthenticationError:
        raise StartRefused(f"Redis at {where} refuses the password of RAYLOOM_REDIS_URL") from None
    except (OSError, RedisError) as error:
        raise StartRefused(
            f"Redis at {where} does not answer ({type(error).__name__}): start it, or correct RAYLOOM_REDIS_URL"
        ) from None
    finally:
        await client.aclose()
