"""Outcomes, written down in one commit: what they free, block, skip and close."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.references import Outputs
from rayloom.dag.values import Json
from rayloom.db import attempts, leases, results
from rayloom.db.attempts import INLINE_BYTES, Committed
from rayloom.db.blobs import BlobStore
from rayloom.db.outputs import outputs
from tests.integration.db.spine import BROKEN, Edges, Spine, outcome

DIAMOND: Edges = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "tail": ["d"]}


@pytest.mark.parametrize("good_first", [True, False])
async def test_of_several_ends_of_one_attempt_the_first_counts(spine: Spine, good_first: bool) -> None:
    """However PostgreSQL would join them: a log that says one thing and a subtask that says the other can't be."""
    made = await spine.submit({f"s{n}": [] for n in range(40)})
    claimed = (await spine.claim(made.task_id)).values()
    good = [spine.ending(one, outcome("good")) for one in claimed]
    spent = [spine.ending(one, outcome(error=BROKEN)) for one in claimed]
    await attempts.complete(spine.engine, good + spent if good_first else spent + good)
    status = "COMPLETED" if good_first else "BLOCKED"
    assert set((await spine.statuses(made.task_id)).values()) == {status}
    await spine.audit()


async def test_a_batch_with_every_kind_of_end(spine: Spine) -> None:
    made = await spine.submit(
        {"good": [], "again": [], "spent": [], "stale": [], "handed": [], "lost": [], "below": ["good", "handed"]}
    )
    other = await spine.submit({"gone": []})
    claimed = await spine.claim(made.task_id, "good", "again", "spent", "stale", "lost")
    handed = (await spine.claim(made.task_id, "handed", running=False))["handed"]
    gone = (await spine.claim(other.task_id))["gone"]
    await spine.rows("SELECT end_task($1, 'CANCELLED', NULL, 'no more')", other.task_id)
    await spine.fail(claimed["stale"], retry_in_s=0)
    await leases.requeue_due(spine.engine)
    current = (await spine.claim(made.task_id, "stale"))["stale"]

    ends = [
        spine.ending(
            claimed["good"],
            outcome({"n": 1}, tokens_used=5, stdout="out", stderr="err", log="said", worker_id="w"),
        ),
        spine.ending(claimed["again"], outcome(error=BROKEN, tokens_used=2), retry_in_s=7.5),
        spine.ending(claimed["spent"], outcome(error=BROKEN, tokens_used=1)),
        spine.ending(claimed["stale"], outcome("late")),
        spine.ending(claimed["lost"], outcome(error=BROKEN, verdict="lost"), retry_in_s=0, spends=False),
        spine.ending(handed, outcome("quick")),
        spine.ending(gone, outcome("too late", tokens_used=9)),
    ]
    committed = await attempts.complete(spine.engine, ends)
    assert (await attempts.complete(spine.engine, ends)).accepted == frozenset()
    ids = await spine.ids(made.task_id)
    assert committed.accepted == {ids[key] for key in ("good", "again", "spent", "lost", "handed")}
    assert [queued.sub_task_id for queued in committed.queued] == [ids["below"]]
    assert (committed.closed, committed.retry_in_s, committed.refused) == ((), 0, ())
    assert await spine.statuses(made.task_id) == {
        "good": "COMPLETED", "again": "FAILED", "spent": "BLOCKED", "stale": "RUNNING", "handed": "COMPLETED",
        "lost": "FAILED", "below": "QUEUED",
    }  # fmt: skip
    retries = {key: (await spine.subtask(made.task_id, key))["retry_count"] for key in ("again", "spent", "lost")}
    assert retries == {"again": 1, "spent": 0, "lost": 0}
    assert (await spine.task(made.task_id))["tokens_used"] == 8
    (total,) = await spine.rows("SELECT tokens_used FROM token_totals WHERE user_id = $1", spine.user_id)
    assert total["tokens_used"] == 17, "what a cancelled attempt used is used"
    assert await spine.events(made.task_id, "handed") == [
        ("PENDING", "READY"), ("READY", "QUEUED"), ("QUEUED", "RUNNING"), ("RUNNING", "COMPLETED"),
    ]  # fmt: skip
    (log,) = await spine.rows("SELECT * FROM execution_logs WHERE sub_task_id = $1::uuid", ids["good"])
    assert (log["status"], log["duration"], log["tokens_used"], log["worker_id"]) == ("COMPLETED", 500, 5, "w")
    assert (log["stdout"], log["stderr"], log["log_content"]) == ("out", "err", "said")
    # The log of a cancelled attempt is kept; its subtask stays as it was.
    (log,) = await spine.rows("SELECT status FROM execution_logs WHERE task_id = $1", other.task_id)
    assert log["status"] == "CANCELLED"
    assert await spine.statuses(other.task_id) == {"gone": "CANCELLED"}
    await spine.succeed(current)


