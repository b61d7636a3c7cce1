"""The dead-letter queue: looked through, grouped by cause, retried, put away; one by one or by filter."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.db import forks, letters, retries
from rayloom.db.attempts import Committed
from rayloom.db.letters import LetterFilter
from rayloom.db.reads import Record
from rayloom.serve import cursors, letter_shapes
from rayloom.serve.apart import shown_input
from rayloom.serve.auth import Me, Owner
from rayloom.serve.bodies import Body, expect_no_body, read_body, read_optional, schema_of
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.intake import MAX_LABELS, Judge
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import Problem, not_found
from rayloom.serve.reruns import new_input, no_plan
from rayloom.serve.routes.tasks import label_of, wake

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"])
BATCH: Final = 1000
"""Letters in one transaction of a bulk request."""
BULK_TIMEOUT_S: Final = 600.0
"""What a bulk request has done when it is broken off is done; the same request goes on where it stopped."""
STATUSES: Final = ("open", "retried", "discarded")
RETRIED: Final = "its dead letter is retried"

_Word = Annotated[str, StringConstraints(min_length=1, max_length=300)]
_QueryWord = Annotated[str | None, Query(min_length=1, max_length=300)]


class BulkFilter(Body):
    """Which open letters a bulk request is about; an empty one means all."""

    status: Literal["open"] = "open"
    tool: _Word | None = None
    task_id: _Word | None = None
    fingerprint: _Word | None = None
    code: _Word | None = None
    created_after: _Word | None = None
    created_before: _Word | None = None
    labels: Annotated[dict[_Word, str], Field(max_length=MAX_LABELS)] = Field(default_factory=dict)


class BulkBody(Body):
    """The body of a bulk request. ``dry_run`` only counts."""

    filter: BulkFilter
    dry_run: bool = False


class RetryBody(Body):
    """The body of a retry: another input, if any."""

    input: dict[str, Any] | None = None


@router.get("")
async def list_letters(
    request: Request,
    user: Owner,
    status: Annotated[list[str] | None, Query(description="one or several, by commas; `open` if not given")] = None,
    tool: _QueryWord = None,
    task_id: _QueryWord = None,
    fingerprint: _QueryWord = None,
    code: Annotated[str | None, Query(max_length=300, description="the code of the error")] = None,
    created_after: str | None = None,
    created_before: str | None = None,
    label: Annotated[
        list[str] | None, Query(max_length=64, description="name=value of the task, all must hold")
    ] = None,
    group: Annotated[Literal["fingerprint"] | None, Query(description="count letters of equal cause")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Dead letters, newest first; or grouped by their causes, the most frequent first."""
    wanted = LetterFilter(
        statuses=cursors.choices("status", status, STATUSES) or ("open",),
        tool=tool,
        task_id=cursors.uuid_in("/query/task_id", task_id),
        fingerprint=fingerprint,
        code=code,
        created_after=cursors.moment("created_after", created_after),
        created_before=cursors.moment("created_before", created_before),
        labels=tuple(label_of(item) for item in label or ()),
    )
    current = deps_of(request).backends.reads.current
    if group is not None:
        seen = None if cursor is None else cursors.decode("letter-groups", cursor, (int, str))
        # No more letters than that can be counted.
        beyond = None if seen is None else (max(0, min(int(seen[0]), 2**31 - 1)), str(seen[1]))
        groups = await current(
            lambda source: letters.group_letters(source, user_id=user, wanted=wanted, after=beyond, limit=limit + 1)
        )
        last = groups[limit - 1] if len(groups) > limit else None
        next_cursor = None if last is None else cursors.encode("letter-groups", last.count, last.fingerprint)
        return _listed([letter_shapes.group(each) for each in groups[:limit]], next_cursor)
    after = cursors.decode_moment("dead-letters", cursor)
    rows = await current(
        lambda source: letters.list_letters(source, user_id=user, wanted=wanted, after=after, limit=limit + 1)
    )
    more = len(rows) > limit
    next_cursor = cursors.encode_moment("dead-letters", rows[limit - 1].at, rows[limit - 1].id) if more else None
    return _listed([letter_shapes.letter(row) for row in rows[:limit]], next_cursor)


def _listed(items: list[dict[str, Any]], next_cursor: str | None) -> Response:
    return json_answer({"items": items, "next_cursor": next_cursor})


@router.post("/retry", status_code=202, openapi_extra=schema_of(BulkBody))
async def retry_many(request: Request, user: Owner) -> Response:
    """Retry all open letters that the filter gives."""
    deps = deps_of(request)

    async def retry(ids: Sequence[UUID]) -> int:
        committed = await retries.retry_letters(deps.backends.primary, ids, reason=RETRIED)
        await offer(deps, committed)
        return len(committed.queued)

    return await _in_bulk(request, user, retry, "retried", 202)


@router.post("/discard", openapi_extra=schema_of(BulkBody))
async def discard_many(request: Request, user: Owner) -> Response:
    """Put away all open letters that the filter gives; their subtasks stay BLOCKED."""
    engine = deps_of(request).backends.primary
    return await _in_bulk(request, user, lambda ids: retries.discard_letters(engine, ids), "discarded", 200)


