"""Requests to one MCP server over HTTP: what fails of one of them is told to who made it, and to nobody else.

The SDK's transport ends with the first exception of a request, and all calls over it with it. So an exception, and an
answer that is none of JSON-RPC, become an error of JSON-RPC to that request here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2
import orjson

from rayloom.tools.mcp import protocol

SESSION: Final = "mcp-session-id"
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
"""As large as a message over stdio may be."""
END_S: Final = 2.0
EVENTS: Final = "text/event-stream"
_OPENING: Final = ("server/discover", "initialize")
"""Where there is no session yet, what came in the way of it is told as it is."""


class TooLarge(httpx2.StreamError):
    """A body is larger than anybody should read."""


class Bounded(httpx2.AsyncByteStream):
    """A body of an answer, up to a size in bytes. Reading more raises TooLarge."""

    def __init__(self, body: httpx2.AsyncByteStream, limit: int) -> None:
        self._body, self._left, self._limit = body, limit, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            self._left -= len(chunk)
            if self._left < 0:
                raise TooLarge(f"the server's answer has more than {self._limit:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        """Close what it reads."""
        await self._body.aclose()


class Way(httpx2.AsyncClient):
    """See the module. ``on_broken``: told of a request that failed; then it fails as it does without us."""

    def __init__(self, *, on_broken: Callable[[], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._on_broken = on_broken

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; an answer in JSON is read here, so that what fails of it is told as well."""
        if request.method == "DELETE":
            # With it a session is ended: whoever does not answer that must not hold up the next one.
            async with asyncio.timeout(END_S):
                response = await super().send(request, **options)
                await _read(response)
                return response
        if request.method != "POST":
            return await super().send(request, **options)
        if self._on_broken is not None:
            try:
                response = await super().send(request, **options)
            except Exception:
                self._on_broken()
                raise
            if response.status_code >= 400:
                self._on_broken()
            return response
        try:
            return await self._answered(request, options)
        except Exception as error:
            message = _message(request)
            if message.get("method") in _OPENING:
                raise
            code = protocol.BAD_ANSWER if isinstance(error, TooLarge) else protocol.NO_ANSWER
            return _error(request, message, code, protocol.said(error), 503)

    async def _answered(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        response = await super().send(request, **options)
        try:
            is_json = response.headers.get("content-type", "").lower().startswith("application/json")
            if is_json and response.next_request is None:
                await response.aread()
            status = response.status_code
            # These may mean that the server does not know the session: the SDK tells us so.
            is_session = status == 404 or (status == 400 and SESSION in request.headers)
            if status < 400 or is_session or (is_json and "error" in _object(response.content)):
                return response
            await response.aclose()
        except BaseException:
            await response.aclose()
            raise
        code = protocol.REFUSED if status in protocol.AT_FAULT else protocol.NO_ANSWER
        who = ": it wants to know who calls, or does not let us in" if status in (401, 403) else ""
        return _error(request, _message(request), code, f"the server answered with status {status}{who}", status)


async def _read(response: httpx2.Response) -> None:
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise


def _message(request: httpx2.Request) -> dict[str, Any]:
    """What a request carries; empty where that is no message of JSON-RPC."""
    try:
        return _object(request.content)
    except httpx2.RequestNotRead:
        return {}


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _error(request: httpx2.Request, message: dict[str, Any], code: int, text: str, status: int) -> httpx2.Response:
    body = {"jsonrpc": "2.0", "id": message.get("id"), "error": {"code": code, "message": text}}
    return httpx2.Response(status, json=body, request=request)