async def test_a_worker_that_dies_with_an_attempt_spends_a_retry_although_it_never_said_that_it_began(
    spine: Spine,
) -> None:
    made = await spine.submit({"dies": [], "lost": []})
    handed = await spine.claim(made.task_id, running=False)
    # The scheduler knows the Ray task of what no worker told.
    died = outcome(error=BROKEN, worker_id="", ray_task_id="r1")
    lost = outcome(error=BROKEN, verdict="lost", worker_id="", ray_task_id="r2")
    committed = await attempts.complete(
        spine.engine,
        [
            spine.ending(handed["dies"], died, retry_in_s=60),
            spine.ending(handed["lost"], lost, retry_in_s=60, spends=False),
        ],
    )
    assert committed.accepted == {handed["dies"].sub_task_id}
    assert await spine.statuses(made.task_id) == {"dies": "FAILED", "lost": "QUEUED"}
    assert (await spine.subtask(made.task_id, "dies"))["retry_count"] == 1
    logs = await spine.rows("SELECT status, ray_task_id FROM execution_logs WHERE task_id = $1", made.task_id)
    assert [(log["status"], log["ray_task_id"]) for log in logs] == [("FAILED", "r1")]
    (queued,) = await leases.release(spine.engine, [(handed["lost"].sub_task_id, 1)])
    assert queued.sub_task_id == handed["lost"].sub_task_id


