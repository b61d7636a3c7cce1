"""Server-sent events: frames, and streams that wake on news, keep quiet connections alive, and end."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, cast

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from rayloom.dag.errors import Transient
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.json_answer import json_bytes

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "text/event-stream"
KEEP_ALIVE: Final = b": keep-alive\n\n"
RECONNECT_MS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What a look at the database gave: frames, and whether there is more at once, or never again."""

    text: bytes
    is_last: bool
    has_more: bool


def frame(id_: str, name: str, data: object) -> bytes:
    """One event on the wire. JSON has no raw line breaks, so its text is one line."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (id_.encode(), name.encode(), json_bytes(data))


def event_stream(request: Request, looks: AsyncIterator[Chunk], task_id: str) -> Response:
    """An answer that sends each look's frames, and looks again when the task has news. Raises Problem (503)."""
    # Proxies must neither keep nor gather what is meant for now.
    headers = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}
    call = call_of(request)
    if call.is_head:
        return Response(b"", headers=headers, media_type=MEDIA_TYPE)
    call.become_stream()
    body = _body(deps_of(request), cast("AsyncGenerator[Chunk]", looks), task_id)
    return StreamingResponse(body, headers=headers, media_type=MEDIA_TYPE)


async def _body(deps: Deps, looks: AsyncGenerator[Chunk], task_id: str) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % RECONNECT_MS
    keepalive_s = deps.settings.sse_keepalive_s
    quiet_s = 0.0
    with deps.backends.wakeups.follow(task_id) as follower:
        async with aclosing(looks):
            try:
                async for chunk in looks:
                    if chunk.text:
                        quiet_s = 0.0
                        yield chunk.text
                    if chunk.is_last:
                        return
                    if chunk.has_more:
                        continue
                    quiet_s += await follower.wait(keepalive_s - quiet_s)
                    if quiet_s >= keepalive_s:
                        quiet_s = 0.0
                        yield KEEP_ALIVE
            except Transient as error:
                # The answer has begun: all that can be said is goodbye. The client resumes after the last id it saw.
                log.warning("stream.broken", extra={"task_id": task_id, "error": error.code})
