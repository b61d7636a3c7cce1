"""A task is written down once, whole, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Refused, Stale, Transient, UserError
from rayloom.db import plan_rows, submit, task_moves
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import dump, make_engine
from rayloom.db.settings import DatabaseSettings
from rayloom.db.submit import NewTask, accept_plan, submit_task
from tests.integration.db.spine import Spine, plan_of

TABLES = ("tasks", "sub_tasks", "task_events", "idempotency_keys")


async def _counts(spine: Spine) -> dict[str, int]:
    return {table: (await spine.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"] for table in TABLES}


async def test_what_is_submitted_is_found(spine: Spine) -> None:
    made = await spine.submit(
        {"a": [], "b": ["a"], "c": ["a", "b"]}, context={"晴": [1]}, labels={"team": "x"}, deadline_s=60.0
    )
    assert not made.replayed
    task = await spine.task(made.task_id)
    assert (task["status"], task["subtask_count"], task["open_count"]) == ("PROCESSING", 3, 3)
    assert (task["context"], task["labels"]) == ({"晴": [1]}, {"team": "x"})
    assert (task["deadline_at"] - task["created_at"]).total_seconds() == 60
    assert task["plan_meta"] == {"source": "given", "width": 1, "critical_path": ["a", "b", "c"]}
    assert await spine.statuses(made.task_id) == {"a": "QUEUED", "b": "READY", "c": "READY"}
    ids = await spine.ids(made.task_id)
    assert [queued.sub_task_id for queued in made.queued] == [ids["a"]]
    row = await spine.subtask(made.task_id, "c")
    assert (row["dependencies"], row["pending_dependencies"], row["dependents"]) == (["a", "b"], 2, [])
    assert [str(id_) for id_ in (await spine.subtask(made.task_id, "a"))["dependents"]] == [ids["b"], ids["c"]]
    edges = await spine.rows("SELECT key, depends_on FROM task_dependencies WHERE task_id = $1", made.task_id)
    assert sorted((edge["key"], edge["depends_on"]) for edge in edges) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert await spine.events(made.task_id) == [
        (None, "PENDING"), ("PENDING", "SPLITTING"), ("SPLITTING", "READY"), ("READY", "PROCESSING"),
    ]  # fmt: skip


@pytest.mark.parametrize("unfit", [{"context": {"a": "\0"}}, {"labels": {"a\0": ""}}])
async def test_a_task_that_the_database_does_not_take_is_its_users_error(spine: Spine, unfit: dict[str, Any]) -> None:
    before = await _counts(spine)
    with pytest.raises(UserError, match="the database can't store this task: ") as refused:
        await spine.submit({"a": []}, **unfit)
    assert refused.value.code == "TASK_UNSTORABLE"
    assert await _counts(spine) == before


async def test_a_hundred_equal_requests_at_once_make_one_task(spine: Spine) -> None:
    more: dict[str, Any] = {"idempotency_key": "k", "fingerprint": b"body"}
    made = await asyncio.gather(*(spine.submit({"a": [], "b": ["a"]}, **more) for _ in range(100)))
    assert len({one.task_id for one in made}) == 1
    assert sorted(one.replayed for one in made) == [False] + [True] * 99
    assert [len(one.queued) for one in made if one.replayed] == [0] * 99
    rows = await spine.rows("SELECT id FROM tasks WHERE user_id = $1", spine.user_id)
    assert [row["id"] for row in rows] == [made[0].task_id]


async def test_a_key_belongs_to_one_body_of_one_user(spine: Spine) -> None:
    made = await spine.submit({"a": []}, idempotency_key="k", fingerprint=b"one")
    before = await _counts(spine)
    with pytest.raises(Refused) as refused:
        await spine.submit({"a": []}, idempotency_key="k", fingerprint=b"two")
    assert refused.value.code == "IDEMPOTENCY_MISMATCH"
    assert await _counts(spine) == before
    neighbour = await Spine.of_new_user(spine.engine)
    theirs = await neighbour.submit({"a": []}, idempotency_key="k", fingerprint=b"two")
    assert not theirs.replayed
    assert theirs.task_id != made.task_id


class _CutError(Exception):
    """The connection, the process, anything, ends here."""


@pytest.mark.parametrize("calls", range(1, 8))
async def test_an_end_in_the_middle_leaves_nothing(spine: Spine, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    left = calls

    def breaking(value: Any) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise _CutError
        return dump(value)

    before = await _counts(spine)
    more: dict[str, Any] = {"idempotency_key": "k", "fingerprint": b"body"}
    for module in (submit, plan_rows):
        monkeypatch.setattr(module, "dump", breaking)
    with pytest.raises(_CutError):
        await spine.submit({f"s{n}": [] for n in range(9)}, **more)
    assert await _counts(spine) == before
    # The key is free again: who asks once more gets the task.
    monkeypatch.undo()
    assert not (await spine.submit({"a": []}, **more)).replayed


@pytest.mark.parametrize("wait_s", [0.0, 0.01, 0.03, 0.1])
async def test_a_caller_that_goes_away_leaves_all_or_nothing(spine: Spine, wait_s: float) -> None:
    call = asyncio.ensure_future(spine.submit({f"s{n}": [] for n in range(300)}))
    await asyncio.wait([call], timeout=wait_s)
    call.cancel()
    await asyncio.wait([call])
    rows = await spine.rows("SELECT id, subtask_count FROM tasks WHERE user_id = $1", spine.user_id)
    assert [row["subtask_count"] for row in rows] in ([], [300])
    # The server itself takes a moment to see that a connection was cut.
    busy = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
    async with asyncio.timeout(60):
        while await spine.rows(busy):  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.01)


async def test_ten_thousand_subtasks_are_one_task(spine: Spine) -> None:
    edges = {f"s{n}": [f"s{(n - 1) // 2}", f"s{n // 3}"] if n > 1 else [] for n in range(10_000)}
    made = await spine.submit({key: sorted(set(above)) for key, above in edges.items()})
    assert len(made.queued) == 2
    (row,) = await spine.rows(
        "SELECT count(*) AS n, sum(cardinality(dependents)) AS down, sum(pending_dependencies) AS up, "
        "sum(jsonb_array_length(dependencies)) AS named FROM sub_tasks WHERE parent_id = $1",
        made.task_id,
    )
    assert row["n"] == 10_000
    assert row["down"] == row["up"] == row["named"] == sum(len(set(above)) for above in edges.values())
    task = await spine.task(made.task_id)
    assert (task["subtask_count"], task["open_count"]) == (10_000, 10_000)
    await spine.fail((await spine.claim(made.task_id))["s0"])
    assert list((await spine.statuses(made.task_id)).values()).count("SKIPPED") >= 9_990
    # The audit joins all of them, and would be planned for the few rows that there were before.
    await spine.rows("ANALYZE")


async def test_a_task_is_split_by_one_and_taken_over_when_that_one_is_dead(spine: Spine) -> None:
    new = NewTask(user_id=spine.user_id, title="t", prompt="do it", priority=9, context={"a": 1}, options={"b": 2})
    made = await submit_task(spine.engine, spine.blobs, new)
    assert made.queued == ()
    mine, other, third = spine.incarnation, uuid7(), uuid7()

    async def take(who: Any, *dead: Any) -> list[Any]:
        found = await task_moves.claim_tasks(spine.engine, incarnation=who, dead=dead, limit=8)
        return [task.task_id for task in found]

    got = await asyncio.gather(*(take(who) for who in (mine, other, third)))
    assert sorted(len(found) for found in got) == [0, 0, 1]
    holder = (mine, other, third)[[len(found) for found in got].index(1)]
    heir = other if holder is not other else mine
    assert await take(heir) == []
    assert await take(heir, holder) == [made.task_id]
    plan = plan_of({"a": [], "b": ["a"]})
    with pytest.raises(Stale) as stale:
        await accept_plan(spine.engine, spine.blobs, made.task_id, plan, meta={}, incarnation=holder)
    assert stale.value.code == "TASK_MOVED_ON"
    (queued,) = await accept_plan(
        spine.engine, spine.blobs, made.task_id, plan, meta={"source": "outline"}, incarnation=heir
    )
    assert queued.sub_task_id == (await spine.ids(made.task_id))["a"]
    with pytest.raises(Stale):
        await accept_plan(spine.engine, spine.blobs, made.task_id, plan, meta={}, incarnation=heir)
    task = await spine.task(made.task_id)
    assert (task["status"], task["incarnation"], task["plan_meta"]["source"]) == ("PROCESSING", None, "outline")


async def test_urgent_and_old_tasks_are_split_first(spine: Spine) -> None:
    made = {}
    for priority in (3, 9, 1, 9):
        new = NewTask(user_id=spine.user_id, title="t", prompt="p", priority=priority)
        made[(await submit_task(spine.engine, spine.blobs, new)).task_id] = priority
    taken: list[int] = []
    while found := await task_moves.claim_tasks(spine.engine, incarnation=spine.incarnation, dead=(), limit=2):
        taken += sorted((made[task.task_id] for task in found), reverse=True)
    assert taken == [9, 9, 3, 1]


async def test_overdue_tasks_are_found(spine: Spine) -> None:
    late = await spine.submit({"a": []}, deadline_s=0.000001)
    await spine.submit({"a": []}, deadline_s=3600.0)
    ended = await spine.submit({"a": []}, deadline_s=0.000001)
    await task_moves.end_task(spine.engine, ended.task_id, status="CANCELLED", error=None, reason="no more")
    assert await task_moves.expired_tasks(spine.engine) == (late.task_id,)


async def test_a_database_that_is_away_is_said_so(blobs: BlobStore) -> None:
    nowhere = DatabaseSettings.model_validate({"url": "postgresql+asyncpg://x:y@127.0.0.1:1/z"})
    away = make_engine(nowhere.primary_dsn(), pool_size=1, max_overflow=0, name="test")
    with pytest.raises(Transient) as told:
        await submit_task(away, blobs, NewTask(user_id=uuid7(), title="t", prompt="p", priority=5))
    assert told.value.code == "DATABASE_UNAVAILABLE"
    await away.dispose()
