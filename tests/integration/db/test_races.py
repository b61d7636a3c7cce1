"""Writers of one task at the same time: one wins, in an order that every reader sees."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from rayloom.dag.errors import ErrorInfo
from rayloom.db import attempts, events, leases, task_moves
from rayloom.db.incarnations import begin_incarnation
from tests.fakes.refusals import refusals
from tests.integration.db.spine import BROKEN, Spine, outcome

ROUNDS = 40
LATE = ErrorInfo(code="DEADLINE_EXCEEDED", error_class="user", message="too late", retryable=False)


async def _end(spine: Spine, made: Any) -> task_moves.Ended:
    return await task_moves.end_task(
        spine.engine, made.task_id, status="FAILED", error=LATE, reason="DEADLINE_EXCEEDED"
    )


async def test_an_end_from_outside_and_the_last_outcome_exactly_one_wins(spine: Spine) -> None:
    won = set()
    for _ in range(ROUNDS):
        made = await spine.submit({"a": [], "b": []})
        claimed = await spine.claim(made.task_id)
        calls: list[Awaitable[Any]] = [spine.succeed(*claimed.values()), _end(spine, made)]
        random.shuffle(calls)
        both = await asyncio.gather(*calls)
        committed = next(one for one in both if isinstance(one, attempts.Committed))
        ended = next(one for one in both if isinstance(one, task_moves.Ended))
        status = (await spine.task(made.task_id))["status"]
        won.add(status)
        if status == "COMPLETED":
            assert ended.refused_status == "COMPLETED"
            assert ended.stopped == ()
            assert committed.closed == ((str(made.task_id), "COMPLETED"),)
        else:
            assert status == "FAILED"
            assert ended.refused_status is None
            assert {id_ for id_, _ in ended.stopped} == {one.sub_task_id for one in claimed.values()}
            assert committed.accepted == frozenset()
            assert committed.closed == ()
            assert set((await spine.statuses(made.task_id)).values()) == {"CANCELLED"}
    assert won <= {"COMPLETED", "FAILED"}


async def test_writers_of_many_tasks_never_wait_for_each_other_in_a_circle(spine: Spine) -> None:
    """Claims, outcomes, phases, releases, ends and sweeps over the same tasks, in every order of their rows."""
    other = Spine(spine.engine, spine.user_id)
    await begin_incarnation(spine.engine, other.incarnation, actor="another", exclusive=False)
    for round_ in range(6):
        made = [await spine.submit({f"s{n}": [] for n in range(4)} | {"j": ["s0", "s1"]}) for _ in range(8)]
        claimed = [one for task in made for one in (await spine.claim(task.task_id, "s0", "s1")).values()]
        handed = [one for task in made for one in (await other.claim(task.task_id, "s2", running=False)).values()]
        free = [(await spine.ids(task.task_id))["s3"] for task in made]

        def mixed(items: list[Any]) -> list[Any]:
            return random.sample(items, len(items))

        calls: list[Awaitable[Any]] = [
            spine.succeed(*mixed(claimed)),
            spine.fail(*mixed(claimed)[:5], retry_in_s=0),
            attempts.complete(
                spine.engine,
                [spine.ending(one, outcome(error=BROKEN, verdict="lost"), retry_in_s=0) for one in mixed(claimed)],
            ),
            other.succeed(*mixed(handed)),
            leases.release(spine.engine, [(one.sub_task_id, 1) for one in mixed(handed)]),
            leases.release(spine.engine, [(one.sub_task_id, 1) for one in mixed(handed)]),
            leases.recover(spine.engine, [other.incarnation]),
            leases.requeue_due(spine.engine),
            attempts.claim(spine.engine, [(id_, True) for id_ in mixed(free)], incarnation=spine.incarnation),
            attempts.claim(spine.engine, [(id_, False) for id_ in mixed(free)], incarnation=other.incarnation),
            *(attempts.begin(spine.engine, one.sub_task_id, 1, "w", "r") for one in mixed(handed)),
            *(attempts.report_phase(spine.engine, one.sub_task_id, 1, "EXECUTING", "w", "r") for one in mixed(claimed)),
            *(_end(spine, task) for task in mixed(made)[: round_ % 4]),
        ]
        random.shuffle(calls)
        # A deadlock would be raised here: the server fails one of the two.
        await asyncio.gather(*calls)
        await spine.audit()


async def test_a_reader_that_goes_on_from_an_id_misses_no_event(spine: Spine) -> None:
    made = await spine.submit({"root": []} | {f"s{n}": ["root"] for n in range(40)})
    seen: list[int] = []

    async def read() -> None:
        last, is_last = 0, False
        while not is_last:
            page = await events.after(spine.engine, made.task_id, last, limit=50)
            seen.extend(event.id for event in page.events)
            last = seen[-1] if seen else 0
            is_last = page.is_last

    reader = asyncio.ensure_future(read())
    await spine.succeed((await spine.claim(made.task_id))["root"])

    async def one(claimed: attempts.Claimed) -> None:
        await attempts.begin(spine.engine, claimed.sub_task_id, claimed.attempt, "w", "r")
        await asyncio.gather(
            attempts.report_phase(spine.engine, claimed.sub_task_id, claimed.attempt, "EXECUTING", "w", "r"),
            attempts.report_phase(spine.engine, claimed.sub_task_id, claimed.attempt, "POST_PROCESS", "w", "r"),
        )
        await spine.succeed(claimed)

    handed = await spine.claim(made.task_id, running=False)
    await asyncio.gather(*(one(claimed) for claimed in handed.values()))
    await reader
    rows = await spine.rows("SELECT id FROM task_events WHERE task_id = $1 ORDER BY id", made.task_id)
    assert seen == [row["id"] for row in rows]


async def test_one_batch_recorded_by_two_at_once_counts_once(spine: Spine) -> None:
    for _ in range(10):
        made = await spine.submit({f"s{n}": [] for n in range(6)} | {"join": [f"s{n}" for n in range(6)]})
        claimed = list((await spine.claim(made.task_id)).values())
        first, second, third = await asyncio.gather(
            spine.succeed(*claimed), spine.succeed(*reversed(claimed)), spine.succeed(*claimed[:3])
        )
        assert not first.accepted & second.accepted
        assert not third.accepted & (first.accepted | second.accepted)
        assert len(first.queued + second.queued + third.queued) == 1
        assert (await spine.statuses(made.task_id))["join"] == "QUEUED"


async def test_two_sweeps_queue_a_back_off_once(spine: Spine) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(30)})
    await spine.fail(*(await spine.claim(made.task_id)).values(), retry_in_s=0)
    swept = await asyncio.gather(*(leases.requeue_due(spine.engine) for _ in range(5)))
    queued = [item.sub_task_id for committed in swept for item in committed.queued]
    assert len(queued) == len(set(queued)) == 30
    events_ = await spine.events(made.task_id, "s0")
    assert events_.count(("FAILED", "QUEUED")) == 1


async def test_a_task_is_cancelled_once(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"]})
    await spine.claim(made.task_id)
    cancels = [
        task_moves.end_task(spine.engine, made.task_id, status="CANCELLED", error=None, reason="no\0more")
        for _ in range(5)
    ]
    ended = await asyncio.gather(*cancels)
    assert sorted(str(one.refused_status) for one in ended) == ["CANCELLED"] * 4 + ["None"]
    assert [one.stopped for one in ended if one.stopped] == [(((await spine.ids(made.task_id))["a"], 1),)]
    assert (await spine.events(made.task_id)).count(("PROCESSING", "CANCELLED")) == 1
    absent = await task_moves.end_task(
        spine.engine, spine.incarnation, status="CANCELLED", error=None, reason="no such task"
    )
    assert not absent.found


async def test_an_end_that_comes_too_late_is_told_once(spine: Spine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = await spine.submit({"a": []})
    await spine.succeed((await spine.claim(made.task_id))["a"])
    for error in (None, LATE, None):
        ended = await task_moves.end_task(
            spine.engine, made.task_id, status="FAILED" if error else "CANCELLED", error=error, reason="too late"
        )
        assert ended.refused_status == "COMPLETED"
    told = {"task_id": str(made.task_id), "from": "COMPLETED"}
    assert refusals(caplog) == [told | {"event": event} for event in ("cancel", "gave_up", "cancel")]
    # To cancel what is cancelled asks for no transition.
    caplog.clear()
    other = await spine.submit({"a": []})
    for _ in range(2):
        await task_moves.end_task(spine.engine, other.task_id, status="CANCELLED", error=None, reason="no more")
    assert refusals(caplog) == []
