"""What earlier attempts decide about the next one, as PostgreSQL tells it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from rayloom.dag.decision import Past
from rayloom.dag.errors import ErrorInfo
from rayloom.dag.resources import ResourceShape
from rayloom.dag.tool_scope import ALL_TOOLS, ToolScope
from rayloom.dag.values import JsonObject
from rayloom.db import attempts, history, leases
from rayloom.db.leases import NextCall
from tests.integration.db.spine import FALLBACK, Spine, outcome


def _error(code: str) -> ErrorInfo:
    return ErrorInfo(code=code, error_class="transient", message="x", retryable=True)


async def _end(spine: Spine, task_id: UUID, code: str, *, verdict: str = "failed", worker_id: str = "w") -> str:
    """One more attempt of the subtask that ends so, and the subtask queued again."""
    claimed = (await spine.claim(task_id, "a"))["a"]
    how = outcome(error=_error(code), verdict=verdict, worker_id=worker_id)
    await attempts.complete(spine.engine, [spine.ending(claimed, how, retry_in_s=0)])
    await leases.requeue_due(spine.engine)
    return claimed.sub_task_id


async def test_how_often_it_ran_out_of_memory(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []})).task_id
    id_ = (await spine.ids(task_id))["a"]
    assert await history.past(spine.engine, [id_]) == {id_: Past()}
    for code in ("OUT_OF_MEMORY", "BROKEN", "OUT_OF_MEMORY"):
        await _end(spine, task_id, code)
    assert await history.past(spine.engine, [id_]) == {id_: Past(out_of_memory=2)}


async def test_how_often_in_a_row_it_was_lost_to_the_database(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []})).task_id
    id_ = ""
    seen = []
    for code, verdict, worker in (
        ("TIMED_OUT", "lost", "w"), ("DATABASE_UNAVAILABLE", "lost", "w"), ("BROKEN", "failed", "w"),
        ("TIMED_OUT", "lost", "w"), ("TIMED_OUT", "lost", "w"), ("TIMED_OUT", "lost", "w"),
        ("NODE_LOST", "lost", ""), ("TIMED_OUT", "lost", ""),
    ):  # fmt: skip
        id_ = await _end(spine, task_id, code, verdict=verdict, worker_id=worker)
        seen.append((await history.past(spine.engine, [id_]))[id_].lost)
    assert seen == [1, 2, 0, 1, 2, 3, 0, 0]


async def test_only_who_waits_for_a_retry_is_given_another_shape(spine: Spine) -> None:
    task_id = (await spine.submit({"a": [], "b": []})).task_id
    claimed = await spine.claim(task_id)
    await spine.fail(claimed["a"], retry_in_s=60)
    more = ResourceShape(cpus=1, memory_bytes=2**31)
    shapes = {(one.sub_task_id, one.attempt): more for one in claimed.values()}
    assert await history.reshape(spine.engine, shapes) == 1
    assert (await spine.subtask(task_id, "a"))["shape"] != (await spine.subtask(task_id, "b"))["shape"]
    assert await history.reshape(spine.engine, {(claimed["a"].sub_task_id, 9): more}) == 0


async def test_what_is_called_next_of_what_is_queued(spine: Spine) -> None:
    plan: dict[str, list[str]] = {"a": [], "b": [], "c": ["a"], "f": [], "g": []}
    task_id = (await spine.submit(plan, {"f": FALLBACK, "g": FALLBACK})).task_id
    ids = await spine.ids(task_id)
    await spine.fail((await spine.claim(task_id, "g"))["g"])
    await spine.claim(task_id, "b")
    # Who is on its fallback has none any more.
    expected = {"a": NextCall("t"), "f": NextCall("t", "u"), "g": NextCall("u")}
    assert await leases.calls_of(spine.engine, list(ids.values())) == {ids[key]: call for key, call in expected.items()}

    async def others(*calls: NextCall, but_of: Sequence[str] = ()) -> str:
        page = await leases.queued_page(spine.engine, after=None, limit=1_000, but_with=calls, but_of=but_of)
        found = {item.sub_task_id for item in page}
        return "".join(sorted(key for key, id_ in ids.items() if id_ in found))

    assert await others() == "afg"
    assert await others(NextCall("t")) == "fg"
    assert await others(NextCall("t", "u")) == "ag"
    assert await others(NextCall("u"), NextCall("t")) == "f"
    assert await others(NextCall("x"), but_of=["00000000-0000-0000-0000-000000000000"]) == "afg"


async def test_which_tools_the_tasks_of_subtasks_may_use(spine: Spine) -> None:
    rules: JsonObject = {"tools": {"allow": ["core.*"], "deny": ["core.fail"]}}
    found: dict[str, ToolScope] = {}
    for options in (rules, {}):
        made = await spine.submit({"a": []}, options=options)
        ((_, id_),) = (await spine.ids(made.task_id)).items()
        found |= await leases.scopes_of(spine.engine, [id_])
    assert list(found.values()) == [ToolScope(allow=("core.*",), deny=("core.fail",)), ALL_TOOLS]


async def test_how_often_in_a_row_it_was_lost_as_the_blob_store_was_away(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []})).task_id
    seen = []
    for code, verdict in (
        ("BLOB_STORE_UNAVAILABLE", "lost"), ("BLOB_STORE_UNAVAILABLE", "lost"), ("TIMED_OUT", "lost"),
        ("BLOB_STORE_UNAVAILABLE", "lost"), ("BLOB_STORE_UNAVAILABLE", "failed"),
    ):  # fmt: skip
        id_ = await _end(spine, task_id, code, verdict=verdict)
        seen.append((await history.past(spine.engine, [id_]))[id_].without_blobs)
    assert seen == [1, 2, 0, 1, 0]
