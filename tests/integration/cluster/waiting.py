"""Waiting for the thing itself, with an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError

from tests.integration.waiting import GENEROUS_S

T = TypeVar("T")
_POLL_S = 0.02


async def until(look: Callable[[], Awaitable[T | None]], *, within_s: float = GENEROUS_S) -> T:
    """The first answer of ``look`` that is not None."""
    end = time.monotonic() + within_s
    while True:
        found = await look()
        if found is not None:
            return found
        assert time.monotonic() < end, f"waited {within_s} s for nothing"
        await asyncio.sleep(_POLL_S)


def has_ended(pid: int) -> bool:
    """Whether a process is no more; a zombie has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


async def until_gone(pid: int, *, within_s: float = GENEROUS_S) -> None:
    """Wait for the end of a process that is not our child."""

    async def gone() -> bool | None:
        return True if has_ended(pid) else None

    await until(gone, within_s=within_s)


async def query(url: str, statement: str) -> object:
    """The first value of a statement, in a session of its own."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def query_when_back(url: str, statement: str) -> object:
    """The same, of a server that may be starting."""

    async def ask() -> tuple[object] | None:
        try:
            return (await query(url, statement),)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None

    return (await until(ask))[0]


async def redis_get(url: str, key: str) -> bytes | None:
    """A value in Redis."""
    async with redis.asyncio.from_url(url) as client:
        value = await client.get(key)
        assert value is None or isinstance(value, bytes)
        return value


async def redis_get_when_back(url: str, key: str) -> bytes | None:
    """The same, of a server that may be starting."""

    async def ask() -> tuple[bytes | None] | None:
        try:
            return (await redis_get(url, key),)
        except (OSError, RedisError):
            return None

    return (await until(ask))[0]


async def redis_set(url: str, key: str, value: str) -> None:
    """Keep a value in Redis."""
    async with redis.asyncio.from_url(url) as client:
        await client.set(key, value)


async def redis_pid(url: str) -> int:
    """The process of a Redis server."""
    async with redis.asyncio.from_url(url) as client:
        return int((await client.info("server"))["process_id"])
