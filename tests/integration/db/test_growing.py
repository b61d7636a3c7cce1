"""From what a task has come to, to more of a plan: by one scheduler, whatever the parser does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from rayloom.actors import growing as module
from rayloom.actors import splitting
from rayloom.actors.backlog import Backlog
from rayloom.actors.growing import Growing
from rayloom.actors.judge import Judge
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import ErrorInfo, Refused, Transient, UserError
from rayloom.dag.model import ModelUse
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import PARSER_BROKE
from rayloom.dag.replan import ReplanRequest
from rayloom.dag.tried import PlanCall, Tried
from rayloom.dag.values import JsonObject
from rayloom.db import growth, log_lines, retries, task_moves
from rayloom.db.attempts import Committed
from tests.fakes.memory_queue import MemoryQueue
from tests.integration.db.spine import NODES, Spine
from tests.integration.db.test_splitting import TOOLS
from tests.integration.db.through import through


def _more(*subtasks: JsonObject, joiner: str = "") -> Planned:
    return Planned(
        plan={"subtasks": list(subtasks)}, source="model", notes=("another way",), language="en", parsed_s=0, split_s=0,
        joiner=joiner,
    )  # fmt: skip


AROUND: JsonObject = {"id": "c", "type": "TOOL", "tool": "core.echo", "input": {"value": {"$ref": "b.output"}}}


class ScriptedPlanner:
    """Answers each call with the next of its script; the last one again and again."""

    def __init__(self, *script: Planned | BaseException) -> None:
        self.script, self.asked = list(script), list[ReplanRequest]()

    async def plan(self, request: PlanRequest) -> Planned:
        raise AssertionError("nothing here is split")

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        yield await self.plan(request)

    async def replan(self, request: ReplanRequest) -> Planned:
        self.asked.append(request)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Bench:
    """A grower of a scheduler that lives, and a task with one subtask done and one BLOCKED."""

    def __init__(self, spine: Spine, *script: Planned | BaseException) -> None:
        self.spine, self.planner, self.queue = spine, ScriptedPlanner(*script), MemoryQueue()
        self.room, self.closed = asyncio.Event(), 0
        backlog = Backlog(spine.engine, self.queue)
        judge = Judge(EngineSettings())
        judge.tools, judge.nodes = TOOLS, NODES
        self.growing = Growing(
            spine.engine, spine.blobs, backlog, self.planner, judge, on_room=self.room.set, on_closed=self._on_closed
        )

    def _on_closed(self) -> None:
        self.closed += 1

    async def task(self) -> UUID:
        task_id = (await self.spine.submit({"a": [], "b": [], "z": ["a"]})).task_id
        await self.spine.may_grow(task_id, 1)
        claimed = await self.spine.claim(task_id)
        await self.spine.succeed(claimed["b"], output={"of": "b"})
        await self.spine.fail(claimed["a"])
        return task_id

    async def through(self) -> None:
        await through(self.growing, self.room, self.spine.incarnation)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)


async def test_the_parser_is_told_what_there_is_and_its_answer_runs(spine: Spine) -> None:
    bench = Bench(spine, _more(AROUND))
    task_id = await bench.task()
    await bench.through()
    (asked,) = bench.planner.asked
    assert asked.reason == "BLOCKED: a (BROKEN: it broke)"
    seen = {each.key: (each.status, each.is_done, each.output, each.error) for each in asked.reached}
    assert seen == {
        "a": ("BLOCKED", False, "", "BROKEN: it broke"),
        "b": ("COMPLETED", True, '{"of": "b"}', ""),
        "z": ("SKIPPED", False, "", ""),
    }
    assert sorted(asked.request.tools) == ["core.echo", "core.noop"]
    assert (await spine.statuses(task_id))["c"] == "QUEUED"
    assert list((await bench.queue.pop({})).waiting.values()) == [1]
    row = await spine.task(task_id)
    assert row["plan_meta"]["versions"] == [{"source": "model", "added": ["c"], "notes": ["another way"]}]
    assert (await spine.notes(task_id))[None] == "another way"  # type: ignore[index]  # the task's own lines
    await spine.audit()


@pytest.mark.parametrize(
    ("answer", "ends_as"),
    [(_more(AROUND), "PROCESSING"), (UserError("PLAN_FAILED", "the model has no idea"), "FAILED")],
)
async def test_a_log_that_takes_nothing_keeps_nothing_from_being_told_nor_is_a_model_asked_again(
    spine: Spine, monkeypatch: pytest.MonkeyPatch, answer: Any, ends_as: str
) -> None:
    async def away(*_: Any) -> None:
        raise Transient("DATABASE_UNAVAILABLE", "away")

    monkeypatch.setattr(log_lines, "append_in", away)
    bench = Bench(spine, answer)
    task_id = await bench.task()
    await bench.through()
    assert (await spine.task(task_id))["status"] == ends_as
    assert len(bench.planner.asked) == 1
    told = list((await bench.queue.pop({})).waiting.values())
    assert (told, bench.closed) == (([1], 0) if ends_as == "PROCESSING" else ([], 1))


async def test_what_a_version_of_the_plan_has_cost_stands_with_it(spine: Spine) -> None:
    call = PlanCall(purpose="replan", model="m", use=ModelUse(tokens_in=5), began_s=0, duration_s=0.1)
    bench = Bench(spine, replace(_more(AROUND), calls=(call,)))
    task_id = await bench.task()
    await bench.through()
    (version,) = (await spine.task(task_id))["plan_meta"]["versions"]
    assert version["usage"] == {"tokens": 5, "cost_usd": 0.0}
    assert [each["purpose"] for each in version["calls"]] == ["replan"]


async def test_a_joiner_of_the_answer_is_the_joiner_from_now_on(spine: Spine) -> None:
    bench = Bench(spine, _more(AROUND, joiner="c"))
    task_id = await bench.task()
    await bench.through()
    assert (await spine.task(task_id))["plan_meta"]["joiner"] == "c"


async def test_where_nothing_is_added_the_task_ends_as_it_is(spine: Spine) -> None:
    bench = Bench(spine, _more())
    task_id = await bench.task()
    await bench.through()
    row = await spine.task(task_id)
    assert (row["status"], row["error"]["code"], bench.closed) == ("FAILED", "SUBTASKS_BLOCKED", 1)
    await spine.audit()


@pytest.mark.parametrize(
    "script",
    [
        [_more({**AROUND, "input": {"value": {"$ref": "a.output"}}})],
        [_more({**AROUND, "id": "b"})],
        [_more({**AROUND, "tool": "core.nothing"})],
        [UserError("PLAN_FAILED", "the model has no idea")],
        [Transient(PARSER_BROKE, "it broke")],
        [ValueError("a bug")],
        [type("PanicException", (BaseException,), {})("native code")],
    ],
    ids=[
        "uses what is blocked",
        "the id of another",
        "an unknown tool",
        "no plan",
        "it breaks the parser",
        "a bug",
        "panic",
    ],
)
async def test_what_can_not_be_used_ends_the_growth_and_says_why(
    spine: Spine, script: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(spine, *script)
    task_id = await bench.task()
    await bench.through()
    row = await spine.task(task_id)
    assert (row["status"], row["error"]["code"], row["replans_left"]) == ("FAILED", "SUBTASKS_BLOCKED", 0)
    assert (await spine.notes(task_id))[None].startswith("no other plan could be made: ")  # type: ignore[index]
    await spine.audit()


async def test_a_parser_that_is_away_is_asked_again(spine: Spine) -> None:
    bench = Bench(spine, *[Transient("PARSER_UNAVAILABLE", "away")] * 5, _more(AROUND))
    task_id = await bench.task()
    await bench.through()
    assert len(bench.planner.asked) == 6
    assert (await spine.statuses(task_id))["c"] == "QUEUED"


async def test_what_was_tried_is_handed_on_and_told(spine: Spine) -> None:
    call = PlanCall(purpose="replan", model="m", use=ModelUse(tokens_in=5), began_s=0, duration_s=0.1)
    away, failed = Transient("MODEL_UNAVAILABLE", "away"), UserError("PLAN_FAILED", "no idea")
    away.tried = Tried(calls=(call,), text="{}")
    failed.tried = Tried(calls=(call, call), notes=("what was wrong",))
    bench = Bench(spine, away, failed)
    task_id = await bench.task()
    await bench.through()
    assert [asked.request.tried for asked in bench.planner.asked] == [Tried(), away.tried]
    lines = await spine.rows(
        "SELECT stream, message FROM log_lines WHERE task_id = $1 AND subtask IS NULL ORDER BY id", task_id
    )
    assert [(line["stream"], line["message"]) for line in lines] == [
        ("system", "not planned on yet: away; tried again in 2 s"),
        ("model", call.line),
        ("model", call.line),
        ("system", "what was wrong"),
        ("system", "no other plan could be made: no idea"),
    ]


async def test_a_task_that_is_cancelled_meanwhile_stays_so(spine: Spine) -> None:
    bench = Bench(spine, _more(AROUND))
    task_id = await bench.task()

    async def cancelling(request: ReplanRequest) -> Planned:
        await task_moves.end_task(spine.engine, task_id, status="CANCELLED", error=None, reason="enough")
        return _more(AROUND)

    bench.planner.replan = cancelling  # type: ignore[method-assign]  # what happens meanwhile
    await bench.through()
    assert (await spine.task(task_id))["status"] == "CANCELLED"
    await spine.audit()


async def test_what_was_made_once_is_not_asked_for_again_only_to_be_stored(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, left = Bench(spine, _more(AROUND)), 3
    task_id = await bench.task()
    extend = growth.extend_plan

    async def breaking(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Transient("BLOB_STORE_UNAVAILABLE", "away")
        return await extend(*arguments, **named)

    monkeypatch.setattr(growth, "extend_plan", breaking)
    await bench.through()
    assert (len(bench.planner.asked), (await spine.statuses(task_id))["c"]) == (1, "QUEUED")


async def test_a_quota_that_is_spent_is_waited_for_and_the_log_says_so(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "QUOTA_AGAIN_S", 0.01)
    monkeypatch.setattr(splitting, "AWAY_MAX_S", -1.0)
    bench = Bench(spine, *[Transient("QUOTA_EXCEEDED", "spent", retry_after_s=60)] * 3, _more(AROUND))
    task_id = await bench.task()
    await bench.through()
    assert (len(bench.planner.asked), (await spine.statuses(task_id))["c"]) == (4, "QUEUED")
    lines = await spine.rows("SELECT message FROM log_lines WHERE task_id = $1 ORDER BY id", task_id)
    said = [line["message"] for line in lines if line["message"].startswith("not planned on yet: spent")]
    assert len(said) == 2
    await spine.audit()


async def test_what_its_budget_keeps_from_growing_goes_on_with_a_higher_one(spine: Spine) -> None:
    bench = Bench(spine, Refused("BUDGET_EXCEEDED", "max_tokens of its task: all are used"), _more(AROUND))
    task_id = await bench.task()
    await bench.through()
    row = await spine.task(task_id)
    assert (row["status"], row["error"]["code"], row["replans_left"]) == ("FAILED", "BUDGET_EXCEEDED", 1)
    assert (bench.closed, row["growth"], row["open_count"]) == (1, None, 0)
    assert "all are used" in (await spine.notes(task_id))[None]  # type: ignore[index]  # the task's own lines
    await spine.audit()
    again = await retries.plan_again(spine.engine, task_id, budget={"max_tokens": 9}, reason="retried")
    assert again == "PROCESSING"
    assert await retries.plan_again(spine.engine, task_id, budget=None, reason="retried") is None
    await spine.audit()
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "BLOCKED", "b": "COMPLETED", "z": "SKIPPED", "c": "QUEUED"}
    row = await spine.task(task_id)
    assert (row["replans_left"], row["options"]["budget"], row["error"]) == (0, {"max_tokens": 9}, None)
    await spine.audit()


async def test_a_growth_that_another_sees_to_is_refused_by_nobody_else(spine: Spine) -> None:
    bench = Bench(spine, _more())
    task_id = await bench.task()
    error = ErrorInfo.from_exception(Refused("BUDGET_EXCEEDED", "spent"))
    assert await retries.refuse_growth(spine.engine, task_id, spine.incarnation, error) == Committed()
    assert (await spine.task(task_id))["growth"] == "due"


async def test_nobody_goes_on_asking_for_a_task_that_was_ended(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "AGAIN_S", 3_600.0)
    monkeypatch.setattr(splitting, "AGAIN_MAX_S", 3_600.0)
    bench = Bench(spine, Transient("MODEL_UNAVAILABLE", "away"))
    task_id = await bench.task()
    await bench.growing.turn(spine.incarnation)
    await task_moves.end_task(spine.engine, task_id, status="CANCELLED", error=None, reason="enough")
    await bench.through()
    assert len(bench.planner.asked) <= 1


async def test_what_was_retried_by_hand_meanwhile_is_in_nobody_s_way(spine: Spine) -> None:
    bench = Bench(spine, _more(AROUND))
    task_id = await bench.task()

    async def retrying(request: ReplanRequest) -> Planned:
        await spine.retry(task_id, "a")
        return _more(AROUND)

    bench.planner.replan = retrying  # type: ignore[method-assign]  # what happens meanwhile
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "COMPLETED", "z": "READY"}
    await spine.audit()
