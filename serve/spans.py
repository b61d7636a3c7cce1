"""A task's trace as spans: its parse and split, and for each attempt the wait before it, its phases and calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from rayloom.dag.planned import BEGINS, WHOLE
from rayloom.db.events import TransitionRow
from rayloom.db.reads import Record
from rayloom.db.trace import TraceRows

Kind = Literal["task", "parse", "split", "queue", "attempt", "phase", "tool", "model"]
_FAILED: Final = frozenset({"FAILED", "TIMED_OUT", "LOST"})
_PHASE_OF_CALLS: Final = "EXECUTING"
_OF_CALL: Final = ("purpose", "model", "tokens_in", "tokens_out", "cost_usd", "is_estimated")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpan:
    """A named, timed piece of a task. ``finished_at`` is None while it goes on."""

    span_id: str
    parent_id: str | None
    name: str
    kind: Kind
    started_at: datetime
    finished_at: datetime | None
    subtask: str | None = None
    attempt: int | None = None
    is_error: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_ms(self) -> float | None:
        """How long it took."""
        if self.finished_at is None:
            return None
        return round((self.finished_at - self.started_at) / timedelta(milliseconds=1), 3)

    def as_json(self) -> dict[str, Any]:
        """The shape of the contract."""
        return {
            "span_id": self.span_id,
            "parent_id": self.parent_id,
            "name": self.name,
            "kind": self.kind,
            "subtask": self.subtask,
            "attempt": self.attempt,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "duration_ms": self.duration_ms,
            "status": "error" if self.is_error else "ok",
            "attributes": self.attributes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """All spans of a task, in the order in which they started. Its ids are the same each time it is made."""

    task_id: UUID
    spans: tuple[TraceSpan, ...]
    is_truncated: bool

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as W3C and OTLP want them."""
        return self.task_id.hex


def trace_of(rows: TraceRows) -> Trace:
    """The trace that the rows of a task tell."""
    spans = sorted(_spans(rows), key=lambda span: (span.started_at, span.parent_id is not None, span.kind != "queue"))
    return Trace(task_id=rows.task.id, spans=tuple(spans), is_truncated=rows.is_truncated)