async def _in_bulk(
    request: Request, user: UUID, act: Callable[[Sequence[UUID]], Awaitable[int]], verb: str, status: int
) -> Response:
    body = await read_body(request, BulkBody)
    given = body.filter
    wanted = LetterFilter(
        statuses=(given.status,),
        tool=given.tool,
        task_id=cursors.uuid_in("/filter/task_id", given.task_id),
        fingerprint=given.fingerprint,
        code=given.code,
        created_after=cursors.moment("created_after", given.created_after, under="/filter"),
        created_before=cursors.moment("created_before", given.created_before, under="/filter"),
        labels=tuple(given.labels.items()),
    )
    engine = deps_of(request).backends.primary
    call_of(request).allow(BULK_TIMEOUT_S)
    if body.dry_run:
        matched = await letters.count_letters(engine, user_id=user, wanted=wanted)
        return json_answer({"matched": matched, "accepted": 0})
    matched = accepted = 0
    after: letters.Place | None = None
    while True:
        # From new to old: what fails anew meanwhile is newer than the place, and is not taken again.
        page = await letters.letter_places(engine, user_id=user, wanted=wanted, after=after, limit=BATCH)
        if page:
            matched += len(page)
            accepted += await act([id_ for _, id_ in page])
            after = page[-1]
        if len(page) < BATCH:
            break
    log.info(f"letters.{verb}", extra={"user_id": str(user), "matched": matched, "accepted": accepted})
    return json_answer({"matched": matched, "accepted": accepted}, status)


@router.get("/{letter_id}")
async def one_letter(request: Request, letter_id: str, user: Owner) -> Response:
    """One letter, with its input and all attempts."""
    deps = deps_of(request)
    found = await letters.letter_with_attempts(deps.backends.primary, cursors.uuid_of(letter_id, "this letter"), user)
    if found is None:
        raise not_found("this letter")
    row, attempts = found
    given = await shown_input(deps, row, row.input)
    return json_answer(letter_shapes.letter_in_full(row, attempts, given.as_json()))


@router.post("/{letter_id}/retry", status_code=202, openapi_extra=schema_of(RetryBody, required=False))
async def retry_one(request: Request, letter_id: str, user: Owner, me: Me) -> Response:
    """Run the subtask of a letter again, with another input if one is given. Completed work is kept."""
    deps = deps_of(request)
    body = await read_optional(request, RetryBody)
    row = await _letter(deps, letter_id, user)
    if refusal := letter_shapes.refused_retry(row):
        raise refusal
    if body.input is not None and row.require_approval:
        raise Problem(409, letter_shapes.APPROVED, code="NEEDS_APPROVAL")
    if body.input is None:
        committed = await retries.retry_letters(deps.backends.primary, [row.id], reason=RETRIED)
    else:
        stored = await forks.stored_plan(deps.backends.primary, row.task_id, user)
        if stored is None or stored.plan is None:
            raise no_plan(row.task_status)
        judge = Judge(deps, me)
        await judge.prepare()
        given = await new_input(judge, stored, row.subtask, body.input)
        reason = f"{RETRIED} with another input"
        committed = await retries.retry_with_input(
            deps.backends.primary, deps.backends.blobs, row.id, given, reason=reason
        )
    if not committed.queued:
        # Somebody was faster, or its time is over.
        refusal = letter_shapes.refused_retry(await _letter(deps, letter_id, user))
        raise refusal or Problem(409, letter_shapes.DEADLINE_PASSED, code="DEADLINE_PASSED")
    await offer(deps, committed)
    log.info("letter.retried", extra={"letter_id": str(row.id), "changed": body.input is not None})
    return json_answer({"id": row.id, "task_id": row.task_id, "subtask": row.subtask, "status": "retried"}, 202)


@router.post("/{letter_id}/discard")
async def discard_one(request: Request, letter_id: str, user: Owner) -> Response:
    """Put a letter away; its subtask stays BLOCKED."""
    await expect_no_body(request)
    deps = deps_of(request)
    row = await _letter(deps, letter_id, user)
    if not await retries.discard_letters(deps.backends.primary, [row.id]):
        row = await _letter(deps, letter_id, user)
        if row.status != "discarded":
            raise Problem(409, f"the letter was {row.status}", code="WRONG_STATE")
    return json_answer({"id": row.id, "task_id": row.task_id, "subtask": row.subtask, "status": "discarded"})


async def _letter(deps: Deps, letter_id: str, user: UUID) -> Record:
    wanted = cursors.uuid_of(letter_id, "this letter")
    row = await letters.letter(deps.backends.primary, wanted, user)
    if row is None:
        raise not_found("this letter")
    return row


async def offer(deps: Deps, committed: Committed) -> None:
    """Tell the queue, and whoever follows the tasks, what is QUEUED again."""
    if committed.queued and not await deps.backends.offer(committed.queued, *committed.touched):
        await wake(deps)
