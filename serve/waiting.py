"""Why a subtask is not running yet: what the record, the scheduler and the token controller say, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import orjson

from rayloom.dag.breaker import BREAKER_OPEN, BreakerView
from rayloom.dag.decision import QUOTA_EXCEEDED
from rayloom.dag.ports import Limited, Waiting
from rayloom.dag.resources import ResourceShape
from rayloom.dag.states import SubtaskStatus, TaskStatus
from rayloom.db.waiting import COUNTED, THROUGHPUT_S, Place, WaitingRow

Kind = Literal["dependency", "queue", "quota", "limit", "breaker", "resources", "approval", "backoff"]

_QUOTAS: Final = frozenset({"max_tokens", "max_cost_usd"})
"""Limits on what may be used in all: nothing but a higher one helps."""
_UNKNOWN: Final = "standing_unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that holds a subtask. ``until``: when it is expected to be over, where that can be said."""

    kind: Kind
    detail: str
    until: datetime | None = None


def reasons(
    row: WaitingRow,
    *,
    now: datetime,
    scheduler: Waiting | None = None,
    limited: Limited | None = None,
    breaker: BreakerView | None = None,
) -> list[Reason]:
    """Everything that holds a subtask at ``now``; nothing for one that runs or has ended.

    ``scheduler`` is None when it could not be asked, ``limited`` also when no limit holds the user. ``breaker``: that
    of its tool, when it is not closed and nothing may be called in the tool's place.
    """
    if row.task_status == TaskStatus.READY:
        return [Reason(kind="approval", detail="the plan of its task waits for somebody to approve it")]
    match row.status:
        case SubtaskStatus.READY:
            return list(_dependencies(row))
        case SubtaskStatus.AWAITING_APPROVAL:
            return [Reason(kind="approval", detail="it waits for somebody to approve it")]
        case SubtaskStatus.FAILED:
            return [_backoff(row)]
        case SubtaskStatus.QUEUED:
            # What a breaker holds is not taken from the queue, whatever its place there.
            if breaker is not None and not row.is_leased:
                return [_breaker(row, breaker)]
            return list(_queued(row, scheduler, limited, now))
    return []


def _dependencies(row: WaitingRow) -> Iterator[Reason]:
    if row.open:
        named = ", ".join(f"{each.key} ({each.status})" for each in row.open)
        more = row.open_count - len(row.open)
        count = "1 dependency is" if row.open_count == 1 else f"{row.open_count} dependencies are"
        yield Reason(kind="dependency", detail=f"{count} not done: {named}" + (f" and {more} more" if more else ""))


def _backoff(row: WaitingRow) -> Reason:
    error = row.error or {}
    said = f"attempt {row.attempt} failed with {error.get('code')}: {error.get('message')}"
    if error.get("code") == QUOTA_EXCEEDED:
        return Reason(kind="quota", detail=f"a limit kept it from calling a model; {said}", until=row.not_before)
    if error.get("code") == BREAKER_OPEN:
        return Reason(kind="breaker", detail=f"the breaker of its tool is open; {said}", until=row.not_before)
    return Reason(kind="backoff", detail=said, until=row.not_before)


def _breaker(row: WaitingRow, breaker: BreakerView) -> Reason:
    until = None if breaker.retry_at is None else datetime.fromtimestamp(breaker.retry_at, UTC)
    if breaker.state == "half_open":
        detail = f"the breaker of {row.tool} is half open: one other subtask looks whether the tool works again"
    elif until is None:
        detail = f"the breaker of {row.tool} is open until somebody closes it"
    else:
        detail = f"the breaker of {row.tool} is open: the tool failed too often"
    return Reason(kind="breaker", detail=detail, until=until)


def _queued(row: WaitingRow, scheduler: Waiting | None, limited: Limited | None, now: datetime) -> Iterator[Reason]:
    if limited is not None:
        yield _limit(limited.limit, limited.free_in_s, now)
    elif scheduler is not None and scheduler.limit is not None:
        reason = _limit(scheduler.limit, scheduler.limit_in_s, now)
        error = row.error or {}
        # It asked for more than there is, and how much that was only its attempt knows.
        said = f"; attempt {row.attempt}: {error.get('message')}" if error.get("code") == QUOTA_EXCEEDED else ""
        yield replace(reason, detail=reason.detail + said)
    if scheduler is not None and (held := _resources(row, scheduler, now)) is not None:
        yield held
    if row.is_leased:
        if scheduler is None:
            detail = "it was handed to Ray and starts as soon as a worker takes it; the scheduler can't be asked now"
            yield Reason(kind="resources", detail=detail)
        return
    if row.place is not None:
        yield _queue(row.place, scheduler, now)


def _limit(limit: str, free_in_s: float | None, now: datetime) -> Reason:
    until = None if free_in_s is None else now + timedelta(seconds=free_in_s)
    if limit == _UNKNOWN:
        return Reason(kind="limit", detail="what its user has used so far is still being read", until=until)
    level, _, name = limit.rpartition(".")
    whose = f"{name} of its {level or 'user'}"
    if name in _QUOTAS:
        return Reason(kind="quota", detail=f"{whose} is spent: only a higher one helps", until=None)
    return Reason(kind="limit", detail=f"{whose} is reached", until=until)


def _resources(row: WaitingRow, scheduler: Waiting, now: datetime) -> Reason | None:
    shape = ResourceShape.from_json(orjson.loads(row.shape))
    if not scheduler.nodes:
        return Reason(kind="resources", detail="the scheduler knows of no live node yet")
    if not scheduler.fits:
        gives_up_in_s = scheduler.gives_up_in_s
        return Reason(
            kind="resources",
            detail=f"no node that there is or could be started offers what it asks for ({shape}): it is about to fail",
            until=None if gives_up_in_s is None else now + timedelta(seconds=gives_up_in_s),
        )
    if row.is_leased or scheduler.handed_over:
        detail = f"it was handed to Ray and starts as soon as a node has room for it ({shape}) and a worker is there"
        return Reason(kind="resources", detail=detail)
    if not scheduler.room:
        return Reason(kind="resources", detail=f"no node has room for it now ({shape}): others are running")
    return None


def _queue(place: Place, scheduler: Waiting | None, now: datetime) -> Reason:
    more = "more than " if place.ahead >= COUNTED else ""
    detail = f"{more}{place.ahead} queued subtasks come first, {place.ahead_alike} of them ask for the same resources"
    if scheduler is None:
        detail += "; the scheduler can't be asked now, and may know more"
    elif scheduler.is_held:
        detail += "; something that a start needs was away, it is asked for again in a moment"
    until = None
    if place.started and not more:
        until = now + timedelta(seconds=(place.ahead + 1) * THROUGHPUT_S / place.started)
        detail += f"; {place.started} attempts were started in the last minute"
    return Reason(kind="queue", detail=detail, until=until)
