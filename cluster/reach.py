"""Whether the servers that were given by URL answer, before anything is built on them."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import redis.asyncio
from redis.exceptions import AuthenticationError, RedisError
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from rayloom.cluster.checks import StartRefused
from rayloom.db.s3 import NO_LIST, BlobsAway, S3Place
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings

_TIMEOUT_S = 10.0
_WRONG_USER = ("28P01", "28000")
_NO_DATABASE = "3D000"
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")


async def database(settings: DatabaseSettings) -> None:
    """Raises StartRefused when no session can be opened; no message holds the password."""
    await _session(settings.primary_dsn(), "RAYLOOM_DATABASE_URL")


async def replica(settings: DatabaseSettings) -> None:
    """The same for the replica, where one is set. It must be a standby."""
    if settings.replica_url is not None:
        name = "RAYLOOM_DATABASE_REPLICA_URL"
        if not await _session(settings.replica_url.get_secret_value(), name):
            raise StartRefused(
                f"{name} leads to a server that is no standby: name a streaming replica, or leave it empty"
            )


async def worker(settings: DatabaseSettings) -> None:
    """The same for the role of the workers."""
    await _session(settings.worker_dsn(), "RAYLOOM_DATABASE_WORKER_URL")


async def _session(url: str, name: str) -> bool:
    """Open a session at ``url``, which is the setting ``name``. Gives whether the server is a standby."""
    try:
        parts = make_url(url)
        where = f"{parts.host or 'the local socket'}:{parts.port or 5432}"
        engine = create_async_engine(parts, connect_args={"timeout": _TIMEOUT_S})
    except (SQLAlchemyError, ValueError):
        raise StartRefused(f"{name} is not a URL of a PostgreSQL database") from None
    try:
        async with asyncio.timeout(_TIMEOUT_S), engine.connect() as connection:
            return bool(await connection.scalar(text("SELECT pg_is_in_recovery()")))
    except (OSError, TimeoutError, DBAPIError) as error:
        state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
        if state in _WRONG_USER:
            raise StartRefused(f"PostgreSQL at {where} refuses the user or password of {name}") from None
        if state == _NO_DATABASE:
            raise StartRefused(f"PostgreSQL at {where} has no database {parts.database}: create it first") from None
        raise StartRefused(
            f"PostgreSQL at {where} does not answer ({state or type(error).__name__}): start it, or correct {name}"
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


async def blob_store(settings: BlobSettings) -> None:
    """Raises StartRefused where blobs are kept in S3 and can't be written, read and removed there."""
    if not settings.place:
        return
    place, where = settings.place, settings.s3.endpoint or f"AWS in {settings.s3.region}"
    bucket = place.removeprefix("s3://").partition("/")[0]
    try:
        await S3Place(place, settings.s3).prepare()
    except BlobsAway as away:
        if away.reason == "NoSuchBucket":
            raise StartRefused(
                f"S3 at {where} has no bucket {bucket}: create it, or correct RAYLOOM_BLOB_STORE"
            ) from None
        if away.reason in _WRONG_KEYS:
            raise StartRefused(
                f"S3 at {where} refuses the keys ({away.reason}): correct RAYLOOM_S3_ACCESS_KEY_ID and "
                "RAYLOOM_S3_SECRET_ACCESS_KEY"
            ) from None
        if away.reason == NO_LIST:
            raise StartRefused(
                f"S3 at {where} does not tell in {place} what is not there ({NO_LIST}): allow s3:ListBucket on {bucket}"
            ) from None
        if away.reason:
            raise StartRefused(
                f"S3 at {where} does not let us write, read and delete in {place} ({away.reason}): allow it, or "
                "correct RAYLOOM_BLOB_STORE or RAYLOOM_S3_REGION"
            ) from None
        raise StartRefused(
            f"S3 at {where} does not answer for {place}: start it, or correct RAYLOOM_S3_ENDPOINT"
        ) from None
