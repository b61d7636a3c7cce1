"""The spans of planning: parse, split, and below it each call of a model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from rayloom.db.events import TransitionRow
from rayloom.db.trace import TraceRows
from rayloom.serve.spans import trace_of

TAKEN = datetime(2026, 1, 1, tzinfo=UTC)
CALL = {"purpose": "split", "model": "m", "tokens_in": 3, "tokens_out": 4, "faults": 1}


def _transition(seconds: float, **more: Any) -> TransitionRow:
    given: Any = dict.fromkeys(TransitionRow.__dataclass_fields__) | {"kind": "task"}
    return TransitionRow(**given | {"at": TAKEN + timedelta(seconds=seconds)} | more)


def _trace(*transitions: TransitionRow, calls: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": UUID(int=1), "title": "t", "status": "PROCESSING", "priority": 5, "subtask_count": 1,
        "plan_meta": {"source": "model", "calls": calls}, "created_at": TAKEN, "started_at": TAKEN, "finished_at": None,
    }  # fmt: skip
    task: Any = SimpleNamespace(**fields | more)
    rows = TraceRows(task=task, transitions=transitions, attempts=(), running=(), is_truncated=False)
    return {span.name: span for span in trace_of(rows).spans}


def test_each_call_of_a_model_is_a_span_below_the_split() -> None:
    calls = [
        CALL | {"began_s": 0.5, "duration_s": 2.0},
        CALL | {"purpose": "repair", "began_s": 3.0, "duration_s": 60.0},
    ]
    taken, planned = _transition(0, target="SPLITTING"), _transition(10, kind="plan")
    spans = _trace(taken, planned, calls=calls)
    first, second, split = spans["split: m"], spans["repair: m"], spans["split"]
    assert (first.kind, first.parent_id) == ("model", split.span_id)
    assert first.started_at == TAKEN + timedelta(seconds=0.5)
    assert first.duration_ms == 2_000
    assert first.attributes == CALL
    # None goes on when the plan is there.
    assert second.finished_at == TAKEN + timedelta(seconds=10)


def test_without_calls_there_is_none() -> None:
    assert set(_trace(_transition(0, target="SPLITTING"), calls=[])) == {"t", "parse", "split"}


def test_what_has_begun_is_split_until_its_plan_is_whole() -> None:
    taken = _transition(0, target="SPLITTING")
    begun = _transition(2, kind="plan", reason="begins with 1 subtasks"), _transition(2, source="SPLITTING")
    more = _transition(3, kind="plan", reason="1 more subtasks, width 2")
    assert _trace(taken, *begun, more, calls=[])["split"].finished_at is None
    failed = _trace(taken, *begun, calls=[], finished_at=TAKEN + timedelta(seconds=7), status="FAILED")["split"]
    assert (failed.duration_ms, failed.is_error) == (7_000, True)
    whole = _transition(9, kind="plan", reason="whole: 2 more subtasks, width 2")
    split = _trace(taken, *begun, more, whole, calls=[])["split"]
    assert (split.duration_ms, split.is_error) == (9_000, False)
