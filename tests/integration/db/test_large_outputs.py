"""Outputs and inputs that are kept apart: recorded by reference, read whole, shared by forks, never lost halfway."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn
from uuid import UUID

import asyncpg
import orjson
import pytest
from redis.asyncio import Redis
from uuid_utils.compat import uuid7

from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.flight import never_started
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import Bug
from rayloom.dag.outcome import Outcome
from rayloom.dag.references import Outputs
from rayloom.dag.values import Json, JsonObject
from rayloom.db import attempts, plan_inputs, results, retries
from rayloom.db.attempts import INLINE_BYTES, Claimed, Committed
from rayloom.db.blobs import Blob, BlobStore, split
from rayloom.db.engine import Line
from rayloom.db.forks import TakenOver
from rayloom.db.outputs import outputs
from rayloom.db.retries import NewInput
from rayloom.db.s3 import BlobsAway
from rayloom.db.settings import BlobSettings
from rayloom.db.submit import NewTask, submit_task
from tests.fakes.memory_queue import MemoryQueue
from tests.integration.db.spine import Spine, default, outcome, plan_of
from tests.integration.s3 import S3Server

LARGE = 100_000


@pytest.fixture(params=["postgres", "s3"])
def spine(request: pytest.FixtureRequest, spine: Spine, redis: Redis, s3: S3Server) -> Spine:
    """One whose large contents are in PostgreSQL, and one whose are in S3."""
    settings = BlobSettings() if request.param == "postgres" else s3.settings(uuid7().hex)
    spine.blobs = BlobStore(spine.engine, redis, settings)
    return spine


async def apart(spine: Spine, value: Json) -> Outcome:
    """The outcome of an attempt that gave this, as a worker tells it."""
    blob = await spine.blobs.put(orjson.dumps(value))
    return outcome(output=None, output_blob=blob.sha256, output_size=blob.size)


async def end(spine: Spine, claimed: Claimed, value: Json) -> None:
    await attempts.complete(spine.engine, [spine.ending(claimed, await apart(spine, value))])


def large(size: int = LARGE) -> str:
    """A text that nobody else has."""
    return (uuid7().hex * (size // 32 + 1))[:size]


async def test_an_output_by_reference_is_recorded_and_given_to_dependents(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": ["a", "b"]})
    claimed = await spine.claim(made.task_id)
    value: JsonObject = {"text": large(), "晴": [1.5]}
    await end(spine, claimed["a"], value)
    await spine.succeed(claimed["b"], output=2)
    row, raw = await spine.subtask(made.task_id, "a"), orjson.dumps(value)
    assert (row["status"], row["output_result"], row["output_size"]) == ("COMPLETED", None, len(raw))
    assert row["output_blob"] == row["output_sha256"] == hashlib.sha256(raw).hexdigest()
    found = await outputs(spine.engine, spine.blobs, str(made.task_id), ["a", "b"], within_s=20)
    assert found == Outputs(values={"a": value, "b": 2})
    assert await results.output_bytes(spine.engine, spine.blobs, made.task_id, "a") == raw
    assert (await spine.statuses(made.task_id))["c"] == "QUEUED"


async def test_of_a_batch_each_has_its_own(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": []})
    claimed = await spine.claim(made.task_id)
    endings = [
        spine.ending(claimed["a"], await apart(spine, large())),
        spine.ending(claimed["b"], outcome(1)),
        spine.ending(claimed["c"], await apart(spine, large())),
    ]
    assert len((await attempts.complete(spine.engine, endings)).accepted) == 3
    rows = {row["key"]: row["output_blob"] for row in await spine.rows(
        "SELECT key, output_blob FROM sub_tasks WHERE parent_id = $1", made.task_id)}  # fmt: skip
    assert rows == {"a": endings[0].outcome.output_blob, "b": None, "c": endings[2].outcome.output_blob}


async def _result(spine: Spine, given: dict[str, Json]) -> tuple[UUID, Json, bool]:
    """What a task comes to whose sinks give this, each over 64 KiB apart; and whether that was noted at once."""
    made = await spine.submit({key: [] for key in given} | {"missing": []}, {"missing": default(large(70_000))})
    claimed = await spine.claim(made.task_id)
    await spine.fail(claimed["missing"])
    for key, value in given.items():
        if len(orjson.dumps(value)) > 64 * 1024:
            await end(spine, claimed[key], value)
        else:
            await spine.succeed(claimed[key], output=value)
    row = await spine.task(made.task_id)
    assert row["status"] == "COMPLETED"
    return made.task_id, row["result"], row["result_apart"]


async def test_a_result_of_several_is_put_together_once(spine: Spine) -> None:
    for size in (70_000, 200_000):
        given: dict[str, Json] = {"one": large(size), "b": {"small": [1]}}
        task_id, result, is_apart = await _result(spine, given)
        assert (result, is_apart) == (None, True)
        shown = await results.put_together(spine.engine, spine.blobs, task_id)
        whole = await results.result_bytes(spine.engine, spine.blobs, task_id, spine.user_id)
        assert whole is not None
        document = orjson.loads(whole)
        assert {key: document[key] for key in given} == given
        assert list(document) == ["b", "one", "missing"]
        if len(whole) > INLINE_BYTES:
            assert shown == {
                "$blob": f"/api/v1/tasks/{task_id}/result",
                "size": len(whole),
                "sha256": hashlib.sha256(whole).hexdigest(),
            }
        else:
            assert shown == document
        row = await spine.task(task_id)
        assert (row["result"], row["result_apart"]) == (shown, False)


@pytest.mark.parametrize("size", [LARGE, 300_000])
async def test_a_result_of_one(spine: Spine, size: int) -> None:
    made = await spine.submit({"a": []})
    value = large(size)
    await end(spine, (await spine.claim(made.task_id))["a"], value)
    row = await spine.task(made.task_id)
    assert row["result_apart"] == (size == LARGE)
    if size == LARGE:
        assert await results.put_together(spine.engine, spine.blobs, made.task_id) == value
        row = await spine.task(made.task_id)
        assert row["result"] == value
    else:
        raw = orjson.dumps(value)
        place = f"/api/v1/tasks/{made.task_id}/subtasks/a/output"
        assert row["result"] == {"$blob": place, "size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


async def test_what_is_too_much_for_one_document_refers_to_its_outputs(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "WHOLE_BYTES", 100_000)
    given: dict[str, Json] = {"one": large(), "two": 2}
    task_id, _, _ = await _result(spine, given)
    whole = await results.result_bytes(spine.engine, spine.blobs, task_id, spine.user_id)
    assert whole is not None
    document, row = orjson.loads(whole), await spine.subtask(task_id, "one")
    assert document["two"] == 2
    assert document["one"] == {
        "$blob": f"/api/v1/tasks/{task_id}/subtasks/one/output",
        "size": LARGE + 2,
        "sha256": row["output_sha256"],
    }


async def test_the_reference_holds_the_blob(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    await end(spine, (await spine.claim(made.task_id))["a"], large())
    row = await spine.subtask(made.task_id, "a")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await spine.rows("DELETE FROM blobs WHERE sha256 = $1", row["output_blob"])


async def _commit(spine: Spine, *ends: tuple[Claimed, Outcome]) -> Committed:
    """What the scheduler makes of these ends."""
    backlog, line = Backlog(spine.engine, MemoryQueue()), Line(spine.engine)
    commits = Commits(line, backlog, EngineSettings(), jitter=lambda: 0.0)
    for claimed, how in ends:
        commits.add(never_started(claimed, backlog.shape(claimed.shape)), how)
    committed = await commits.turn()
    await line.drop()
    return committed


async def test_an_output_that_was_collected_before_its_commit_loses_the_attempt_and_no_retry(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": []})
    claimed = await spine.claim(made.task_id)
    ends = {key: await apart(spine, large()) for key in ("a", "b")} | {"c": outcome(3)}
    await spine.rows("DELETE FROM blobs WHERE sha256 = $1", ends["a"].output_blob)
    await _commit(spine, *((claimed[key], how) for key, how in ends.items()))
    assert await spine.statuses(made.task_id) == {"a": "FAILED", "b": "COMPLETED", "c": "COMPLETED"}
    row = await spine.subtask(made.task_id, "a")
    assert (row["retry_count"], row["error"]["code"], row["not_before"] is not None) == (0, "OUTPUT_LOST", True)
    (log,) = await spine.rows("SELECT status FROM execution_logs WHERE sub_task_id = $1", row["id"])
    assert log["status"] == "LOST"
    await spine.rows("SELECT * FROM requeue_due(100)")


async def test_a_batch_counts_what_it_carries_and_not_what_is_apart(spine: Spine) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(4)})
    claimed = await spine.claim(made.task_id)
    blob = await spine.blobs.put(b"1")
    how = outcome(output=None, output_blob=blob.sha256, output_size=60 * 1024 * 1024)
    assert len((await _commit(spine, *((one, how) for one in claimed.values()))).accepted) == 4


# -- forks, inputs -----------------------------------------------------------------------------------------------------


async def _submit(spine: Spine, given: dict[str, JsonObject], **more: object) -> UUID:
    plan = plan_of({key: [] for key in given}, {key: {"input": value} for key, value in given.items()})
    fields: dict[str, object] = {"title": "t", "prompt": None, "priority": 5, "plan": plan, **more}
    new = NewTask(user_id=spine.user_id, **fields)  # type: ignore[arg-type]  # one dict for all
    return (await submit_task(spine.engine, spine.blobs, new)).task_id


async def test_a_large_input_is_kept_apart_and_a_claim_names_it(spine: Spine) -> None:
    value: JsonObject = {"text": large()}
    task_id = await _submit(spine, {"a": value, "b": {"n": 1}})
    rows = {key: await spine.subtask(task_id, key) for key in "ab"}
    assert (rows["a"]["input_context"], rows["b"]["input_context"], rows["b"]["input_blob"]) == ({}, {"n": 1}, None)
    assert await spine.blobs.get(rows["a"]["input_blob"]) == orjson.dumps(value)
    claimed = await spine.claim(task_id)
    assert (claimed["a"].input, claimed["a"].input_blob) == ("{}", rows["a"]["input_blob"])
    assert (claimed["b"].input, claimed["b"].input_blob) == ('{"n": 1}', "")


async def test_inputs_are_put_once_each_some_at_a_time_and_not_those_that_are_taken_over(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    same: JsonObject = {"text": large()}
    given: dict[str, JsonObject] = {"a": same, "b": same} | {f"s{n}": {"text": large()} for n in range(6)}
    put, asked, at_once = spine.blobs.put, list[bytes](), [0, 0]

    async def counted(data: bytes) -> Blob:
        asked.append(data)
        at_once[0] += 1
        at_once[1] = max(at_once)
        try:
            return await put(data)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(spine.blobs, "put", counted)
    task_id = await _submit(spine, given)
    assert len(asked) == len(set(asked)) == 7
    assert 1 < at_once[1] <= plan_inputs.PUTS
    assert (await spine.subtask(task_id, "a"))["input_blob"] == (await spine.subtask(task_id, "b"))["input_blob"]
    claimed = await spine.claim(task_id)
    await end(spine, claimed["s0"], large())
    del asked[:]
    forked = await _submit(spine, given, taken_over=TakenOver(task_id=task_id, keys=frozenset({"s0"})))
    assert orjson.dumps(given["s0"]) not in asked
    assert (await spine.subtask(forked, "s0"))["input_blob"] == (await spine.subtask(task_id, "s0"))["input_blob"]


async def test_an_input_that_can_not_be_put_is_told_as_it_is(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_data: bytes) -> Blob:
        raise BlobsAway("s3://b", "", "gone")

    monkeypatch.setattr(spine.blobs, "put", away)
    with pytest.raises(BlobsAway):
        await _submit(spine, {"a": {"text": large()}, "b": {"text": large()}})


async def test_the_fallback_has_an_input_of_its_own(spine: Spine) -> None:
    policy: JsonObject = {"on_failure": "fallback", "fallback": {"tool": "u", "input": {"small": 1}}}
    plan = plan_of({"a": []}, {"a": policy | {"input": {"text": large()}}})
    new = NewTask(user_id=spine.user_id, title="t", prompt=None, priority=5, plan=plan)
    task_id = (await submit_task(spine.engine, spine.blobs, new)).task_id
    await spine.fail((await spine.claim(task_id))["a"])
    again = (await spine.claim(task_id))["a"]
    assert (again.tool, again.input, again.input_blob) == ("u", '{"small": 1}', "")


async def test_another_input_takes_the_place_of_a_large_one_and_the_other_way_round(spine: Spine) -> None:
    task_id = await _submit(spine, {"a": {"text": large()}})
    id_ = UUID((await spine.ids(task_id))["a"])
    for value in ({"small": 1}, {"text": large()}, {"small": 2}):
        await spine.fail((await spine.claim(task_id))["a"])
        given = NewInput(value=value, referred=(), dependencies=())  # type: ignore[arg-type]  # JSON
        assert (await retries.retry_with_input(spine.engine, spine.blobs, id_, given, reason="r")).queued
        row = await spine.subtask(task_id, "a")
        assert (row["input_blob"] is None) == ("small" in value)
        kept = row["input_context"] if row["input_blob"] is None else orjson.loads(
            await spine.blobs.get(row["input_blob"]))  # fmt: skip
        assert kept == value


async def test_a_fork_shares_what_is_kept_apart(spine: Spine) -> None:
    given: dict[str, JsonObject] = {"a": {"text": large()}, "b": {"text": large()}}
    task_id = await _submit(spine, given)
    await end(spine, (await spine.claim(task_id))["a"], large())
    over = TakenOver(task_id=task_id, keys=frozenset({"a"}))
    forked = await _submit(spine, given, taken_over=over)
    for key in "ab":
        ours, theirs = await spine.subtask(task_id, key), await spine.subtask(forked, key)
        for column in ("input_blob", "output_blob", "output_size", "output_sha256", "output_result"):
            assert ours[column] == theirs[column]
    assert (await spine.subtask(forked, "a"))["status"] == "COMPLETED"


async def test_a_blob_that_is_gone_is_told_to_who_needs_it(spine: Spine, redis: Redis) -> None:
    made = await spine.submit({"a": [], "b": ["a"]})
    await end(spine, (await spine.claim(made.task_id))["a"], large())
    row = await spine.subtask(made.task_id, "a")
    if not spine.blobs.place:
        await spine.rows("UPDATE blobs SET data = 'x' WHERE sha256 = $1", row["output_blob"])
    else:
        (kept,) = await spine.rows("SELECT place FROM blobs WHERE sha256 = $1", row["output_blob"])
        await spine.blobs.at(spine.blobs.place).delete([split(kept["place"])[1]])
    await redis.flushdb()
    with pytest.raises(Bug, match=row["output_blob"]) as told:
        await outputs(spine.engine, spine.blobs, str(made.task_id), ["a"], within_s=20)
    assert told.value.code == ("BLOB_MISSING" if spine.blobs.place else "BLOB_CORRUPT")


async def test_outputs_that_do_not_come_in_time_are_away(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await spine.submit({"a": [], "b": ["a"]})
    await end(spine, (await spine.claim(made.task_id))["a"], large())

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(BlobStore, "documents", silent)
    with pytest.raises(BlobsAway, match=r"not within 0\.1 s"):
        await outputs(spine.engine, spine.blobs, str(made.task_id), ["a"], within_s=0.1)


async def test_what_is_put_together_is_held_a_lot_at_a_time(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LOT_BYTES", 250_000)
    given: dict[str, Json] = {"small": 1, "huge": large(300_000)}
    given |= {f"s{n}": large(LARGE + n) for n in range(5)}
    task_id, _, _ = await _result(spine, given)
    asked: list[int] = []
    get_all = spine.blobs.get_all

    def counted(wanted: Sequence[Blob]) -> AsyncIterator[tuple[str, bytes]]:
        asked.append(sum(blob.size for blob in wanted))
        return get_all(wanted)

    monkeypatch.setattr(spine.blobs, "get_all", counted)
    shown = await results.put_together(spine.engine, spine.blobs, task_id)
    assert len(asked) > 3
    assert max(asked) < 310_000
    whole = await results.result_bytes(spine.engine, spine.blobs, task_id, spine.user_id)
    assert whole is not None
    document = orjson.loads(whole)
    assert {key: document[key] for key in given} == given
    assert shown == {
        "$blob": f"/api/v1/tasks/{task_id}/result",
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }


async def test_only_what_names_a_blob_can_lose_one(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await spine.submit({"a": []})
    claimed = (await spine.claim(made.task_id))["a"]

    def refuses(_source: object) -> NoReturn:
        raise asyncpg.ForeignKeyViolationError("of something else")

    for how in (outcome(1), await apart(spine, large())):
        with monkeypatch.context() as patched:
            patched.setattr(attempts, "driver", refuses)
            committed = await attempts.complete(spine.engine, [spine.ending(claimed, how)])
        assert (len(committed.bereft), len(committed.refused)) == ((1, 0) if how.output_blob else (0, 1))
    await spine.succeed(claimed)


async def test_what_stands_in_counts_for_nothing_when_a_result_is_too_much(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the database's own `task_result`: what is there is LARGE and 1 bytes, and a default of 70,000."""
    monkeypatch.setattr(results, "WHOLE_BYTES", LARGE + 10)
    given: dict[str, Json] = {"one": large(), "two": 2}
    task_id, _, _ = await _result(spine, given)
    whole = await results.result_bytes(spine.engine, spine.blobs, task_id, spine.user_id)
    assert whole is not None
    assert orjson.loads(whole)["one"] == given["one"]
