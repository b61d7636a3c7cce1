"""The OpenAI-compatible face of a local model: checks the key, and passes on to llama.cpp's server behind it.

While that loads, or comes back after its end, the answer is 503 with ``Retry-After``; errors have the shape of
OpenAI's. A caller that goes away closes its request there, too, which frees the slot; where it asked for no stream,
llama.cpp may not notice, and thinks to the end: so ours ask for streams.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

MOST_AT_ONCE: Final = 32
"""Requests in flight and waiting for a slot, together; more are answered 503."""
MOST_BODY_BYTES: Final = 4 * 1024 * 1024
CONNECT_S: Final = 5.0
PASSED_ON: Final = ("v1/chat/completions", "v1/completions", "v1/models", "metrics")
RETRY_LOADING_S, RETRY_BUSY_S = 2, 10


class Behind(Protocol):
    """The server behind the door."""

    def address(self) -> str | None:
        """Where it listens; None while it does not."""

    def trouble(self) -> str | None:
        """Why it will not come up; None while it may."""


def build_door(behind: Behind, key: str) -> Starlette:
    """The application, to be mounted anywhere."""
    door = _Door(behind, key)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await door.close()

    routes = [Route(f"/{path}", door.pass_on, methods=["GET", "POST"]) for path in PASSED_ON]
    return Starlette(
        routes=[*routes, Route("/health", door.health)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _as_json},
    )


class _Door:
    def __init__(self, behind: Behind, key: str) -> None:
        self._behind = behind
        self._key = key
        self._inside = 0
        # An answer may be minutes away: how long is for the caller to say, who closes when it has waited enough.
        timeout = httpx2.Timeout(None, connect=CONNECT_S)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def health(self, request: Request) -> Response:
        """Whether the model answers; for whoever has the key."""
        refused = self._refusal(request)
        return refused or JSONResponse({"status": "ok"})

    async def pass_on(self, request: Request) -> Response:
        """The request, made behind the door; its answer as it comes."""
        refused = self._refusal(request)
        if refused is not None:
            return refused
        body = await request.body()
        if len(body) > MOST_BODY_BYTES:
            return _error(413, f"a request may have {MOST_BODY_BYTES} bytes")
        address = self._behind.address()
        if address is None:
            return _loading()
        if self._inside >= MOST_AT_ONCE:
            return _error(503, f"{self._inside} requests wait for the local model already", retry_s=RETRY_BUSY_S)
        asked = self._client.build_request(
            request.method,
            f"{address}{_path(request)}",
            content=body,
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        self._inside += 1
        try:
            answer = await self._client.send(asked, stream=True)
        except httpx2.HTTPError:
            self._leave()
            return _error(503, "the local model ended meanwhile, and is started again", retry_s=RETRY_LOADING_S)
        except BaseException:
            self._leave()
            raise
        return _Passed(answer, self._leave)

    def _leave(self) -> None:
        self._inside -= 1

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            return _error(401, "the local model wants its key", kind="authentication_error")
        trouble = self._behind.trouble()
        if trouble is not None:
            return _error(503, trouble, retry_s=60)
        if self._behind.address() is None:
            return _loading()
        return None


class _Passed(StreamingResponse):
    """An answer from behind the door; it is closed there when it ends here, however it ends, or never begins."""

    def __init__(self, answer: httpx2.Response, leave: Callable[[], None]) -> None:
        kind = answer.headers.get("Content-Type", "application/json")
        super().__init__(answer.aiter_raw(), status_code=answer.status_code, media_type=kind)
        self._answer = answer
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
            await self._answer.aclose()


def _as_json(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, f"the local model answers to {', '.join(PASSED_ON)}", kind="not_found_error")


def _path(request: Request) -> str:
    root = request.scope.get("root_path", "")
    path: str = request.scope["path"]
    return path.removeprefix(root)


def _loading() -> JSONResponse:
    return _error(503, "the local model is loading", retry_s=RETRY_LOADING_S)


def _error(status: int, message: str, *, kind: str = "unavailable_error", retry_s: int = 0) -> JSONResponse:
    headers = {"Retry-After": str(retry_s)} if retry_s else None
    return JSONResponse(
        {"error": {"message": message, "type": kind, "code": status}}, status_code=status, headers=headers
    )