def _span_id(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def _spans(rows: TraceRows) -> Iterator[TraceSpan]:
    task = rows.task
    root = _span_id(task.id, "task")
    yield TraceSpan(
        span_id=root,
        parent_id=None,
        name=task.title,
        kind="task",
        started_at=task.created_at,
        finished_at=task.finished_at,
        is_error=task.status == "FAILED",
        attributes={"status": task.status, "priority": task.priority, "subtasks": task.subtask_count},
    )
    yield from _planning(rows, root)
    for row in rows.attempts:
        yield from _attempt(row, row.sub_task_id, root, row.start_time, row.end_time)
    for row in rows.running:
        yield from _attempt(row, row.id, root, row.started_at, None)


def _planning(rows: TraceRows, root: str) -> Iterator[TraceSpan]:
    """Parse and split: from the moment the task was taken until its plan was there."""
    meta = rows.task.plan_meta or {}
    taken = next((event.at for event in rows.transitions if event.target == "SPLITTING"), None)
    if taken is None:
        return
    planned, has_begun = _planned_at(rows.transitions)
    # What has begun is split until it is whole, or ends.
    ended = (
        rows.task.finished_at
        if has_begun
        else next((event.at for event in rows.transitions if event.source == "SPLITTING"), None)
    )
    attributes = {name: meta[name] for name in ("source", "language") if name in meta}
    parsed = None if planned is None else min(taken + timedelta(seconds=float(meta.get("parsed_s") or 0)), planned)
    split_until = planned or ended
    common: dict[str, Any] = {
        "parent_id": root,
        "is_error": planned is None and ended is not None,
        "attributes": attributes,
    }
    yield TraceSpan(
        span_id=_span_id(root, "parse"),
        name="parse",
        kind="parse",
        started_at=taken,
        finished_at=parsed or ended,
        **common,
    )
    yield TraceSpan(
        span_id=_span_id(root, "split"),
        name="split",
        kind="split",
        started_at=parsed or taken,
        finished_at=split_until,
        **common,
    )
    yield from _planning_calls(rows, meta, taken, split_until, root)


def _planned_at(transitions: Sequence[TransitionRow]) -> tuple[datetime | None, bool]:
    """When the plan was there, all of it; and whether it had begun before."""
    plans = [event for event in transitions if event.kind == "plan"]
    has_begun = bool(plans) and (plans[0].reason or "").startswith(BEGINS)
    if has_begun:
        plans = [event for event in plans if (event.reason or "").startswith(WHOLE)]
    return (plans[0].at if plans else None), has_begun


def _planning_calls(
    rows: TraceRows, meta: Mapping[str, Any], taken: datetime, until: datetime | None, root: str
) -> Iterator[TraceSpan]:
    """The calls of models that planned the task, as the ledger has them, and those made since to add to its plan."""
    split, told = _span_id(root, "split"), list(meta.get("calls") or ())
    for row in reversed(rows.calls):
        is_later = until is not None and row.reserved_at > until
        # The last ones are those that the plan came of.
        known = next((call for call in reversed(told) if _is_of(row, call)), None) if not is_later else None
        if known is not None:
            told.remove(known)
        faults = {"faults": known["faults"]} if known is not None and "faults" in known else {}
        ended = row.settled_at
        yield TraceSpan(
            span_id=_span_id(row.id),
            parent_id=root if is_later else split,
            name=f"{row.purpose}: {row.model}",
            kind="model",
            started_at=row.reserved_at,
            finished_at=ended if ended is None or until is None or is_later else min(ended, until),
            # Whoever made it died before it was told what came of it.
            is_error=row.status == "released",
            attributes={name: getattr(row, name) for name in _OF_CALL} | faults,
        )
    yield from _told_calls(told, taken, until, split)


def _is_of(row: Record, call: Mapping[str, Any]) -> bool:
    return (row.purpose, row.model) == (call["purpose"], call["model"])


def _told_calls(
    told: Sequence[Mapping[str, Any]], taken: datetime, until: datetime | None, split: str
) -> Iterator[TraceSpan]:
    """Calls that the ledger does not know, by the clock of whoever made them."""
    for place, call in enumerate(told):
        began = taken + timedelta(seconds=float(call["began_s"]))
        ended = began + timedelta(seconds=float(call["duration_s"]))
        # A task that was taken over was planned later than it was taken first.
        is_whole = until is None or ended <= until
        yield TraceSpan(
            span_id=_span_id(split, place),
            parent_id=split,
            name=f"{call['purpose']}: {call['model']}",
            kind="model",
            started_at=began if until is None else min(began, until),
            finished_at=ended if is_whole else until,
            attributes={name: call[name] for name in call if name not in ("began_s", "duration_s")},
        )


def _attempt(
    row: Record, sub_task_id: UUID, root: str, started_at: datetime, finished_at: datetime | None
) -> Iterator[TraceSpan]:
    own = _span_id(sub_task_id, row.attempt)
    where: dict[str, Any] = {"subtask": row.key, "attempt": row.attempt}
    if row.queued_at is not None:
        yield TraceSpan(
            span_id=_span_id(own, "queue"),
            parent_id=root,
            name=f"{row.key}: queue",
            kind="queue",
            started_at=min(row.queued_at, started_at),
            finished_at=started_at,
            **where,
        )
    is_fallback = row.attempt in row.fallback_attempts
    tool = (row.fallback_tool if is_fallback else row.tool) or None
    attributes: dict[str, Any] = {"tool": tool, "type": row.task_type, "worker_id": row.worker_id}
    if row.worker_id is not None or finished_at is not None:
        # Of what runs, the row keeps the id that an earlier attempt told until the worker tells this one's.
        attributes["ray_task_id"] = row.ray_task_id or None
    if is_fallback:
        attributes["fallback"] = True
    if finished_at is None:
        attributes["phase"] = row.phase
    else:
        attributes |= {
            "status": row.status,
            "node_id": row.node_id,
            "tokens": row.tokens_used,
        }
        if row.error:
            attributes |= {"error.code": row.error.get("code"), "error.message": row.error.get("message")}
    yield TraceSpan(
        span_id=own,
        parent_id=root,
        name=row.key,
        kind="attempt",
        started_at=started_at,
        finished_at=finished_at,
        is_error=finished_at is not None and row.status in _FAILED,
        attributes={name: value for name, value in attributes.items() if value is not None},
        **where,
    )
    if finished_at is not None:
        yield from _parts(row.spans, own, where)


def _parts(spans: list[dict[str, Any]], attempt: str, where: Mapping[str, Any]) -> Iterator[TraceSpan]:
    """The phases of an attempt, and below its EXECUTING the calls that were made."""
    phases = {span["name"]: _span_id(attempt, place) for place, span in enumerate(spans) if span["kind"] == "phase"}
    executing = phases.get(_PHASE_OF_CALLS, attempt)
    for place, span in enumerate(spans):
        yield TraceSpan(
            span_id=_span_id(attempt, place),
            parent_id=attempt if span["kind"] == "phase" else executing,
            name=span["name"],
            kind=span["kind"],
            started_at=datetime.fromtimestamp(span["started_at"], UTC),
            finished_at=datetime.fromtimestamp(span["finished_at"], UTC),
            is_error=not span.get("ok", True),
            attributes=span.get("attributes") or {},
            **where,
        )
