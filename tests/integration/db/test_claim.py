"""Leases: taken by one, begun once, given back, taken back."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.values import JsonObject
from rayloom.db import attempts, leases
from rayloom.db.attempts import Claimed
from rayloom.db.forks import TakenOver
from rayloom.db.incarnations import begin_incarnation, dead_with_leases, end_incarnation, heartbeat
from rayloom.db.retries import NewInput, retry_with_input
from tests.integration.db.spine import BROKEN, FALLBACK, Spine, outcome


@pytest.fixture
async def other(spine: Spine) -> Spine:
    """Another scheduler on the same tasks."""
    other = Spine(spine.engine, spine.user_id)
    await begin_incarnation(spine.engine, other.incarnation, actor="another test", exclusive=False)
    return other


async def test_a_claim_gives_all_that_an_attempt_needs(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"]})
    claimed = (await spine.claim(made.task_id, "a"))["a"]
    assert (claimed.key, claimed.tool, claimed.attempt, claimed.retry_count) == ("a", "t", 1, 0)
    assert (claimed.task_id, claimed.user_id) == (str(made.task_id), str(spine.user_id))
    assert (claimed.timeout_s, claimed.max_retries, claimed.input, claimed.referred) == (300, 3, "{}", ())
    assert (claimed.shape, claimed.score) == (made.queued[0].shape, made.queued[0].score)
    row = await spine.subtask(made.task_id, "a")
    assert (row["status"], row["phase"], row["incarnation"]) == ("RUNNING", "PREPARE_ENV", spine.incarnation)


THINKS: JsonObject = {"type": "REASONING", "tool": None, "instruction": "Think hard.", "skills": ["s"]}


async def test_what_a_model_does_is_claimed_with_what_it_is_told(spine: Spine) -> None:
    options: JsonObject = {"tools": {"allow": ["t"], "deny": ["u"]}}
    made = await spine.submit({"a": [], "b": []}, {"a": THINKS | FALLBACK}, options=options)
    claimed = await spine.claim(made.task_id)
    a, b = claimed["a"], claimed["b"]
    assert (a.tool, a.task_type, a.instruction, a.skills) == ("", "REASONING", "Think hard.", ("s",))
    assert json.loads(a.rules) == {"allow": ["t"], "deny": ["u"]}
    assert a.key_id == ""
    # A tool is told nothing of that.
    assert (b.tool, b.instruction, b.skills, b.rules, b.key_id) == ("t", "", (), "", "")
    await spine.fail(a)
    again = (await spine.claim(made.task_id, "a"))["a"]
    assert (again.tool, again.instruction, again.skills, again.rules) == ("u", "", (), "")


async def test_what_a_model_was_told_is_taken_over_and_stays_with_another_input(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"]}, {"a": THINKS, "b": THINKS})
    await attempts.complete(spine.engine, [spine.ending((await spine.claim(made.task_id, "a"))["a"], outcome(1))])
    over = TakenOver(task_id=made.task_id, keys=frozenset({"a"}))
    forked = await spine.submit({"a": [], "b": ["a"]}, {"a": THINKS, "b": THINKS}, taken_over=over)
    for key in "ab":
        row = await spine.subtask(forked.task_id, key)
        assert (row["instruction"], row["skills"]) == ("Think hard.", ["s"])
    b = (await spine.claim(made.task_id, "b"))["b"]
    await spine.fail(b)
    given = NewInput(value={"x": 1}, referred=(), dependencies=("a",))
    await retry_with_input(spine.engine, spine.blobs, UUID(b.sub_task_id), given, reason="again")
    again = (await spine.claim(made.task_id, "b"))["b"]
    assert (again.input, again.instruction, again.skills) == ('{"x": 1}', "Think hard.", ("s",))


@pytest.mark.parametrize("running", [True, False])
async def test_two_claimers_never_both_get_a_subtask(spine: Spine, other: Spine, running: bool) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(60)})
    ids = list((await spine.ids(made.task_id)).values())
    asks = []
    for claimer in (spine, other) * 4:
        order = random.sample(ids, len(ids))
        asks.append(attempts.claim(spine.engine, [(id_, running) for id_ in order], incarnation=claimer.incarnation))
    won = [one.sub_task_id for got in await asyncio.gather(*asks) for one in got]
    assert sorted(won) == sorted(ids)
    rows = await spine.rows("SELECT DISTINCT attempt FROM sub_tasks WHERE parent_id = $1", made.task_id)
    assert [row["attempt"] for row in rows] == [1]


async def test_only_what_is_queued_and_free_can_be_claimed(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"]})
    assert set(await spine.claim(made.task_id)) == {"a"}
    assert await spine.claim(made.task_id) == {}
    assert await attempts.claim(spine.engine, [(str(uuid7()), True)], incarnation=spine.incarnation) == ()


async def test_a_claim_ends_with_the_input_that_brings_it_to_its_bound(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await spine.submit({"a": [], "b": [], "c": []})
    await spine.rows(
        "UPDATE sub_tasks SET input_context = jsonb_build_object('é', repeat('é', 500)) WHERE parent_id = $1",
        made.task_id,
    )
    monkeypatch.setattr(attempts, "CLAIM_CHARS", 1_000)
    first = await spine.claim(made.task_id, "c", "b", "a")
    assert set(first) == {"c", "b"}
    assert attempts.may_have_left(list(first.values()))
    second = await spine.claim(made.task_id, "c", "b", "a")
    assert set(second) == {"a"}
    assert not attempts.may_have_left(list(second.values()))


async def test_an_input_that_cannot_be_given_is_found_among_many_and_taken_without_it(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(7)})
    bad = (await spine.ids(made.task_id))["s4"]
    claim = attempts._claim

    async def refusing(engine: Any, items: Any, incarnation: UUID, *, chars: int | None) -> tuple[Claimed, ...]:
        """As PostgreSQL does where the text of an input has more than 1 GB."""
        if chars is not None and any(id_ == bad for id_, _ in items):
            raise asyncpg.ProgramLimitExceededError("string buffer exceeds maximum allowed length")
        return await claim(engine, items, incarnation, chars=chars)

    monkeypatch.setattr(attempts, "_claim", refusing)
    claimed = await spine.claim(made.task_id)
    assert len(claimed) == 7
    assert {key for key, one in claimed.items() if one.unreadable} == {"s4"}
    assert "ProgramLimitExceededError: string buffer" in claimed["s4"].unreadable
    assert (await spine.subtask(made.task_id, "s4"))["status"] == "RUNNING"


async def test_what_is_handed_over_stays_queued_until_it_is_begun_once(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    claimed = (await spine.claim(made.task_id, running=False))["a"]
    assert not claimed.running
    row = await spine.subtask(made.task_id, "a")
    assert (row["status"], row["attempt"], row["incarnation"]) == ("QUEUED", 1, spine.incarnation)
    assert not await attempts.report_phase(spine.engine, claimed.sub_task_id, 1, "EXECUTING", "w", "r")
    for attempt in (0, 2):
        assert not await attempts.begin(spine.engine, claimed.sub_task_id, attempt, "w", "r")
    assert await attempts.begin(spine.engine, claimed.sub_task_id, 1, "w1", "r")
    assert not await attempts.begin(spine.engine, claimed.sub_task_id, 1, "w2", "r")
    assert await attempts.begin(spine.engine, claimed.sub_task_id, 1, "w1", "r"), "who has begun may say so again"
    row = await spine.subtask(made.task_id, "a")
    assert (row["status"], row["phase"], row["worker_id"]) == ("RUNNING", "PREPARE_ENV", "w1")
    assert await spine.events(made.task_id, "a") == [("PENDING", "READY"), ("READY", "QUEUED"), ("QUEUED", "RUNNING")]


async def test_a_phase_is_told_of_the_current_attempt_only(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    first = (await spine.claim(made.task_id))["a"]
    assert await attempts.report_phase(spine.engine, first.sub_task_id, 1, "EXECUTING", "w", "r")
    assert (await spine.subtask(made.task_id, "a"))["phase"] == "EXECUTING"
    await spine.fail(first, retry_in_s=0)
    await leases.requeue_due(spine.engine)
    await spine.claim(made.task_id)
    assert not await attempts.report_phase(spine.engine, first.sub_task_id, 1, "POST_PROCESS", "w", "r")
    assert (await spine.subtask(made.task_id, "a"))["phase"] == "PREPARE_ENV"


async def test_the_ray_task_of_an_attempt_is_kept_when_its_scheduler_dies(spine: Spine) -> None:
    made = await spine.submit({"told": [], "begun": [], "silent": []})
    claimed = await spine.claim(made.task_id, "told", "silent") | await spine.claim(
        made.task_id, "begun", running=False
    )
    assert await attempts.report_phase(spine.engine, claimed["told"].sub_task_id, 1, "EXECUTING", "w", "r1")
    assert await attempts.begin(spine.engine, claimed["begun"].sub_task_id, 1, "w", "r2")
    for _ in range(2):
        # What is claimed again has told nothing yet: the id of its last attempt is not that of this one.
        await leases.recover(spine.engine, [spine.incarnation])
        await spine.claim(made.task_id)
    logs = await spine.rows("SELECT attempt, ray_task_id FROM execution_logs WHERE task_id = $1", made.task_id)
    kept = sorted((log["attempt"], log["ray_task_id"] or "") for log in logs)
    assert kept == [(1, ""), (1, "r1"), (1, "r2"), (2, ""), (2, ""), (2, "")]


async def test_a_lease_given_back_is_free_and_its_attempt_over(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": []})
    handed = await spine.claim(made.task_id, "a", running=False)
    begun = await spine.claim(made.task_id, "b")
    wrong = [(handed["a"].sub_task_id, 2), (begun["b"].sub_task_id, 1), (str(uuid7()), 1)]
    assert await leases.release(spine.engine, wrong) == ()
    (queued,) = await leases.release(spine.engine, [(handed["a"].sub_task_id, 1)])
    assert queued in made.queued
    assert not await attempts.begin(spine.engine, handed["a"].sub_task_id, 1, "w", "r")
    again = await spine.claim(made.task_id, "a")
    assert again["a"].attempt == 2
    await spine.succeed(handed["a"], output="late")
    assert (await spine.statuses(made.task_id))["a"] == "RUNNING"
    await spine.succeed(again["a"], begun["b"])


async def test_what_is_unclaimed_was_never_claimed(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": [], "d": []}, {"b": FALLBACK})
    await spine.fail((await spine.claim(made.task_id, "b"))["b"])
    before = dict(await spine.subtask(made.task_id, "b")) | {"worker_id": None}
    handed = await spine.claim(made.task_id, "a", "b", running=False)
    runs = (await spine.claim(made.task_id, "c"))["c"]
    of_others = (await spine.claim(made.task_id, "d", running=False))["d"]
    ours = [(one.sub_task_id, one.attempt) for one in handed.values()]
    wrong = [(handed["a"].sub_task_id, 2), (runs.sub_task_id, 1), (str(uuid7()), 1)]
    assert await leases.unclaim(spine.engine, wrong, incarnation=spine.incarnation) == ()
    assert await leases.unclaim(spine.engine, [(of_others.sub_task_id, 1)], incarnation=uuid7()) == ()
    taken = await leases.unclaim(spine.engine, ours, incarnation=spine.incarnation)
    assert {item.sub_task_id for item in taken} == {id_ for id_, _ in ours}
    assert await leases.unclaim(spine.engine, ours, incarnation=spine.incarnation) == ()
    assert dict(await spine.subtask(made.task_id, "b")) == before
    again = await spine.claim(made.task_id, "a", "b")
    assert {key: (one.attempt, one.tool) for key, one in again.items()} == {"a": (1, "t"), "b": (2, "u")}
    await spine.succeed(*again.values(), runs, of_others)
    assert (await spine.subtask(made.task_id, "b"))["fallback_attempts"] == [2]


async def test_the_leases_of_the_dead_are_taken_back_and_spend_no_retry(spine: Spine, other: Spine) -> None:
    made = await spine.submit({"ran": [], "handed": [], "done": [], "theirs": [], "free": []})
    ran = (await spine.claim(made.task_id, "ran"))["ran"]
    await spine.claim(made.task_id, "handed", running=False)
    await spine.succeed((await spine.claim(made.task_id, "done"))["done"])
    await other.claim(made.task_id, "theirs")
    assert spine.incarnation not in await dead_with_leases(spine.engine)
    await end_incarnation(spine.engine, spine.incarnation)
    assert spine.incarnation in await dead_with_leases(spine.engine)

    taken = await leases.recover(spine.engine, [spine.incarnation])
    ids = await spine.ids(made.task_id)
    assert {queued.sub_task_id for queued in taken.queued} == {ids["ran"], ids["handed"]}
    assert await leases.recover(spine.engine, [spine.incarnation]) == attempts.Committed()
    assert await spine.statuses(made.task_id) == {
        "ran": "QUEUED", "handed": "QUEUED", "done": "COMPLETED", "theirs": "RUNNING", "free": "QUEUED",
    }  # fmt: skip
    assert (await spine.events(made.task_id, "ran"))[-2:] == [("RUNNING", "FAILED"), ("FAILED", "QUEUED")]
    (lost,) = await spine.rows("SELECT * FROM execution_logs WHERE sub_task_id = $1::uuid", ids["ran"])
    assert (lost["attempt"], lost["status"], lost["error"]["code"]) == (1, "LOST", "SCHEDULER_LOST")

    # The dead one's worker may still come to an end, and is not heard.
    await spine.succeed(ran, output="late")
    again = (await other.claim(made.task_id, "ran"))["ran"]
    assert (again.attempt, again.retry_count) == (2, 0)
    await spine.succeed(ran, output="later")
    await other.succeed(again, output="in time")
    assert (await spine.subtask(made.task_id, "ran"))["output_result"] == "in time"


async def test_what_was_lost_once_and_handed_over_again_is_not_lost_twice(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    await spine.claim(made.task_id, "a")
    await end_incarnation(spine.engine, spine.incarnation)
    await leases.recover(spine.engine, [spine.incarnation])
    await spine.claim(made.task_id, "a", running=False)
    events = await spine.events(made.task_id, "a")
    await leases.recover(spine.engine, [spine.incarnation])
    assert await spine.events(made.task_id, "a") == events


async def test_taking_back_is_bounded_and_goes_on(spine: Spine) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(7)})
    await spine.claim(made.task_id)
    await end_incarnation(spine.engine, spine.incarnation)
    sizes = [len((await leases.recover(spine.engine, [spine.incarnation], limit=3)).queued) for _ in range(4)]
    assert sizes == [3, 3, 1, 0]


async def test_back_offs_end_when_they_are_due(spine: Spine) -> None:
    made = await spine.submit({"soon": [], "later": []})
    claimed = await spine.claim(made.task_id)
    committed = await spine.fail(claimed["soon"], retry_in_s=0)
    assert committed.retry_in_s == 0
    await spine.fail(claimed["later"], retry_in_s=3600)
    due = await leases.requeue_due(spine.engine)
    assert [queued.sub_task_id for queued in due.queued] == [claimed["soon"].sub_task_id]
    assert await spine.statuses(made.task_id) == {"soon": "QUEUED", "later": "FAILED"}
    row = await spine.subtask(made.task_id, "soon")
    assert (row["retry_count"], row["attempt"], row["not_before"]) == (1, 1, None)
    assert await leases.requeue_due(spine.engine) == attempts.Committed()


async def test_held_leases_say_which_are_ours_and_which_overran(spine: Spine, other: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": []})
    mine = await spine.claim(made.task_id, "a", "b")
    theirs = await other.claim(made.task_id, "c")
    asked = [(one.sub_task_id, one.attempt) for one in (*mine.values(), *theirs.values())]
    asked.append((mine["a"].sub_task_id, 7))
    life = spine.incarnation
    held = await leases.held_leases(spine.engine, asked, incarnation=life, grace_s=0, silent_grace_s=60)
    assert held == {mine["a"].sub_task_id: None, mine["b"].sub_task_id: None}
    long_ago = "UPDATE sub_tasks SET worker_id = $2, started_at = now() - interval '301 s' WHERE id = $1"
    await spine.rows(long_ago, mine["b"].sub_task_id, None)
    await spine.rows(long_ago, mine["a"].sub_task_id, "w")
    held = await leases.held_leases(spine.engine, asked, incarnation=life, grace_s=0, silent_grace_s=60)
    assert held == {mine["a"].sub_task_id: "overran", mine["b"].sub_task_id: None}
    held = await leases.held_leases(spine.engine, asked, incarnation=life, grace_s=60, silent_grace_s=0)
    assert held == {mine["a"].sub_task_id: None, mine["b"].sub_task_id: "silent"}


async def test_a_silent_life_is_ended_by_another_and_its_own_heart_hears_of_it(spine: Spine, other: Spine) -> None:
    assert await heartbeat(spine.engine, spine.incarnation, lease_s=60)
    await spine.rows(
        "UPDATE schedulers SET heartbeat_at = now() - interval '61 s' WHERE incarnation = $1", spine.incarnation
    )
    assert await heartbeat(spine.engine, other.incarnation, lease_s=60)
    assert not await heartbeat(spine.engine, spine.incarnation, lease_s=60)


async def test_a_new_life_ends_earlier_ones_of_its_actor(spine: Spine, other: Spine) -> None:
    reborn = uuid7()
    await begin_incarnation(spine.engine, reborn, actor="another test", exclusive=False)
    assert not await heartbeat(spine.engine, other.incarnation, lease_s=60)
    assert await heartbeat(spine.engine, spine.incarnation, lease_s=60)
    await begin_incarnation(spine.engine, uuid7(), actor="a third", exclusive=True)
    assert not await heartbeat(spine.engine, spine.incarnation, lease_s=60)
    assert not await heartbeat(spine.engine, reborn, lease_s=60)


async def test_the_queue_is_read_in_order_page_by_page(spine: Spine) -> None:
    await spine.submit({f"s{n}": [f"s{n - 1}"] if n % 3 else [] for n in range(30)})
    seen: list[tuple[float, str]] = []
    after = None
    while page := await leases.queued_page(spine.engine, after=after, limit=4):
        seen += [(item.score, item.sub_task_id) for item in page]
        after = (page[-1].score, UUID(page[-1].sub_task_id))
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen) >= 10


async def test_the_queue_is_read_and_counted_by_shape(spine: Spine) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(9)} | {"later": ["s0"]})
    await spine.rows("UPDATE sub_tasks SET shape = $2 WHERE parent_id = $1 AND key < 's3'", made.task_id, "a shape")
    await spine.claim(made.task_id, "s0")
    ids = await spine.ids(made.task_id)
    page = await leases.queued_page(spine.engine, after=None, limit=5, shapes=["a shape", "none's"])
    assert {item.sub_task_id for item in page} == {ids["s1"], ids["s2"]}
    assert await leases.queued_page(spine.engine, after=None, limit=5, shapes=[]) == ()
    mine = str(spine.user_id)
    assert await leases.queued_page(spine.engine, after=None, limit=5, shapes=["a shape"], but_of=[mine]) == ()
    everybody = await leases.queued_page(spine.engine, after=None, limit=10_000)
    others = await leases.queued_page(spine.engine, after=None, limit=10_000, but_of=[mine])
    assert others == tuple(item for item in everybody if item.user_id != mine)
    assert (await leases.queued_counts(spine.engine))["a shape"] == 2


async def test_a_failed_attempt_tells_its_error(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    claimed = (await spine.claim(made.task_id))["a"]
    await attempts.complete(spine.engine, [spine.ending(claimed, outcome(error=BROKEN))])
    assert (await spine.subtask(made.task_id, "a"))["error"] == {
        "code": "BROKEN", "class": "transient", "message": "it broke", "retryable": True, "attempt": 1,
    }  # fmt: skip


async def test_a_life_that_is_over_claims_nothing(spine: Spine, other: Spine) -> None:
    made = await spine.submit({"a": []})
    await end_incarnation(spine.engine, spine.incarnation)
    assert await spine.claim(made.task_id) == {}
    assert (await other.claim(made.task_id)).keys() == {"a"}
