"""Requests to one MCP server over HTTP: what fails of one of them is told to who made it, and to nobody else.

The SDK's transport ends with the first exception of a request, and all calls over it with it. So an exception, and an
answer that is none of JSON-RPC, become an error of JSON-RPC to that request here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2
import orjson
from mcp.shared._httpx_utils import next_request_within_origin
from mcp_types import INVALID_REQUEST

from rayloom.tools.mcp import protocol

SESSION: Final = "mcp-session-id"
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
"""As large as a message over stdio may be."""
END_S: Final = 2.0
TAKEN_S: Final = 10.0
SLOW_BYTES_PER_S: Final = 1024 * 1024
"""A message may take so long, and as much longer as it takes to send it so slowly."""
SAID_BYTES: Final = 2_000
EVENTS: Final = "text/event-stream"
_OPENING: Final = ("server/discover", "initialize")
"""Where there is no session yet, what came in the way of it is told as it is."""
_OF_SESSIONS: Final = (INVALID_REQUEST, -32_000, -32_001)
"""The codes that the SDKs have for an unknown session; the last two have no other meaning that is agreed on."""
_UNKNOWN: Final = re.compile(
    r"\b(?:(?:no valid|unknown|invalid|expired|no such) session"
    r"|session\b.{0,80}\b(?:not found|unknown|invalid|expired|terminated|not exist)"
    r"|server not initialized)",
    re.IGNORECASE | re.DOTALL,
)


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
        message = _message(request)
        if self._on_broken is not None:
            return await self._passed_on(request, options, self._on_broken)
        try:
            # The SDK sends nothing else before a notification is taken: who never takes it must not keep all others.
            async with asyncio.timeout(None if "id" in message and "method" in message else _patience_s(request)):
                return await self._answered(request, message, options)
        except Exception as error:
            if message.get("method") in _OPENING:
                raise
            code = protocol.BAD_ANSWER if isinstance(error, TooLarge) else protocol.NO_ANSWER
            return _error(request, message, code, protocol.said(error), 503)

    async def _passed_on(
        self, request: httpx2.Request, options: dict[str, Any], on_broken: Callable[[], None]
    ) -> httpx2.Response:
        """Send a message to which nothing but that it was taken is answered here."""
        try:
            async with asyncio.timeout(_patience_s(request)):
                response = await super().send(request, **options)
                await _read(response)
        except Exception:
            on_broken()
            raise
        if not response.is_success and next_request_within_origin(response) is None:
            on_broken()
        return response

    async def _answered(
        self, request: httpx2.Request, message: dict[str, Any], options: dict[str, Any]
    ) -> httpx2.Response:
        response = await super().send(request, **options)
        try:
            status, is_session = response.status_code, SESSION in request.headers
            is_json = response.headers.get("content-type", "").lower().startswith("application/json")
            if (is_json and response.next_request is None) or (is_session and status in (400, 404)):
                await response.aread()
            if status < 400:
                return response
            fault = _fault(response.content) if is_json else None
            is_forgotten = is_session and _is_forgotten(response, fault)
            # The SDK takes a 404 before there is a session for a method that there is not.
            if not is_forgotten and (fault is not None or (status == 404 and not is_session)):
                return response
            await response.aclose()
        except BaseException:
            await response.aclose()
            raise
        if is_forgotten:
            return _error(request, message, protocol.FORGOTTEN, "the server does not know the session any more", status)
        code = protocol.REFUSED if status in protocol.AT_FAULT else protocol.NO_ANSWER
        who = ": it wants to know who calls, or does not let us in" if status in (401, 403) else ""
        return _error(request, message, code, f"the server answered with status {status}{who}", status)


def _patience_s(request: httpx2.Request) -> float:
    """How long a message may take that the server has only to take."""
    return TAKEN_S + int(request.headers.get("content-length", 0)) / SLOW_BYTES_PER_S


async def _read(response: httpx2.Response) -> None:
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise


def _is_forgotten(response: httpx2.Response, fault: dict[str, Any] | None) -> bool:
    """Whether an answer within a session says that there is no such session. ``fault``: its error of JSON-RPC.

    That is what the status 404 is for; yet some say so with 400, and others answer with 404 for a method.
    """
    if response.status_code == 404 and fault is None:
        return True
    if response.status_code not in (400, 404) or (fault is not None and fault["code"] not in _OF_SESSIONS):
        return False
    said = fault["message"] if fault is not None else response.content[:SAID_BYTES].decode("utf-8", "replace")
    return _UNKNOWN.search(said) is not None


def _fault(body: bytes) -> dict[str, Any] | None:
    """The error of an answer of JSON-RPC; None where it is no such answer."""
    answer = _object(body)
    fault = answer.get("error")
    if answer.get("jsonrpc") != "2.0" or not isinstance(fault, dict):
        return None
    return fault if type(fault.get("code")) is int and isinstance(fault.get("message"), str) else None


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
