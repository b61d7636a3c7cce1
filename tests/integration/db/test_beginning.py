"""What runs before its plan is whole: begun once, by one splitter, and whole in the end or ended, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.actors import beginning, splitting
from rayloom.actors.backlog import Backlog
from rayloom.actors.described import describe
from rayloom.actors.judge import Judge
from rayloom.actors.settings import EngineSettings
from rayloom.actors.splitting import Splitting
from rayloom.dag.errors import NeedsClarification, Transient, UserError
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import PARSER_BROKE, ToolSnapshot
from rayloom.dag.replan import ReplanRequest
from rayloom.dag.tried import Tried
from rayloom.dag.values import JsonObject
from rayloom.db import growth, retries
from rayloom.db.incarnations import begin_incarnation, end_incarnation
from rayloom.db.submit import NewTask, accept_plan, submit_task
from rayloom.db.task_moves import end_task
from rayloom.tools.builtin.catalogue import BUILTINS
from tests.fakes.memory_queue import MemoryQueue
from tests.integration.db.spine import NODES, Spine
from tests.integration.db.through import through

NAMES = ("core.echo", "http.fetch_text", "files.write")
TOOLS = ToolSnapshot(version=1, tools={name: describe(name, f"builtin:{name}", BUILTINS[name]) for name in NAMES})
A: JsonObject = {"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": 1}}
B: JsonObject = {"id": "b", "type": "TOOL", "tool": "core.echo", "input": {"value": {"$ref": "a.output"}}}
WRITE: JsonObject = {
    "id": "w", "type": "TOOL", "tool": "files.write", "input": {"path": "x", "content": "${b.output}"},
}  # fmt: skip


def planned(*subtasks: JsonObject, **more: Any) -> Planned:
    options: dict[str, Any] = {"source": "model", "notes": (), "language": "en", "parsed_s": 0, "split_s": 0}
    return Planned(plan={"subtasks": list(subtasks)}, **options | more)


Step = JsonObject | Planned | Exception | Callable[[], Awaitable[None]]


class StreamingParser:
    """Says its steps: an early subtask, the plan, an error, or what happens meanwhile. ``asked``: how, and what."""

    def __init__(self, *answers: list[Step]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, PlanRequest]] = []
        self.is_closed = False

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        self.asked.append(("stream", request))
        try:
            async for given in self._steps():
                yield given
        finally:
            self.is_closed = True

    async def plan(self, request: PlanRequest) -> Planned:
        self.asked.append(("plan", request))
        given = [each async for each in self._steps()]
        assert isinstance(given[-1], Planned)
        return given[-1]

    async def replan(self, request: ReplanRequest) -> Planned:
        raise AssertionError("nothing here grows")

    async def _steps(self) -> AsyncIterator[Early | Planned]:
        for step in self.answers.pop(0):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Planned):
                yield step
            elif isinstance(step, dict):
                yield Early(subtask=step)
            else:
                await step()


class Bench:
    """A splitter of a scheduler that lives, and a task that it splits."""

    def __init__(self, spine: Spine, *answers: list[Step], incarnation: UUID | None = None, **settings: Any) -> None:
        self.spine, self.parser, self.queue = spine, StreamingParser(*answers), MemoryQueue()
        self.incarnation = incarnation or spine.incarnation
        self.room, self.closed = asyncio.Event(), 0
        judge = Judge(EngineSettings(**{"with_models": True} | settings))
        judge.tools, judge.nodes = TOOLS, NODES
        self.judge = judge
        self.splitting = Splitting(
            spine.engine, spine.blobs, Backlog(spine.engine, self.queue), self.parser, judge, on_room=self.room.set,
            on_closed=self._on_closed, replans=2,
        )  # fmt: skip

    def _on_closed(self) -> None:
        self.closed += 1

    async def submit(self, **more: Any) -> UUID:
        new = NewTask(user_id=self.spine.user_id, title="t", prompt="do it", priority=5, **more)
        return (await submit_task(self.spine.engine, self.spine.blobs, new)).task_id

    async def through(self) -> None:
        await through(self.splitting, self.room, self.incarnation)

    async def heir(self, *answers: list[Step]) -> Bench:
        """The splitter of the next scheduler, this one being dead."""
        await self.splitting.close()
        await end_incarnation(self.spine.engine, self.incarnation)
        self.spine.incarnation = incarnation = uuid7()
        await begin_incarnation(self.spine.engine, incarnation, actor="the heir", exclusive=False)
        return Bench(self.spine, *answers, incarnation=incarnation)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "AGAIN_S", 0.0)
    monkeypatch.setattr(splitting, "AGAIN_MAX_S", 0.0)


@pytest.fixture
async def spine(spine: Spine) -> AsyncIterator[Spine]:
    """The one user's tasks; every other user's are put away by their own tests."""
    yield spine
    await spine.put_away()


async def finished(spine: Spine, task_id: UUID, output: Any = "x") -> Any:
    while some := await spine.claim(task_id):
        await spine.succeed(*some.values(), output=output)
    await spine.audit()
    return await spine.task(task_id)


async def test_what_only_reads_is_queued_before_the_plan_is_whole(spine: Spine) -> None:
    seen: list[dict[str, str]] = []

    async def look() -> None:
        seen.append(await spine.statuses(task_id))

    bench = Bench(spine, [A, look, B, look, planned(WRITE, B, A)])
    task_id = await bench.submit()
    await bench.through()
    assert seen == [{"a": "QUEUED"}, {"a": "QUEUED", "b": "READY"}]
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "READY", "w": "READY"}
    task = await spine.task(task_id)
    assert [each["id"] for each in task["plan"]["subtasks"]] == ["a", "b", "w"]
    meta = task["plan_meta"]
    assert (meta["begun"], meta["critical_path"], "partial" in meta) == (["a", "b"], ["a", "b", "w"], False)
    assert (task["replans_left"], task["growth"], task["incarnation"]) == (2, None, None)
    assert list((await bench.queue.pop({})).waiting.values()) == [1]
    assert (await finished(spine, task_id))["status"] == "COMPLETED"
    ((how, request),) = bench.parser.asked
    assert (how, request.may_begin, bench.parser.is_closed) == ("stream", True, True)


async def test_a_task_whose_beginning_was_all_of_it_ends_with_the_plan(spine: Spine) -> None:
    async def run() -> None:
        await spine.succeed((await spine.claim(task_id))["a"], output=7)

    bench = Bench(spine, [A, run, planned(A)])
    task_id = await bench.submit()
    await bench.through()
    task = await spine.task(task_id)
    assert (task["status"], task["result"], bench.closed) == ("COMPLETED", 7, 1)
    await spine.audit()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"require_approval": True}, {}),
        ({"budget": {"max_tokens": 5}}, {}),
        ({"budget": {"max_cost_usd": 5}}, {}),
        ({}, {"approval_levels": ("read",)}),
        ({}, {"early_start": False}),
        ({}, {"with_models": False}),
    ],
)
async def test_where_a_rule_forbids_it_nothing_begins(
    spine: Spine, options: JsonObject, settings: dict[str, Any]
) -> None:
    bench = Bench(spine, [planned(A)], **settings)
    await bench.submit(options=options)
    await bench.through()
    ((how, request),) = bench.parser.asked
    assert (how, request.may_begin) == ("plan", False)


@pytest.mark.parametrize(
    ("early", "options"),
    [
        (WRITE, {}),
        (A, {"tools": {"allow": ["http.*"], "deny": []}}),
        ({**A, "tool": "core.nothing"}, {}),
        ({**A, "input": {"value": {"$ref": "later.output"}}}, {}),
        ({**A, "input": {"nothing": 1}}, {}),
        ({**A, "require_approval": True}, {}),
        ({**A, "depends_on": ["w"]}, {}),
    ],
)
async def test_the_parser_is_not_taken_at_its_word(spine: Spine, early: JsonObject, options: JsonObject) -> None:
    bench = Bench(spine, [early, UserError("PLAN_FAILED", "no plan")])
    task_id = await bench.submit(options=options)
    await bench.through()
    assert await spine.statuses(task_id) == {}
    assert await spine.events(task_id) == [(None, "PENDING"), ("PENDING", "SPLITTING"), ("SPLITTING", "FAILED")]


async def test_what_the_whole_plan_has_otherwise_is_told_and_runs_anew(spine: Spine) -> None:
    other: JsonObject = {**A, "input": {"value": 2}}
    bench = Bench(spine, [A, planned(other, B)])
    task_id = await bench.submit()
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "CANCELLED", "a_2": "QUEUED", "b": "READY"}
    task = await finished(spine, task_id)
    assert (task["status"], task["result"]) == ("COMPLETED", "x")
    assert (await spine.subtask(task_id, "b"))["dependencies"] == ["a_2"]
    assert "`a_2`" in (await spine.notes(task_id))[None]  # type: ignore[index]


async def test_what_only_a_dropped_one_waited_for_is_what_the_plan_comes_to(spine: Spine) -> None:
    bench = Bench(spine, [A, B, planned(A)])
    task_id = await bench.submit()
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "CANCELLED"}
    task = await finished(spine, task_id, output=7)
    assert (task["status"], task["result"]) == ("COMPLETED", 7)
    assert (await spine.subtask(task_id, "a"))["dependents"] == []


async def test_a_joiner_that_gets_another_id_is_known_by_that(spine: Spine) -> None:
    answer: JsonObject = {"id": "a", "type": "REASONING", "instruction": "answer"}
    bench = Bench(spine, [A, planned(answer, joiner="a")])
    task_id = await bench.submit()
    await bench.through()
    assert (await spine.task(task_id))["plan_meta"]["joiner"] == "a_2"


async def test_over_budget_the_rest_waits_for_approval(spine: Spine) -> None:
    bench = Bench(spine, [A, planned(A, B, WRITE, over_budget=("`max_tokens`: too many",))])
    task_id = await bench.submit()
    await bench.through()
    await spine.succeed((await spine.claim(task_id))["a"], output=1)
    assert await spine.statuses(task_id) == {"a": "COMPLETED", "b": "AWAITING_APPROVAL", "w": "READY"}
    task = await spine.task(task_id)
    assert (task["status"], task["replans_left"]) == ("PROCESSING", 0)
    await spine.audit()


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([[A, B, UserError("PLAN_FAILED", "no plan")]], "PLAN_FAILED"),
        ([[A, B, NeedsClarification(["Which?"])]], "NEEDS_CLARIFICATION"),
        ([[A, B, planned({**A, "id": "x", "tool": "nothing"})]], "PLAN_REFUSED"),
        ([[A, B]], "PARSER_FAILED"),
        ([[A, B, Transient(PARSER_BROKE, "it died")], [ValueError("bug")], [ValueError("bug")]], "INTERNAL"),
    ],
    ids=["no plan", "questions", "refused", "broken", "bugs"],
)
async def test_what_can_not_become_whole_ends_with_what_has_begun(
    spine: Spine, answers: list[list[Step]], code: str
) -> None:
    bench = Bench(spine, *answers)
    task_id = await bench.submit()

    async def block() -> None:
        await spine.fail((await spine.claim(task_id))["a"])

    answers[0].insert(1, block)
    bench.parser.answers = answers
    await bench.through()
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["code"]) == ("FAILED", code)
    assert (await spine.statuses(task_id))["a"] == "BLOCKED"
    assert (await spine.retry(task_id)).queued == ()
    assert bench.parser.answers == []
    await spine.audit()


async def test_what_was_tried_is_told_of_a_plan_that_never_became_whole_too(spine: Spine) -> None:
    failed, away = UserError("PLAN_FAILED", "no plan"), Transient("MODEL_BROKE_OFF", "away")
    failed.tried = away.tried = Tried(notes=("said\0so",), text="half of it")
    bench = Bench(spine, [A, away], [failed])
    task_id = await bench.submit()
    await bench.through()
    assert [request.tried.text for _, request in bench.parser.asked] == ["", "half of it"]
    meta = (await spine.task(task_id))["plan_meta"]
    assert (meta["partial"], meta["notes"]) == (True, ["said\ufffdso"])
    assert "said" in (await spine.notes(task_id))[None]  # type: ignore[index]
    await spine.audit()


@pytest.mark.parametrize("code", ["MODEL_BROKE_OFF", "QUOTA_EXCEEDED", "PARSER_UNAVAILABLE", PARSER_BROKE])
async def test_what_breaks_off_in_the_middle_is_asked_for_again_and_begun_once(spine: Spine, code: str) -> None:
    bench = Bench(spine, [A, Transient(code, "away")], [Transient(code, "away")], [planned(A, B, WRITE)])
    task_id = await bench.submit()
    await bench.through()
    assert [how for how, _ in bench.parser.asked] == ["stream", "plan", "plan"]
    assert [request.begun for _, request in bench.parser.asked] == [(), (A,), (A,)]
    task = await finished(spine, task_id)
    assert (task["status"], task["plan_meta"]["begun"]) == ("COMPLETED", ["a"])
    assert await spine.events(task_id, "a") == [
        ("PENDING", "READY"), ("READY", "QUEUED"), ("QUEUED", "RUNNING"), ("RUNNING", "COMPLETED"),
    ]  # fmt: skip


async def test_where_nothing_has_begun_it_may_with_the_next_answer(spine: Spine) -> None:
    bench = Bench(spine, [Transient("MODEL_BROKE_OFF", "away")], [A, planned(A, B)])
    task_id = await bench.submit()
    await bench.through()
    assert (await spine.task(task_id))["plan_meta"]["begun"] == ["a"]


async def test_a_dead_splitter_s_beginning_becomes_whole_by_the_next(spine: Spine) -> None:
    begun = asyncio.Event()

    async def die() -> None:
        begun.set()
        await asyncio.Event().wait()

    bench = Bench(spine, [A, die])
    task_id = await bench.submit()
    await bench.splitting.turn(bench.incarnation)
    await begun.wait()
    heir = await bench.heir([planned(A, B, WRITE)])
    assert bench.parser.is_closed
    await spine.succeed((await spine.claim(task_id))["a"], output=1)
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    await heir.through()
    ((how, request),) = heir.parser.asked
    assert (how, request.begun) == ("plan", (A,))
    task = await finished(spine, task_id)
    assert (task["status"], len(task["plan"]["subtasks"])) == ("COMPLETED", 3)


async def test_a_dead_splitter_s_beginning_of_which_no_plan_can_be_made_fails(spine: Spine) -> None:
    again = asyncio.Event()

    async def die() -> None:
        again.set()
        await asyncio.Event().wait()

    bench = Bench(spine, [A, Transient("MODEL_BROKE_OFF", "away")], [die])
    task_id = await bench.submit()
    await bench.splitting.turn(bench.incarnation)
    await again.wait()
    heir = await bench.heir([UserError("PLAN_FAILED", "no plan")])
    await heir.through()
    assert await spine.statuses(task_id) == {"a": "CANCELLED"}
    assert (await spine.task(task_id))["status"] == "FAILED"
    await spine.audit()


async def test_a_task_that_is_cancelled_in_the_middle_stops_the_parser(spine: Spine) -> None:
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    bench = Bench(spine, [A, wait])
    task_id = await bench.submit()
    await bench.splitting.turn(bench.incarnation)
    await begun.wait()
    await end_task(spine.engine, task_id, status="CANCELLED", error=None, reason="enough")
    await bench.through()
    assert bench.parser.is_closed
    assert await spine.statuses(task_id) == {"a": "CANCELLED"}
    await spine.audit()


async def test_a_splitter_that_lost_its_task_begins_nothing_more(spine: Spine) -> None:
    async def cancel() -> None:
        await end_task(spine.engine, task_id, status="CANCELLED", error=None, reason="enough")

    bench = Bench(spine, [A, cancel, B, planned(A, B)])
    task_id = await bench.submit()
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "CANCELLED"}
    await spine.audit()


async def test_what_can_not_be_written_down_now_begins_with_the_next(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, seen = 1, list[dict[str, str]]()

    async def away(*arguments: Any, **named: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Transient("DATABASE_UNAVAILABLE", "away")
        return await accept_plan(*arguments, **named)

    async def look() -> None:
        seen.append(await spine.statuses(task_id))

    monkeypatch.setattr(beginning, "accept_plan", away)
    bench = Bench(spine, [A, look, B, look, planned(A, B)])
    task_id = await bench.submit()
    await bench.through()
    assert seen == [{}, {"a": "QUEUED", "b": "READY"}]
    assert (await spine.task(task_id))["plan_meta"]["begun"] == ["a", "b"]


@pytest.mark.parametrize("where", ["begun", "added", "whole"])
async def test_a_commit_whose_answer_was_lost_is_found_and_gone_on_from(
    spine: Spine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    left = {"begun": 1, "added": 1, "whole": 2}[where]

    def losing(commit: Callable[..., Awaitable[Any]]) -> Any:
        async def lost(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            done = await commit(*arguments, **named)
            left -= 1
            if left == 0:
                raise Transient("DATABASE_UNAVAILABLE", "its answer was lost")
            return done

        return lost

    if where == "begun":
        monkeypatch.setattr(beginning, "accept_plan", losing(accept_plan))
    else:
        monkeypatch.setattr(growth, "extend_plan", losing(growth.extend_plan))
    bench = Bench(spine, [A, B, planned(A, B, WRITE)], [planned(A, B, WRITE)])
    task_id = await bench.submit()
    await bench.through()
    await bench.through()
    task = await finished(spine, task_id)
    assert (task["status"], len(task["plan"]["subtasks"])) == ("COMPLETED", 3)


async def test_two_prompts_begin_side_by_side(spine: Spine) -> None:
    turn = asyncio.Barrier(2)

    async def meet() -> None:
        await turn.wait()

    answer: list[Step] = [A, meet, B, meet, planned(A, B)]
    bench = Bench(spine, answer, list(answer))
    tasks = [await bench.submit(), await bench.submit()]
    await bench.through()
    for task_id in tasks:
        assert (await finished(spine, task_id))["status"] == "COMPLETED"


AWAY = Transient("MODEL_UNAVAILABLE", "away")


async def _ended(spine: Spine, monkeypatch: pytest.MonkeyPatch, *steps: Step) -> tuple[Bench, UUID]:
    """A task that has begun with A and B, and failed as its model was away too long."""
    monkeypatch.setattr(splitting, "AWAY_MAX_S", -1.0)
    bench = Bench(spine, [A, B, *steps, AWAY])
    task_id = await bench.submit()
    await bench.through()
    assert ((await spine.task(task_id))["status"], bench.parser.answers) == ("FAILED", [])
    return bench, task_id


async def _again(spine: Spine, task_id: UUID) -> str | None:
    return await retries.plan_again(spine.engine, task_id, budget=None, reason="retried")


async def test_a_retry_plans_on_and_what_is_done_is_never_done_again(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        (task,) = await spine.rows("SELECT id FROM tasks WHERE user_id = $1", spine.user_id)
        await spine.succeed((await spine.claim(task["id"]))["a"], output=1)

    bench, task_id = await _ended(spine, monkeypatch, run)
    assert await spine.statuses(task_id) == {"a": "COMPLETED", "b": "CANCELLED"}
    assert await _again(spine, task_id) == "PROCESSING"
    assert await _again(spine, task_id) is None
    row = await spine.task(task_id)
    assert (row["growth"], row["open_count"], row["error"], row["finished_at"]) == ("due", 1, None, None)
    await spine.audit()
    bench.parser.answers = [[AWAY]]
    await bench.through()
    # It failed over the same once more.
    assert (await spine.task(task_id))["status"] == "FAILED"
    assert await _again(spine, task_id) == "PROCESSING"
    bench.parser.answers = [[planned(A, B, WRITE)]]
    await bench.through()
    assert [(how, asked.begun, asked.may_begin) for how, asked in bench.parser.asked[1:]] == [("plan", (A,), False)] * 2
    assert await spine.statuses(task_id) == {"a": "COMPLETED", "b": "CANCELLED", "b_2": "QUEUED", "w": "READY"}
    assert "`b` had begun and was ended before it was done" in (await spine.notes(task_id))[None]  # type: ignore[index]
    task = await finished(spine, task_id)
    assert (task["status"], task["result"]) == ("COMPLETED", "x")
    assert (await spine.subtask(task_id, "a"))["attempt"] == 1
    assert (await spine.subtask(task_id, "w"))["dependencies"] == ["b_2"]
    assert await spine.events(task_id) == [
        (None, "PENDING"), ("PENDING", "SPLITTING"), ("SPLITTING", "READY"), ("READY", "PROCESSING"),
        ("PROCESSING", "FAILED"), ("FAILED", "PROCESSING"), ("PROCESSING", "FAILED"), ("FAILED", "PROCESSING"),
        ("PROCESSING", "COMPLETED"),
    ]  # fmt: skip


async def test_of_a_retried_beginning_nothing_that_failed_is_in_the_way(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def block() -> None:
        (task,) = await spine.rows("SELECT id FROM tasks WHERE user_id = $1", spine.user_id)
        await spine.fail((await spine.claim(task["id"]))["a"])

    bench, task_id = await _ended(spine, monkeypatch, block)
    assert await spine.statuses(task_id) == {"a": "BLOCKED", "b": "SKIPPED"}
    assert await _again(spine, task_id) == "PROCESSING"
    await spine.audit()
    # It begins once: what is whole of the next answer waits for all of it, though nothing of the first is left.
    bench.parser.answers = [[planned(A)]]
    await bench.through()
    ((how, request),) = bench.parser.asked[1:]
    assert (how, request.begun, request.may_begin) == ("plan", (), False)
    assert await spine.statuses(task_id) == {"a": "BLOCKED", "b": "SKIPPED", "a_2": "QUEUED"}
    task = await finished(spine, task_id, output=7)
    assert (task["status"], task["result"]) == ("COMPLETED", 7)


async def test_a_retried_beginning_goes_on_from_the_answer_that_was_paid_for(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Transient("MODEL_UNAVAILABLE", "away")
    away.tried = Tried(notes=("what was wrong",), text="{}")
    monkeypatch.setattr(splitting, "AWAY_MAX_S", -1.0)
    bench = Bench(spine, [A, away], [planned(A, B)])
    task_id = await bench.submit()
    await bench.through()
    assert await _again(spine, task_id) == "PROCESSING"
    await bench.through()
    assert [request.tried for _, request in bench.parser.asked] == [Tried(), away.tried]
    assert (await finished(spine, task_id))["status"] == "COMPLETED"


@pytest.mark.parametrize("error", [NeedsClarification(["Which?"]), UserError("PLAN_FAILED", "no plan")])
async def test_a_beginning_whose_prompt_can_not_be_planned_is_not_planned_again(spine: Spine, error: Exception) -> None:
    bench = Bench(spine, [A, error])
    task_id = await bench.submit()
    await bench.through()
    assert await _again(spine, task_id) is None
    assert (await spine.task(task_id))["status"] == "FAILED"
