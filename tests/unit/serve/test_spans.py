"""The spans of planning: parse, split, and below it each call of a model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from rayloom.db.events import TransitionRow
from rayloom.db.trace import TraceRows
from rayloom.serve.spans import TraceSpan, trace_of

TAKEN = datetime(2026, 1, 1, tzinfo=UTC)
CALL = {"purpose": "split", "model": "m", "tokens_in": 3, "tokens_out": 4, "faults": 1}


def _transition(seconds: float, **more: Any) -> TransitionRow:
    given: Any = dict.fromkeys(TransitionRow.__dataclass_fields__) | {"kind": "task"}
    return TransitionRow(**given | {"at": TAKEN + timedelta(seconds=seconds)} | more)


def _row(place: int, purpose: str, seconds: float, until: float | None, **more: Any) -> Any:
    ended = None if until is None else TAKEN + timedelta(seconds=until)
    given = {"tokens_in": 3, "tokens_out": 4, "cost_usd": 0.1, "is_estimated": False, "status": "settled"} | more
    return SimpleNamespace(
        id=UUID(int=place), purpose=purpose, model="m", reserved_at=TAKEN + timedelta(seconds=seconds),
        settled_at=ended, **given,
    )  # fmt: skip


def _spans(
    *transitions: TransitionRow, calls: list[dict[str, Any]], rows: Sequence[Any] = (), **more: Any
) -> tuple[TraceSpan, ...]:
    fields: dict[str, Any] = {
        "id": UUID(int=1), "title": "t", "status": "PROCESSING", "priority": 5, "subtask_count": 1,
        "plan_meta": {"source": "model", "calls": calls}, "created_at": TAKEN, "started_at": TAKEN, "finished_at": None,
    }  # fmt: skip
    task: Any = SimpleNamespace(**fields | more)
    told = TraceRows(task=task, transitions=transitions, attempts=(), running=(), is_truncated=False, calls=rows)
    return trace_of(told).spans


def _trace(*transitions: TransitionRow, **given: Any) -> dict[str, Any]:
    return {span.name: span for span in _spans(*transitions, **given)}


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


def test_calls_are_shown_as_the_ledger_has_them_also_where_no_plan_came_of_them() -> None:
    rows = [_row(1, "split", 1, 3), _row(2, "repair", 4, 5, status="released"), _row(3, "join", 6, None)]
    spans = _trace(_transition(0, target="SPLITTING"), _transition(9, source="SPLITTING"), calls=[], rows=rows)
    first, second, third = spans["split: m"], spans["repair: m"], spans["join: m"]
    assert {each.parent_id for each in (first, second, third)} == {spans["split"].span_id}
    assert (first.duration_ms, first.is_error, second.is_error, third.finished_at) == (2_000, False, True, None)
    assert first.attributes == {name: CALL[name] for name in CALL if name != "faults"} | {
        "cost_usd": 0.1,
        "is_estimated": False,
    }


def test_a_call_is_told_once_with_its_faults_and_what_was_asked_later_stands_apart() -> None:
    rows = [_row(1, "split", 1, 2), _row(2, "split", 3, 40), _row(3, "split", 11, 12)]
    told = [CALL | {"began_s": 3.0, "duration_s": 1.0}, CALL | {"purpose": "else", "began_s": 1.0, "duration_s": 1.0}]
    taken, planned = _transition(0, target="SPLITTING"), _transition(10, kind="plan")
    spans = [span for span in _spans(taken, planned, calls=told, rows=rows) if span.kind == "model"]
    assert [(span.name, span.attributes.get("faults")) for span in spans] == [
        ("split: m", None),
        ("else: m", 1),
        ("split: m", 1),
        ("split: m", None),
    ]
    # None goes on when the plan is there; what adds to it later is no part of the split.
    assert spans[2].finished_at == TAKEN + timedelta(seconds=10)
    assert spans[3].parent_id != spans[2].parent_id


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