async def test_an_outcome_told_twice_changes_nothing(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"], "c": []})
    claimed = (await spine.claim(made.task_id, "a"))["a"]
    await spine.succeed(claimed, output="first")

    async def everything() -> list[Any]:
        tables = ("tasks", "sub_tasks", "task_events", "execution_logs")
        return [await spine.rows(f"SELECT t::text AS row FROM {table} t ORDER BY 1") for table in tables]

    before = await everything()
    assert await spine.succeed(claimed, output="second") == Committed()
    assert await spine.fail(claimed) == Committed()
    assert await everything() == before
    # The same end twice in one batch counts once.
    twin = (await spine.claim(made.task_id, "c"))["c"]
    assert (await spine.succeed(twin, twin)).accepted == {twin.sub_task_id}


async def test_dependents_are_counted_down_by_batches_and_one_by_one(spine: Spine) -> None:
    wide: dict[str, list[str]] = {f"s{n}": [] for n in range(20)}
    made = await spine.submit(wide | {"join": list(wide), "half": list(wide)[:10]})
    claimed = list((await spine.claim(made.task_id)).values())
    claimed.sort(key=lambda one: int(one.key[1:]))
    assert (await spine.succeed(*claimed[:7])).queued == ()
    for one in claimed[7:9]:
        assert (await spine.succeed(one)).queued == ()
    (half,) = (await spine.succeed(*claimed[9:15])).queued
    (join,) = (await spine.succeed(*claimed[15:])).queued
    ids = await spine.ids(made.task_id)
    assert (half.sub_task_id, join.sub_task_id) == (ids["half"], ids["join"])


async def test_what_depends_on_a_spent_one_is_skipped_however_far_down(spine: Spine) -> None:
    made = await spine.submit(
        dict(DIAMOND) | {"root": [], "beside": ["root"], "mixed": ["beside", "tail"], "end": ["mixed", "beside"]}
    )
    claimed = await spine.claim(made.task_id)
    await spine.fail(claimed["a"])
    skipped = dict.fromkeys(("b", "c", "d", "tail", "mixed", "end"), "SKIPPED")
    assert await spine.statuses(made.task_id) == skipped | {"a": "BLOCKED", "root": "RUNNING", "beside": "READY"}
    # The other branch goes on, and what was skipped stays so.
    await spine.succeed(claimed["root"])
    committed = await spine.succeed((await spine.claim(made.task_id, "beside"))["beside"])
    assert committed.closed == ((str(made.task_id), "FAILED"),)
    task = await spine.task(made.task_id)
    assert (task["status"], task["blocked_count"], task["open_count"]) == ("FAILED", 1, 0)
    assert task["error"]["code"] == "SUBTASKS_BLOCKED"
    assert "the first is a: it broke" in task["error"]["message"]
    assert "1 of 9" in task["error"]["message"]
    (reason,) = await spine.rows(
        "SELECT reason FROM task_events WHERE task_id = $1 AND subtask = 'mixed' AND to_status = 'SKIPPED'",
        made.task_id,
    )
    assert reason["reason"] == "the dependency a is BLOCKED"


async def test_a_join_of_one_that_ends_well_and_one_that_does_not_in_the_same_commit(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": ["a", "b"]})
    claimed = await spine.claim(made.task_id)
    committed = await attempts.complete(
        spine.engine,
        [spine.ending(claimed["a"], outcome(1)), spine.ending(claimed["b"], outcome(error=BROKEN))],
    )
    assert await spine.statuses(made.task_id) == {"a": "COMPLETED", "b": "BLOCKED", "c": "SKIPPED"}
    assert committed.queued == ()
    assert committed.closed == ((str(made.task_id), "FAILED"),)


async def test_a_plan_is_run_through_to_its_end(spine: Spine) -> None:
    made = await spine.submit(DIAMOND)
    waves = []
    committed = Committed()
    while claimed := await spine.claim(made.task_id):
        waves.append(sorted(claimed))
        committed = await spine.succeed(*claimed.values(), output=len(waves))
    assert waves == [["a"], ["b", "c"], ["d"], ["tail"]]
    assert committed.closed == ((str(made.task_id), "COMPLETED"),)
    task = await spine.task(made.task_id)
    assert (task["status"], task["result"], task["error"]) == ("COMPLETED", 4, None)
    assert task["finished_at"] is not None
    assert (await spine.events(made.task_id))[-1] == ("PROCESSING", "COMPLETED")


LARGE = "x" * (INLINE_BYTES + 1)


@pytest.mark.parametrize(
    ("outputs", "given"),
    [
        ({"one": None}, None),
        ({"one": {"a": [1, "晴"]}}, {"a": [1, "晴"]}),
        ({"one": 1, "two": "b"}, {"one": 1, "two": "b"}),
        ({"one": {"b": LARGE, "a": 1.50, "晴": [1e2]}}, "blob"),
        ({"one": LARGE, "two": 2}, "blob"),
        ({"one": LARGE[: INLINE_BYTES // 2], "two": LARGE[: INLINE_BYTES // 2], "tiny": 3}, "blob"),
        ({f"s{n}": "x" * 1000 for n in range(300)}, "blob"),
    ],
    ids=["null", "one", "several", "large", "large beside small", "large together", "many small"],
)
async def test_the_result_is_what_the_sinks_put_out(spine: Spine, outputs: dict[str, Any], given: Any) -> None:
    made = await spine.submit({"root": []} | {key: ["root"] for key in outputs})
    await spine.succeed((await spine.claim(made.task_id))["root"], output="not a sink")
    claimed = await spine.claim(made.task_id)
    await attempts.complete(
        spine.engine, [spine.ending(claimed[key], outcome(output)) for key, output in outputs.items()]
    )
    task = await spine.task(made.task_id)
    assert task["status"] == "COMPLETED"
    served = await results.result_bytes(spine.engine, spine.blobs, made.task_id, spine.user_id)
    assert served is not None
    assert orjson.loads(served) == (outputs["one"] if len(outputs) == 1 else outputs)
    if given != "blob":
        assert task["result"] == given
        return
    place = "subtasks/one/output" if len(outputs) == 1 else "result"
    assert task["result"] == {
        "$blob": f"/api/v1/tasks/{made.task_id}/{place}",
        "size": len(served),
        "sha256": hashlib.sha256(served).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize("over", [0, 1])
async def test_a_result_is_inline_up_to_the_last_byte(spine: Spine, over: int) -> None:
    made = await spine.submit({"a": [], "b.b": []})
    claimed = await spine.claim(made.task_id)
    rest = len('{"a": 1, "b.b": ""}')
    await spine.succeed(claimed["a"], output=1)
    await spine.succeed(claimed["b.b"], output="x" * (INLINE_BYTES - rest + over))
    result = (await spine.task(made.task_id))["result"]
    assert ("$blob" in result) == bool(over)
    assert not over or result["size"] == INLINE_BYTES + 1


async def test_a_result_that_no_document_could_hold_refers_to_its_outputs(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await spine.submit({"one": [], "two": [], "tiny": []})
    claimed = await spine.claim(made.task_id)
    outputs: dict[str, Json] = {"one": "x" * 2000, "two": "y" * 2000, "tiny": 3}
    for key, output in outputs.items():
        await spine.succeed(claimed[key], output=output)
    (row,) = await spine.rows("SELECT task_result($1, 4000) AS result", made.task_id)
    blobs = {
        key: {
            "$blob": f"/api/v1/tasks/{made.task_id}/subtasks/{key}/output",
            "size": 2002,
            "sha256": hashlib.sha256(f'"{outputs[key]}"'.encode()).hexdigest(),
        }
        for key in ("one", "two")
    }
    assert row["result"] == blobs | {"tiny": 3}
    # The other place that knows how says the same, byte for byte.
    monkeypatch.setattr(results, "WHOLE_BYTES", 4000)
    (row,) = await spine.rows("SELECT task_result($1, 4000)::text AS result", made.task_id)
    whole = await results.result_bytes(spine.engine, spine.blobs, made.task_id, spine.user_id)
    assert whole is not None
    assert whole.decode() == row["result"]
    (row,) = await spine.rows("SELECT task_result($1, 5000) AS result", made.task_id)
    assert row["result"] == outputs


@pytest.mark.parametrize(
    "value", [None, 0, "晴", {"b": 1, "a": [1.50, 1e2], "": {}}, ["x" * INLINE_BYTES, {"long key": 1, "k": 2}]]
)
async def test_size_and_digest_of_an_output_are_those_of_the_bytes_that_are_served(spine: Spine, value: Any) -> None:
    made = await spine.submit({"a": []})
    await spine.succeed((await spine.claim(made.task_id))["a"], output=value)
    raw = await results.output_bytes(spine.engine, spine.blobs, made.task_id, "a")
    assert raw is not None
    row = await spine.subtask(made.task_id, "a")
    assert (row["output_size"], row["output_sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())


async def test_outcomes_of_many_tasks_at_once(spine: Spine) -> None:
    made = [await spine.submit({"a": [], "b": ["a"]}) for _ in range(12)]
    first = [(await spine.claim(one.task_id))["a"] for one in made]
    committed = await spine.succeed(*first)
    assert len(committed.queued) == 12
    second = [(await spine.claim(one.task_id))["b"] for one in made]
    assert {task for task, status in (await spine.succeed(*second)).closed if status == "COMPLETED"} == {
        str(one.task_id) for one in made
    }


async def test_spans_are_kept_as_they_were(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    claimed = (await spine.claim(made.task_id))["a"]
    spans = '[{"name": "晴", "ok": false}]'
    await attempts.complete(spine.engine, [spine.ending(claimed, outcome(1, spans=spans))])
    (log,) = await spine.rows("SELECT spans FROM execution_logs WHERE task_id = $1", made.task_id)
    assert log["spans"] == [{"name": "晴", "ok": False}]


async def test_outputs_are_read_by_key_and_only_of_what_completed(
    spine: Spine, engine: AsyncEngine, blobs: BlobStore
) -> None:
    made = await spine.submit({"a": [], "b": [], "c": []})
    claimed = await spine.claim(made.task_id)
    await spine.succeed(claimed["a"], output={"n": [1.5, None]})
    await spine.succeed(claimed["b"], output=None)
    assert await outputs(engine, blobs, str(made.task_id), ["a", "b", "c", "d"], within_s=20) == Outputs(
        values={"a": {"n": [1.5, None]}, "b": None}
    )
    assert await outputs(engine, blobs, str(made.task_id), ["a"], within_s=20) == Outputs(
        values={"a": {"n": [1.5, None]}}
    )
    assert await attempts.complete(engine, []) == Committed()
