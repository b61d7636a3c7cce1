"""The log of a task: pages, or a stream that goes on as the log does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from rayloom.dag.errors import Fault
from rayloom.db.logs import LEVELS, STREAMS, LogEntry, LogFilter, LogPage, Position, read_log
from rayloom.db.reader import ReadSource
from rayloom.serve import cursors
from rayloom.serve.auth import Owner
from rayloom.serve.cursors import Cursor
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import invalid
from rayloom.serve.routes.subtasks import owned
from rayloom.serve.sse import Chunk, event_stream, frame

router = APIRouter(prefix="/api/v1/tasks/{task_id}/logs", tags=["logs"])
BATCH: Final = 500
_POSITION: Final = re.compile(r"(\d{1,18})-(\d{1,9})-(\d{1,18})")


@router.get("")
async def logs(
    request: Request,
    task_id: str,
    user: Owner,
    subtask: Annotated[str | None, Query(max_length=128)] = None,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    stream: Annotated[list[str] | None, Query(description="one or several, by commas")] = None,
    level: Annotated[list[str] | None, Query(description="one or several, by commas")] = None,
    follow: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="lines a page")] = 200,
    cursor: Cursor = None,
    accept: Annotated[str | None, Header()] = None,
    header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    last_event_id: Annotated[str | None, Query(description="the same as the header, which wins")] = None,
) -> Response:
    """The full-chain log, oldest first. `follow=true`, or `Accept: text/event-stream`, streams it."""
    deps = deps_of(request)
    wanted = LogFilter(
        subtask=subtask,
        attempt=attempt,
        streams=cursors.choices("stream", stream, STREAMS),
        levels=cursors.choices("level", level, LEVELS),
    )
    if follow or "text/event-stream" in (accept or ""):
        # A page's cursor also starts a stream: read what there is, then go on from there.
        start = _position(cursor)
        id_ = await owned(deps, task_id, user)
        start = _resumed(last_event_id, header) or start
        return event_stream(request, _looks(deps, id_, wanted, start), str(id_))
    return json_answer(await page_of_log(deps, task_id, user, wanted, limit=limit, cursor=cursor))


async def page_of_log(
    deps: Deps, task_id: str, user: UUID, wanted: LogFilter, *, limit: int, cursor: str | None
) -> dict[str, Any]:
    """A page of the log of a user's task. Raises Problem: 404, and 422 for a cursor of another list."""
    start = _position(cursor)
    id_ = await owned(deps, task_id, user)
    page = await deps.backends.reads.current(lambda source: read_log(source, id_, wanted, start, limit=limit))
    next_cursor = None
    if page.has_more:
        next_cursor = cursors.encode("logs", page.end.event_id, page.end.part, page.end.line_id)
    return {"items": [shown(entry) for entry in page.entries], "next_cursor": next_cursor}


def _position(cursor: str | None) -> Position:
    if cursor is None:
        return Position()
    return Position(*(int(part) for part in cursors.decode("logs", cursor, (int, int, int))))


def shown(entry: LogEntry) -> dict[str, Any]:
    """A line of the log in the shape of the contract."""
    return {
        "id": entry.id,
        "at": entry.at,
        "level": entry.level,
        "stream": entry.stream,
        "subtask": entry.subtask,
        "attempt": entry.attempt,
        "message": entry.message,
        "fields": entry.fields,
    }


def _resumed(query: str | None, header: str | None) -> Position | None:
    # A browser that reconnects sends the header by itself, to the address that it was given first.
    pointer, given = ("/headers/Last-Event-ID", header) if header else ("/query/last_event_id", query)
    if not given:
        return None
    match = _POSITION.fullmatch(given)
    if match is None:
        raise invalid([Fault(pointer, "must be the id of an event of this stream")])
    return Position(*(int(number) for number in match.groups()))


async def _looks(deps: Deps, task_id: UUID, wanted: LogFilter, position: Position) -> AsyncIterator[Chunk]:
    async def look(source: ReadSource) -> LogPage:
        return await read_log(source, task_id, wanted, position, limit=BATCH)

    while True:
        page = await deps.backends.reads.current(look)
        position = page.end
        text = b"".join(frame(_id(entry.position), "log", shown(entry)) for entry in page.entries)
        yield Chunk(text=text, is_last=page.is_last, has_more=page.has_more)


def _id(position: Position) -> str:
    return f"{position.event_id}-{position.part}-{position.line_id}"
