"""Where MCP comes in over HTTP: who asks and from where, a body that is JSON, and then the SDK's own transport."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter, Request
from mcp.server import Server
from mcp.server.streamable_http import check_accept_headers
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INVALID_REQUEST, PARSE_ERROR
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rayloom.serve.auth import Me
from rayloom.serve.bodies import off_loop
from rayloom.serve.deps import deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.json_body import parse
from rayloom.serve.mcp.server import ME
from rayloom.serve.problems import Problem
from rayloom.serve.settings import MIB, ServeSettings

router = APIRouter(tags=["mcp"])
PATH: Final = "/mcp"
MAX_BODY_BYTES: Final = 4 * MIB
"""What an assistant writes is far smaller; the SDK reads it while nothing else goes on."""
# It tells of the begin and the end of each request.
logging.getLogger("mcp.server").setLevel(logging.WARNING)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Handed(Response):
    """An answer that the SDK gives to a request whose body was read already."""

    def __init__(self, server: Server[dict[str, Any]], raw: bytes) -> None:
        super().__init__()
        self._server, self._raw = server, raw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; whatever was begun for it has ended when this returns or is cancelled."""
        is_told = False

        async def replay() -> Message:
            nonlocal is_told
            if is_told:
                return await receive()
            is_told = True
            return {"type": "http.request", "body": self._raw, "more_body": False}

        # A manager of its own, and with it a task group: no request can take another one down.
        manager = StreamableHTTPSessionManager(self._server, stateless=True, max_request_body_size=MAX_BODY_BYTES)
        async with manager.run():
            await manager.handle_request(scope, replay, send)


@router.post(
    PATH,
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": {"description": "a JSON-RPC message", "content": {"application/json": {}, "text/event-stream": {}}},
            "202": {"description": "a notification was taken"},
        },
    },
)
async def mcp(request: Request, me: Me) -> Response:
    """One message of MCP (streamable HTTP, without sessions): rayloom as a tool of an assistant."""
    expect_own(request, deps_of(request).settings)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "the body must be application/json", code="UNSUPPORTED_MEDIA_TYPE")
    if check_accept_headers(request) != (True, True):
        raise Problem(406, "the Accept header must name application/json and text/event-stream", code="NOT_ACCEPTABLE")
    raw = await request.body()
    if len(raw) > MAX_BODY_BYTES:
        raise Problem(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes", code="BODY_TOO_LARGE")
    try:
        message = await off_loop(len(raw), lambda: parse(raw))
    except Problem as problem:
        if problem.status == 413:
            raise
        return _malformed(raw, PARSE_ERROR if problem.status == 400 else INVALID_REQUEST, problem.detail)
    if message.get("jsonrpc") != "2.0" or type(message.get("method", "")) is not str:
        return _malformed(raw, INVALID_REQUEST, "this is no message of JSON-RPC 2.0")
    # The SDK would take it for a notification, and its sender would wait for an answer.
    if type(message.get("id", "")) not in (str, int):
        return _malformed(raw, INVALID_REQUEST, "/id: must be a string or an integer")
    request.scope[ME] = me
    return Handed(request.app.state.mcp, raw)


def _malformed(raw: bytes, code: int, detail: str) -> Response:
    """What is no message, in the words of JSON-RPC."""
    id_ = None
    try:
        message = orjson.loads(raw)
    except orjson.JSONDecodeError:
        message = None
    if isinstance(message, dict) and type(message.get("id")) in (str, int):
        id_ = message["id"]
    document: dict[str, Any] = {"jsonrpc": "2.0", "id": id_, "error": {"code": code, "message": detail}}
    return json_answer(document, 400)


def expect_own(request: Request, settings: ServeSettings) -> None:
    """Whether a request is meant for us, and not for a name that somebody else made to lead here.

    Raises Problem: 421 for a foreign Host, 403 for a page of another origin.
    """
    host = request.headers.get("host", "")
    name = _name_of(f"//{host}")
    if name is None or not _is_own(name, settings):
        detail = "this is not a name of this rayloom: see RAYLOOM_URL and RAYLOOM_MCP_HOSTS"
        raise Problem(421, detail, code="FOREIGN_HOST")
    origin = request.headers.get("origin")
    if origin is None:
        return
    wanted = _name_of(origin)
    same = origin.partition("://")[2].lower() == host.lower()
    public = origin.rstrip("/").lower() == settings.public_url.rstrip("/").lower()
    local = wanted in _LOOPBACK and name in _LOOPBACK
    if wanted is None or not (same or public or local):
        raise Problem(403, "pages of another origin may not talk to this rayloom", code="FOREIGN_ORIGIN")


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_own(name: str, settings: ServeSettings) -> bool:
    names = (settings.host, _name_of(settings.public_url), *settings.mcp_hosts)
    if name in _LOOPBACK or name in (each.lower() for each in names if each is not None):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    # Nobody can make an address lead elsewhere.
    return True
