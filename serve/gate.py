"""The gate in front of every request: how many come in, how large, how long; and that each gets an answer of ours.

Overload, limits and time-outs are answered here, as problem documents, before any proxy would answer in its own words.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import pointer_to
from rayloom.serve.measures import Measures
from rayloom.serve.problems import Problem, invalid, problem_of, unavailable
from rayloom.serve.settings import ServeSettings
from rayloom.serve.uploads import Upload, Uploads, too_slow

log = logging.getLogger(__name__)

CALL_KEY: Final = "rayloom.call"
UNGATED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Answered also when the house is full: whoever watches over us must see that we live."""

_ENDS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""What nobody must answer."""


@dataclass(slots=True)
class Admission:
    """What this replica carries now, against what it may carry."""

    settings: ServeSettings
    requests: int = 0
    streams: int = 0
    body_bytes: int = 0
    uploads: Uploads = field(init=False)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.settings.body_idle_s, self.settings.bodies_per_user)

    def full(self, what: str) -> Problem:
        """The answer of a full house."""
        return unavailable(
            f"too many {what} at once; try again",
            code="OVERLOADED",
            retry_after_s=self.settings.admission_retry_after_s,
        )


@dataclass(slots=True)
class Call:
    """One request on its way through the app."""

    admission: Admission
    upload: Upload
    is_head: bool
    timeout: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    is_counted: bool = False
    is_stream: bool = False
    has_answered: bool = False
    status: int = 0
    body_bytes: int = 0

    def allow(self, seconds: float) -> None:
        """Let the rest of this request take so long."""
        self.timeout.reschedule(asyncio.get_running_loop().time() + seconds)

    def become_stream(self) -> None:
        """From now on this is a stream: no time-out, and it counts among the streams. Raises Problem (503)."""
        if self.admission.streams >= self.admission.settings.admission_streams:
            raise self.admission.full("streams")
        self.admission.streams += 1
        self.is_stream = True
        if self.is_counted:
            self.admission.requests -= 1
            self.is_counted = False
        self.timeout.reschedule(None)

    def leave(self) -> None:
        """Give back what it took."""
        self.admission.requests -= self.is_counted
        self.admission.streams -= self.is_stream
        self.admission.body_bytes -= self.body_bytes
        self.upload.end()


def call_of(request: Request) -> Call:
    """The call that a request is."""
    call = request.scope[CALL_KEY]
    assert isinstance(call, Call)
    return call


class Gate:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, measures: Measures) -> None:
        self._app = app
        self._settings = settings
        self._measures = measures
        self.admission = measures.admission = Admission(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host, _ = scope.get("client") or ("unknown", 0)
        upload = Upload(self.admission.uploads, sender=host)
        call = Call(admission=self.admission, upload=upload, is_head=scope["method"] == "HEAD")
        method = scope["method"]
        # A copy: whatever stands around us goes on with the scope that it gave.
        scope = {**scope, CALL_KEY: call, "method": "GET" if call.is_head else method}
        started_at = perf_counter()
        sender = _sender(call, send)
        try:
            problem = await self._carry(call, scope, _receiver(call, receive), sender)
            if problem is not None and not call.has_answered:
                await problem.response(scope["path"])(scope, receive, sender)
        finally:
            call.leave()
            route = getattr(scope.get("route"), "path", "unknown")
            self._measures.observe(method, route, call.status or 499, perf_counter() - started_at, call.is_stream)

    async def _carry(self, call: Call, scope: Scope, receive: Receive, send: Send) -> Problem | None:
        try:
            self._admit(call, scope)
            async with asyncio.timeout(self._settings.request_timeout_s) as call.timeout:
                await self._app(scope, receive, send)
        except ClientDisconnect:
            return None
        except TimeoutError:
            if not call.timeout.expired():
                return self._unforeseen(scope)
            log.warning("request.timed_out", extra={"path": scope["path"], "reading": call.upload.is_arriving})
            if call.upload.is_arriving:
                return too_slow("the body of the request did not arrive in time")
            return unavailable("the request took too long", code="TIMED_OUT")
        except Exception as error:  # noqa: BLE001 - the last place that can still answer
            return problem_of(error) or self._unforeseen(scope)
        except _ENDS:
            raise
        except BaseException:  # noqa: BLE001 - a panic of native code: none of ours, and the replica goes on
            return self._unforeseen(scope)
        return None

    def _unforeseen(self, scope: Scope) -> Problem:
        log.exception("request.failed", extra={"method": scope["method"], "path": scope["path"]})
        return Problem(500, "something went wrong here; it was logged", code="INTERNAL")

    def _admit(self, call: Call, scope: Scope) -> None:
        if "\0" in scope["path"]:
            raise invalid([Fault("/path", "holds a NUL character")])
        _refuse_nul(scope["query_string"])
        length = _content_length(scope)
        if length is not None and length > self._settings.max_body_bytes:
            raise _too_large(self._settings)
        if scope["path"] in UNGATED:
            return
        if self.admission.requests >= self._settings.admission_requests:
            raise self.admission.full("requests")
        self.admission.requests += 1
        call.is_counted = True


def _refuse_nul(query: bytes) -> None:
    if b"%00" not in query and b"\0" not in query:
        return
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    names = [name for name, value in pairs if "\0" in value or "\0" in name]
    raise invalid([Fault(pointer_to("/query", [name.replace("\0", "")]), "holds a NUL character") for name in names])


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            with suppress(ValueError):
                return int(value)
    return None


def _too_large(settings: ServeSettings) -> Problem:
    # Whoever still sends must not have the rest of the body taken for the next request.
    return Problem(
        413,
        f"the body is larger than {settings.max_body_bytes:,} bytes",
        code="BODY_TOO_LARGE",
        headers={"Connection": "close"},
    )


def _receiver(call: Call, receive: Receive) -> Receive:
    settings = call.admission.settings

    async def counted() -> Message:
        try:
            message = await call.upload.receive(receive)
        except Problem:
            if call.has_answered:
                # A stream looks this way whether its client is still there.
                return {"type": "http.disconnect"}
            raise
        size = len(message.get("body", b""))
        call.body_bytes += size
        call.admission.body_bytes += size
        if call.body_bytes > settings.max_body_bytes:
            raise _too_large(settings)
        if call.admission.body_bytes > max(settings.admission_body_bytes, settings.max_body_bytes):
            raise call.admission.full("large bodies")
        return message

    return counted


def _sender(call: Call, send: Send) -> Send:
    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            call.has_answered = True
            call.status = message["status"]
            headers = MutableHeaders(scope=_as_scope(message))
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
            headers.setdefault("Referrer-Policy", "no-referrer")
            headers.setdefault("X-Frame-Options", "DENY")
        elif call.is_head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return dressed


def _as_scope(message: Message) -> dict[str, Any]:
    message.setdefault("headers", [])
    return message  # type: ignore[return-value]
