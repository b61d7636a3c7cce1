"""Equal calls that share one result: kept in Redis for a time, and made once when they come together.

Without Redis every call is simply made. A call that fails leaves nothing behind; one that waited for it is then made
itself, so that of many equal calls that fail only one bothers the callee at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal, Protocol

import orjson
from uuid_utils.compat import uuid7

from rayloom.dag.errors import UserError
from rayloom.dag.output import clean_text, sanitise
from rayloom.db.queue import REDIS_AWAY
from rayloom.db.result_cache import MAKING_MS, Look
from rayloom.tools.tool import ToolResult

_log = logging.getLogger(__name__)

REDIS_S: Final = 1.0
"""Longer than this no call waits for Redis."""
FIRST_LOOK_S, LAST_LOOK_S = 0.01, 0.5
"""How soon, and at last how often, one that waits looks again."""
LARGEST_CHARS: Final = 1024 * 1024
"""Of a result that is kept, written as JSON; a larger one costs more in Redis than it saves."""
UNKEPT: Final = "-"
UNKEPT_S: Final = 60.0
"""How long it is remembered that a result was too large: equal calls need not wait for each other meanwhile."""

Source = Literal["hit", "made", "alone"]
"""Where a result came from: an equal call, this one (and is kept), or this one (for itself alone)."""


class Cache(Protocol):
    """`rayloom.db.result_cache.ResultCache`."""

    async def look(self, key: str, token: str) -> Look:
        """The kept result; where there is none, the call becomes that of ``token``, unless somebody is at it."""

    async def go_on(self, key: str, token: str) -> bool:
        """Say that ``token`` is still at it."""

    async def give_up(self, key: str, token: str) -> None:
        """The call of ``token`` is over."""

    async def keep(self, key: str, token: str, result: str, *, ttl_s: float) -> None:
        """Keep a result."""


class SharedCalls:
    """The calls of one process."""

    def __init__(self, cache: Cache, *, ttl_s: float) -> None:
        self._cache, self._ttl_s = cache, ttl_s

    async def call(self, key: str, make: Callable[[], Awaitable[ToolResult]]) -> tuple[ToolResult, Source]:
        """The result of the call ``key``: that of an equal call where there is one, else that of ``make``.

        Raises what ``make`` raises.
        """
        token = str(uuid7())
        look = await self._look(key, token)
        if look is None or look.kept == UNKEPT:
            return await make(), "alone"
        if look.kept is not None:
            return _read(look.kept), "hit"
        return await self._make(key, token, make)

    async def _look(self, key: str, token: str) -> Look | None:
        """What is known of the call, once nobody else is at it; None when Redis does not say."""
        wait_s = FIRST_LOOK_S
        while True:
            try:
                async with asyncio.timeout(REDIS_S):
                    look = await self._cache.look(key, token)
            except REDIS_AWAY as error:
                _log.info("cache.away: %s", error)
                return None
            if look.kept is not None or look.is_mine:
                return look
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.5, LAST_LOOK_S)

    async def _make(self, key: str, token: str, make: Callable[[], Awaitable[ToolResult]]) -> tuple[ToolResult, Source]:
        going_on = asyncio.get_running_loop().create_task(self._go_on(key, token))
        try:
            result = await make()
        except BaseException:
            with suppress(*REDIS_AWAY):
                async with asyncio.timeout(REDIS_S):
                    await self._cache.give_up(key, token)
            raise
        finally:
            going_on.cancel()
        text = _written(result)
        try:
            async with asyncio.timeout(REDIS_S):
                if text is None:
                    await self._cache.keep(key, token, UNKEPT, ttl_s=UNKEPT_S)
                else:
                    await self._cache.keep(key, token, text, ttl_s=self._ttl_s)
        except REDIS_AWAY as error:
            _log.info("cache.not_kept: %s", error)
            return result, "alone"
        return result, "alone" if text is None else "made"

    async def _go_on(self, key: str, token: str) -> None:
        while True:
            await asyncio.sleep(MAKING_MS / 3_000)
            with suppress(*REDIS_AWAY):
                await self._cache.go_on(key, token)


def _written(result: ToolResult) -> str | None:
    """A result as it is kept; None when it is too large, or nothing that can be written down."""
    try:
        output = sanitise(result.output)
    except UserError:
        return None
    kept = {"output": output, "stdout": clean_text(result.stdout), "stderr": clean_text(result.stderr)}
    text = orjson.dumps(kept).decode()
    return text if len(text) <= LARGEST_CHARS else None


def _read(text: str) -> ToolResult:
    """A kept result. No tokens were used for it."""
    kept = orjson.loads(text)
    return ToolResult(output=kept["output"], stdout=kept["stdout"], stderr=kept["stderr"])
