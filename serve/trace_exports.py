"""A trace in the forms of other tools: OTLP/JSON and Chrome's trace events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rayloom.serve.spans import Trace, TraceSpan

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_INTERNAL: Final = 1
_OK, _ERROR = 1, 2


def otlp(trace: Trace, *, now: datetime) -> dict[str, Any]:
    """An ``ExportTraceServiceRequest``. A span that goes on ends ``now`` and says that it is unfinished."""
    resource = _attributes({"service.name": "rayloom", "rayloom.task_id": str(trace.task_id)})
    spans = [_otlp_span(trace, span, now) for span in trace.spans]
    of_scope = {"scope": {"name": "rayloom"}, "spans": spans}
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [of_scope]}]}


def _otlp_span(trace: Trace, span: TraceSpan, now: datetime) -> dict[str, Any]:
    extra: dict[str, Any] = {"rayloom.kind": span.kind}
    if span.subtask is not None:
        extra |= {"rayloom.subtask": span.subtask, "rayloom.attempt": span.attempt}
    if span.finished_at is None:
        extra["rayloom.unfinished"] = True
    shown: dict[str, Any] = {
        "traceId": trace.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": _nanos(span.started_at),
        "endTimeUnixNano": _nanos(span.finished_at or max(now, span.started_at)),
        "attributes": _attributes({**extra, **span.attributes}),
        "status": {"code": _ERROR if span.is_error else _OK},
    }
    if span.parent_id is not None:
        shown["parentSpanId"] = span.parent_id
    return shown


def _nanos(at: datetime) -> str:
    # 64-bit integers are strings in protobuf's JSON.
    return str((at - _EPOCH) // _MICROSECOND * 1000)


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _any_value(value)} for name, value in values.items() if value is not None]


def _any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)}


def chrome(trace: Trace, *, now: datetime) -> dict[str, Any]:
    """A document for Perfetto or ``chrome://tracing``: one row a subtask."""
    rows: dict[str | None, int] = {None: 0}
    found: list[dict[str, Any]] = []
    for span in trace.spans:
        row = rows.setdefault(span.subtask, len(rows))
        found.append(
            {
                "name": span.name,
                "cat": span.kind,
                "ph": "X",
                "ts": (span.started_at - _EPOCH) // _MICROSECOND,
                "dur": max(0, ((span.finished_at or now) - span.started_at) // _MICROSECOND),
                "pid": 1,
                "tid": row,
                "args": {**span.attributes, "attempt": span.attempt, "status": "error" if span.is_error else "ok"},
            }
        )
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": subtask or "task"}}
        for subtask, row in rows.items()
    ]
    process = {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": f"rayloom {trace.task_id}"}}
    return {"traceEvents": [process, *names, *found], "displayTimeUnit": "ms"}
