"""A task's transitions as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from rayloom.dag.errors import Fault
from rayloom.db import events
from rayloom.serve import shapes
from rayloom.serve.auth import Owner
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.problems import invalid
from rayloom.serve.routes.subtasks import owned
from rayloom.serve.sse import Chunk, event_stream, frame

router = APIRouter(prefix="/api/v1/tasks/{task_id}/events", tags=["events"])
BATCH: Final = 500
BUSY: Final = 16
BUSY_PAUSE_S: Final = 0.05
MAX_ID: Final = 2**63 - 1


@router.get("")
async def follow_events(
    request: Request,
    task_id: str,
    user: Owner,
    header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    last_event_id: Annotated[str | None, Query(description="the same as the header, which wins")] = None,
) -> Response:
    """Every transition from the first on, or after `Last-Event-ID`; closes after the terminal one."""
    deps = deps_of(request)
    last_id = _last_id(last_event_id, header)
    id_ = await owned(deps, task_id, user)
    return event_stream(request, _pages(deps, id_, last_id), str(id_))


def _last_id(query: str | None, header: str | None) -> int:
    """The id to go on after, 0 for none."""
    # A browser that reconnects sends the header by itself, to the address that it was given first.
    pointer, given = ("/headers/Last-Event-ID", header) if header else ("/query/last_event_id", query)
    if not given:
        return 0
    if not (given.isascii() and given.isdigit() and int(given[:20]) <= MAX_ID and len(given) < 20):
        raise invalid([Fault(pointer, "must be the id of an event")])
    return int(given)


async def _pages(deps: Deps, task_id: UUID, last_id: int) -> AsyncIterator[Chunk]:
    while True:
        page = await events.after(deps.backends.primary, task_id, last_id, limit=BATCH)
        if page.events:
            last_id = page.events[-1].id
        text = b"".join(frame(str(row.id), row.kind, shapes.event(task_id, row)) for row in page.events)
        yield Chunk(text=text, is_last=page.is_last, has_more=len(page.events) == BATCH)
        if BUSY <= len(page.events) < BATCH:
            # Much is happening: fewer, larger looks keep the database and the proxy for those who do it.
            await asyncio.sleep(BUSY_PAUSE_S)
