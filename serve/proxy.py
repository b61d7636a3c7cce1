"""Run our connections and JSON answers in the processes of Serve's proxies, in front of every replica.

Ray Serve calls ``configure`` in each proxy before it listens, where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names
it (``PROXY_CALLBACK`` of the settings). Nothing here may need a database. The one setting is in the environment.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from rayloom.serve.connections import Connection
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import Problem, unavailable
from rayloom.serve.settings import MAX_BODY_VARIABLE, MIB

log = logging.getLogger(__name__)

HEALTH_PATH: Final = "/-/healthz"
"""Serve's own health check, for load balancers; KubeRay looks for the word `success` in it."""
OWN_PATHS: Final = "/-/"
"""The start of all routes that the proxy itself answers."""


def configure() -> list[Middleware]:
    """Have uvicorn use our connections in this process. Give the middleware for Serve's proxy."""
    if given := os.environ.get(MAX_BODY_VARIABLE):
        # The app refuses a body that is too large in its own words, where it reads one.
        Connection.max_body_bytes = (int(given) + 1) * MIB
    HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__name__}"
    return [Middleware(JsonAnswers)]


class JsonAnswers:
    """ASGI middleware around Serve's proxy: JSON in place of the plain text that the proxy itself answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_answered = is_replaced = False

        async def sender(message: Message) -> None:
            nonlocal has_answered, is_replaced
            if message["type"] == "http.response.start":
                has_answered = True
                own = _in_place_of(message, scope["path"])
                if own is not None:
                    is_replaced = True
                    await own(scope, receive, send)
                    return
            if not is_replaced:
                await send(message)

        try:
            await self._app(scope, receive, sender)
            # Serve gives no answer where a replica ended, and none to a client that has gone, which gets none anyway.
            problem = unavailable("the API ended before it had answered; try again", code="NO_ANSWER")
        except UnicodeDecodeError:
            # Serve reads some headers itself, such as X-Request-ID.
            problem = Problem(400, "a header is not UTF-8", code="MALFORMED")
        except Exception:
            log.exception("proxy.request_failed")
            problem = Problem(500, "something went wrong here; it was logged", code="INTERNAL")
        if not has_answered:
            await problem.response(scope["path"])(scope, receive, send)


def _in_place_of(start: Message, path: str) -> ASGIApp | None:
    """Return the JSON for a plain-text answer of the proxy itself; None for an answer of a replica."""
    headers: dict[bytes, bytes] = {bytes(name).lower(): bytes(value) for name, value in start["headers"]}
    if not headers.pop(b"content-type", b"").startswith(b"text/plain"):
        return None
    status = start["status"]
    if status == 200 and path == HEALTH_PATH:
        return json_answer({"status": "success"})
    if status < 400:
        return None
    if status == 404 and not path.startswith(OWN_PATHS):
        # All other routes are the API's: the proxy has not been told of it yet.
        return _STARTING.response(path)
    problem = _OF_STATUS.get(status, Problem(status, "the API can't answer this request"))
    response = problem.response(path)
    kept: dict[str, Any] = {name.decode(): headers[name].decode("latin-1") for name in _KEPT & set(headers)}
    response.headers.update(kept)
    return response


_STARTING: Final = unavailable("the API is not up; try again")
_KEPT: Final = {b"retry-after", b"x-request-id"}
_OF_STATUS: Final = {
    404: Problem(404, "there is no such route"),
    408: Problem(408, "the request took longer than its X-Request-Timeout-Seconds", code="TIMED_OUT"),
    503: unavailable("the API can't take requests here now; try again"),
}
