"""The execution trace of a task, and its exports."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rayloom.db.trace import TraceRows, read_trace
from rayloom.serve import cursors
from rayloom.serve.auth import Owner
from rayloom.serve.deps import deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.json_answer import json_bytes
from rayloom.serve.problems import not_found
from rayloom.serve.spans import trace_of
from rayloom.serve.trace_exports import chrome, otlp

router = APIRouter(prefix="/api/v1/tasks/{task_id}/trace", tags=["traces"])
FORMATS: Final = ("json", "otlp", "chrome")
TRACE_TIMEOUT_S: Final = 120.0


@router.get("")
async def trace(
    request: Request,
    task_id: str,
    user: Owner,
    form: Annotated[list[str] | None, Query(alias="format", description="json, otlp or chrome")] = None,
) -> Response:
    """Spans of parse, split, queue wait, each attempt and its phases, every tool call."""
    wanted = cursors.choices("format", form, FORMATS)
    id_ = cursors.uuid_of(task_id, "this task")
    call_of(request).allow(TRACE_TIMEOUT_S)
    rows = await deps_of(request).backends.reads.current(lambda source: read_trace(source, id_, user))
    if rows is None:
        raise not_found("this task")
    # A trace of a large task is a large document: other requests go on meanwhile.
    content = await asyncio.to_thread(_document, rows, wanted[-1] if wanted else "json", datetime.now(UTC))
    return Response(content, media_type="application/json")


def _document(rows: TraceRows, form: str, now: datetime) -> bytes:
    made = trace_of(rows)
    if form == "otlp":
        return json_bytes(otlp(made, now=now))
    if form == "chrome":
        return json_bytes(chrome(made, now=now))
    document = {
        "trace_id": made.trace_id,
        "task_id": made.task_id,
        "spans": [span.as_json() for span in made.spans],
    }
    if made.is_truncated:
        document["truncated"] = True
    return json_bytes(document)
