"""Why a subtask waits, from what three sides know of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest

from rayloom.dag.breaker import BreakerView
from rayloom.dag.ports import Limited, Waiting
from rayloom.dag.resources import ResourceShape
from rayloom.db.waiting import COUNTED, Open, Place, WaitingRow
from rayloom.serve.waiting import Reason, reasons

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHAPE = orjson.dumps(ResourceShape(cpus=2.0).as_json()).decode()
QUEUED = WaitingRow(
    sub_task_id=UUID(int=1), status="QUEUED", task_status="PROCESSING", shape=SHAPE, is_leased=False, not_before=None,
    tool="http.request",
    error=None, attempt=0, place=Place(ahead=5, ahead_alike=2, started=60),
)  # fmt: skip
ROOM = Waiting(
    handed_over=False, limit=None, limit_in_s=None, is_held=False, nodes=1, room=3, fits=True, gives_up_in_s=None
)


def _in(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def _row(status: str, **fields: Any) -> WaitingRow:
    return replace(QUEUED, status=status, place=None, **fields)


def why(row: WaitingRow, scheduler: Waiting | None = ROOM, limited: Limited | None = None) -> list[Reason]:
    return reasons(row, now=NOW, scheduler=scheduler, limited=limited)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "COMPLETED", "BLOCKED", "SKIPPED", "CANCELLED"])
def test_what_does_not_wait_has_no_reason(status: str) -> None:
    assert why(_row(status)) == []


def test_open_dependencies_are_named_and_the_others_counted() -> None:
    open_ = (Open(key="a", status="RUNNING"), Open(key="b", status="READY"))
    (reason,) = why(_row("READY", open=open_, open_count=7))
    assert (reason.kind, reason.until) == ("dependency", None)
    assert reason.detail == "7 dependencies are not done: a (RUNNING), b (READY) and 5 more"
    (reason,) = why(_row("READY", open=open_[:1], open_count=1))
    assert reason.detail == "1 dependency is not done: a (RUNNING)"
    assert why(_row("READY")) == []


def test_a_back_off_says_how_long_and_what_for() -> None:
    failed = _row("FAILED", attempt=2, not_before=_in(9), error={"code": "HTTP_503", "message": "busy"})
    detail = "attempt 2 failed with HTTP_503: busy"
    assert why(failed) == [Reason(kind="backoff", detail=detail, until=_in(9))]
    (reason,) = why(replace(failed, error={"code": "BREAKER_OPEN", "message": "open"}))
    assert (reason.kind, reason.until) == ("breaker", _in(9))
    (reason,) = why(replace(failed, error={"code": "QUOTA_EXCEEDED", "message": "spent"}))
    assert (reason.kind, reason.until) == ("quota", _in(9))


def test_a_limit_of_another_level_than_the_users_is_named_by_it() -> None:
    for limit, kind, detail in (
        ("max_cost_usd", "quota", "max_cost_usd of its user is spent: only a higher one helps"),
        ("key.max_tokens", "quota", "max_tokens of its key is spent: only a higher one helps"),
        ("model.tokens_per_min", "limit", "tokens_per_min of its model is reached"),
    ):
        (reason, *_) = why(QUEUED, replace(ROOM, limit=limit, limit_in_s=2.0))
        assert (reason.kind, reason.detail) == (kind, detail)


def test_what_was_denied_the_call_of_a_model_says_what_it_had_asked_for() -> None:
    denied = replace(QUEUED, attempt=1, error={"code": "QUOTA_EXCEEDED", "message": "73 are used, 4,871 asked for"})
    (reason, *_) = why(denied, replace(ROOM, limit="key.max_tokens"))
    assert reason.detail.endswith("only a higher one helps; attempt 1: 73 are used, 4,871 asked for")


def test_an_approval_is_waited_for_by_a_subtask_or_a_plan() -> None:
    assert [reason.kind for reason in why(_row("AWAITING_APPROVAL"))] == ["approval"]
    (reason,) = why(_row("QUEUED", task_status="READY"))
    assert (reason.kind, "plan" in reason.detail) == ("approval", True)


def test_a_place_in_the_queue_comes_with_an_estimate() -> None:
    (reason,) = why(QUEUED)
    assert (reason.kind, reason.until) == ("queue", _in(6))
    assert reason.detail.startswith("5 queued subtasks come first, 2 of them ask for the same resources")
    (reason,) = why(replace(QUEUED, place=Place(ahead=0, ahead_alike=0, started=0)))
    assert reason.until is None
    (reason,) = why(replace(QUEUED, place=Place(ahead=COUNTED, ahead_alike=3, started=9)))
    assert (reason.until, reason.detail.startswith("more than 10000 ")) == (None, True)


def test_what_cannot_be_asked_is_said_to_be_so() -> None:
    (reason,) = why(QUEUED, None)
    assert "the scheduler can't be asked now" in reason.detail
    (reason,) = why(replace(QUEUED, is_leased=True, place=None), None)
    assert (reason.kind, "the scheduler can't be asked now" in reason.detail) == ("resources", True)


@pytest.mark.parametrize(
    ("limit", "free_in_s", "kind", "until"),
    [
        ("max_concurrent", 0.0, "limit", NOW),
        ("requests_per_min", 30.0, "limit", _in(30)),
        ("max_concurrent", None, "limit", None),
        ("max_tokens", None, "quota", None),
        ("max_tokens", 2.0, "quota", None),
        ("standing_unknown", 1.0, "limit", _in(1)),
    ],
)
def test_limits_and_quotas(limit: str, free_in_s: float | None, kind: str, until: datetime | None) -> None:
    by_controller = why(QUEUED, ROOM, Limited(limit=limit, free_in_s=free_in_s))
    by_scheduler = why(QUEUED, replace(ROOM, limit=limit, limit_in_s=free_in_s))
    assert by_controller == by_scheduler
    assert (by_controller[0].kind, by_controller[0].until) == (kind, until)
    assert [reason.kind for reason in by_controller] == [kind, "queue"]


def test_resources_that_are_taken_that_nobody_has_and_that_nobody_knows() -> None:
    kinds = ["resources", "queue"]
    taken = why(QUEUED, replace(ROOM, room=0))
    assert [reason.kind for reason in taken] == kinds
    assert "2 CPU" in taken[0].detail
    never = why(QUEUED, replace(ROOM, room=0, fits=False, gives_up_in_s=40.0))
    assert [reason.kind for reason in never] == kinds
    assert never[0].until == _in(40)
    assert why(QUEUED, replace(ROOM, fits=False))[0].until is None
    assert "no live node" in why(QUEUED, replace(ROOM, nodes=0))[0].detail


def test_what_ray_holds_waits_for_a_node() -> None:
    (reason,) = why(replace(QUEUED, is_leased=True, place=None), replace(ROOM, handed_over=True, room=0))
    assert (reason.kind, "handed to Ray" in reason.detail) == ("resources", True)


def test_what_was_held_because_something_was_away() -> None:
    (reason,) = why(QUEUED, replace(ROOM, is_held=True))
    assert "was away" in reason.detail


def test_what_a_breaker_holds_waits_for_that_and_for_no_place_in_the_queue() -> None:
    def held(view: BreakerView) -> Reason:
        (reason,) = reasons(QUEUED, now=NOW, scheduler=ROOM, breaker=view)
        assert reason.kind == "breaker"
        return reason

    assert held(BreakerView(state="open", retry_at=_in(9).timestamp())).until == _in(9)
    assert "until somebody closes it" in held(BreakerView(state="open", retry_at=None)).detail
    assert "half open" in held(BreakerView(state="half_open", retry_at=_in(9).timestamp())).detail
    leased = reasons(replace(QUEUED, is_leased=True), now=NOW, breaker=BreakerView(state="open", retry_at=None))
    assert [reason.kind for reason in leased] == ["resources"]
