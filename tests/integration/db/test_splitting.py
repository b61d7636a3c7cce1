"""From a prompt to a plan in the record: by one splitter, whatever the parser does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.actors import splitting as module
from rayloom.actors.backlog import Backlog
from rayloom.actors.described import describe
from rayloom.actors.judge import Judge
from rayloom.actors.settings import EngineSettings
from rayloom.actors.splitting import AT_ONCE, Splitting
from rayloom.dag.errors import NeedsClarification, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import PARSER_BROKE, ToolSnapshot
from rayloom.dag.replan import ReplanRequest
from rayloom.dag.tried import PlanCall, Tried
from rayloom.dag.values import JsonObject
from rayloom.db import log_lines, retries
from rayloom.db.approvals import approve
from rayloom.db.blobs import Blob, BlobStore
from rayloom.db.incarnations import begin_incarnation, end_incarnation
from rayloom.db.ledger import Ledger
from rayloom.db.s3 import BlobsAway
from rayloom.db.submit import NewTask, submit_task
from rayloom.db.task_moves import claim_tasks, end_task
from rayloom.db.trace import read_trace
from rayloom.tools.builtin.catalogue import BUILTINS
from tests.fakes.memory_queue import MemoryQueue
from tests.fakes.refusals import refusals
from tests.integration.db.spine import NODES, Spine
from tests.integration.db.through import through

PLAN: JsonObject = {
    "subtasks": [
        {"id": "a", "type": "TOOL", "tool": "core.noop"},
        {"id": "b", "type": "TOOL", "tool": "core.echo", "input": {"value": {"$ref": "a.output"}}},
    ]
}
TOOLS = ToolSnapshot(
    version=1, tools={name: describe(name, f"builtin:{name}", BUILTINS[name]) for name in ("core.noop", "core.echo")}
)


class ScriptedParser:
    """Answers each call with the next of its script: a plan, or an error; the last one again and again."""

    def __init__(self, *script: JsonObject | BaseException | Planned) -> None:
        self.script = list(script)
        self.asked: list[PlanRequest] = []
        self.called, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def plan(self, request: PlanRequest) -> Planned:
        self.asked.append(request)
        self.called.set()
        await self.go.wait()
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Planned):
            return answer
        return Planned(plan=answer, source="outline", notes=("a note",), language="en", parsed_s=0.1, split_s=0.2)

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        yield await self.plan(request)

    async def replan(self, request: ReplanRequest) -> Planned:
        raise AssertionError("nothing here grows")


class Bench:
    """A splitter of a scheduler that lives, and the queue that it fills."""

    def __init__(
        self, spine: Spine, parser: ScriptedParser, incarnation: UUID, settings: EngineSettings | None = None
    ) -> None:
        self.queue, self.parser, self.incarnation = MemoryQueue(), parser, incarnation
        self.room = asyncio.Event()
        backlog = Backlog(spine.engine, self.queue)
        self.judge = Judge(settings or EngineSettings())
        self.splitting = Splitting(spine.engine, spine.blobs, backlog, parser, self.judge, on_room=self.room.set)
        self.judge.tools, self.judge.nodes = TOOLS, NODES

    async def through(self) -> None:
        """Take what there is, and see it through."""
        await through(self.splitting, self.room, self.incarnation)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    monkeypatch.setattr(module, "AGAIN_MAX_S", 0.0)


@pytest.fixture
async def spine(spine: Spine) -> AsyncIterator[Spine]:
    """The one user's tasks; every other user's are put away by their own tests."""
    yield spine
    await spine.put_away()


async def _submit(spine: Spine, **more: Any) -> UUID:
    new = NewTask(user_id=spine.user_id, title="t", prompt="do it", priority=5, **more)
    return (await submit_task(spine.engine, spine.blobs, new)).task_id


def _bench(
    spine: Spine, *script: JsonObject | BaseException | Planned, settings: EngineSettings | None = None
) -> Bench:
    return Bench(spine, ScriptedParser(*script), spine.incarnation, settings)


async def test_a_plan_is_stored_and_its_roots_are_queued(spine: Spine) -> None:
    bench = _bench(spine, PLAN)
    task_id = await _submit(spine, context={"city": "Berlin"}, options={"tools": {"allow": ["core.*"], "deny": []}})
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "READY"}
    (request,) = bench.parser.asked
    assert (request.task_id, request.prompt, request.context) == (str(task_id), "do it", {"city": "Berlin"})
    assert sorted(request.tools) == ["core.echo", "core.noop"]
    task = await spine.task(task_id)
    assert {name: task["plan_meta"][name] for name in ("source", "language", "notes", "parsed_s")} == {
        "source": "outline", "language": "en", "notes": ["a note"], "parsed_s": 0.1,
    }  # fmt: skip
    (line,) = await spine.rows("SELECT message, stream FROM log_lines WHERE task_id = $1", task_id)
    assert (line["message"], line["stream"]) == ("a note", "system")
    waiting = (await bench.queue.pop({})).waiting
    assert list(waiting.values()) == [1]
    assert str(task_id) in bench.queue.told


async def test_a_parser_that_is_away_is_asked_again(spine: Spine) -> None:
    away = Transient("PARSER_UNAVAILABLE", "away")
    bench = _bench(spine, away, away, away, away, away, PLAN)
    task_id = await _submit(spine)
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    assert len(bench.parser.asked) == 6


async def test_while_the_blob_store_is_away_the_parser_is_not_asked_again(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    large: JsonObject = {"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": "x" * 70_000}}
    task_id, bench = await _submit(spine), _bench(spine, {"subtasks": [large]})
    put, failures = BlobStore.put, 3

    async def away(store: BlobStore, data: bytes) -> Blob:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise BlobsAway("s3://b", "", "gone")
        return await put(store, data)

    monkeypatch.setattr(BlobStore, "put", away)
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    assert (len(bench.parser.asked), failures) == (1, -1)
    assert len(await spine.rows("SELECT FROM log_lines WHERE task_id = $1", task_id)) == 1


async def test_a_log_that_takes_nothing_has_no_plan_made_again(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> None:
        raise Transient("DATABASE_UNAVAILABLE", "away")

    monkeypatch.setattr(log_lines, "append_in", away)
    bench = _bench(spine, Transient("MODEL_UNAVAILABLE", "away"), PLAN)
    task_id = await _submit(spine)
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    assert len(bench.parser.asked) == 2


async def test_a_prompt_that_breaks_the_parser_again_and_again_ends_its_task(spine: Spine) -> None:
    away, broke = Transient("PARSER_UNAVAILABLE", "away"), Transient(PARSER_BROKE, "the parser took it and died")
    bench = _bench(spine, broke, away, broke, away, away, broke, PLAN)
    task_id = await _submit(spine)
    await bench.through()
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["code"], task["error"]["retryable"]) == ("FAILED", "PARSER_FAILED", False)
    assert "the parser took it and died, 3 times" in task["error"]["message"]
    assert len(bench.parser.asked) == 6


async def test_a_parser_that_broke_once_is_asked_again(spine: Spine) -> None:
    bench = _bench(spine, Transient(PARSER_BROKE, "it died"), PLAN)
    task_id = await _submit(spine)
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"


async def test_suspects_are_never_with_the_parser_together(spine: Spine) -> None:
    class Parser(ScriptedParser):
        inside = most = 0

        async def plan(self, request: PlanRequest) -> Planned:
            again = [asked.task_id for asked in self.asked].count(request.task_id) > 0
            self.inside += again
            self.most = max(self.most, self.inside)
            try:
                await asyncio.sleep(0)
                return await super().plan(request)
            finally:
                self.inside -= again

    parser = Parser(*[Transient(PARSER_BROKE, "it died")] * 12, PLAN)
    bench = Bench(spine, parser, spine.incarnation)
    for _ in range(4):
        await _submit(spine)
    await bench.through()
    assert (parser.most, len(parser.asked)) == (1, 12)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (UserError("NEEDS_CLARIFICATION", "which city?\0"), "NEEDS_CLARIFICATION"),
        ({"subtasks": []}, "PLAN_REFUSED"),
        ({"subtasks": [{"id": "a", "type": "TOOL", "tool": "no.such"}]}, "PLAN_REFUSED"),
        (ZeroDivisionError("a bug"), "INTERNAL"),
        (type("PanicException", (BaseException,), {})("native code"), "INTERNAL"),
    ],
)
async def test_what_can_not_be_planned_ends_its_task_and_says_why(
    spine: Spine, answer: JsonObject | BaseException, code: str
) -> None:
    bench = _bench(spine, answer)
    task_id = await _submit(spine)
    await bench.through()
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["code"]) == ("FAILED", code)
    assert str(task_id) in bench.queue.told


async def test_a_tool_that_the_task_may_not_use_is_refused(spine: Spine) -> None:
    bench = _bench(spine, PLAN)
    task_id = await _submit(spine, options={"tools": {"allow": ["*"], "deny": ["core.e*"]}})
    await bench.through()
    assert (await spine.task(task_id))["error"]["code"] == "PLAN_REFUSED"
    assert list(bench.parser.asked[0].tools) == ["core.noop"]


@pytest.mark.parametrize(
    ("within", "usable"),
    [
        ({"allow": ["*.noop"], "deny": [], "max_level": "execute"}, ["core.noop"]),
        ({"allow": ["*"], "deny": [], "max_level": "admin"}, ["core.echo", "core.noop"]),
    ],
)
async def test_what_its_key_may_not_use_is_not_offered(spine: Spine, within: JsonObject, usable: list[str]) -> None:
    bench = _bench(spine, PLAN)
    await _submit(spine, options={"tools": {"allow": ["*"], "deny": [], "within": within}})
    await bench.through()
    assert sorted(bench.parser.asked[0].tools) == usable


async def test_only_so_many_are_split_at_once(spine: Spine) -> None:
    bench = _bench(spine, PLAN)
    bench.parser.go.clear()
    made = [await _submit(spine) for _ in range(AT_ONCE + 2)]
    await bench.splitting.turn(spine.incarnation)
    await bench.splitting.turn(spine.incarnation)
    assert bench.splitting.count == AT_ONCE
    bench.parser.go.set()
    await bench.through()
    await bench.through()
    assert [(await spine.task(task_id))["status"] for task_id in made] == ["PROCESSING"] * len(made)


async def _taken_over(spine: Spine, slow: Bench) -> tuple[UUID, UUID]:
    """A task whose splitter was declared dead while the parser thought, and that another has split since."""
    slow.parser.go.clear()
    task_id = await _submit(spine)
    await slow.splitting.turn(slow.incarnation)
    await slow.parser.called.wait()
    await end_incarnation(spine.engine, slow.incarnation)
    heir = uuid7()
    await begin_incarnation(spine.engine, heir, actor="the heir", exclusive=False)
    other = Bench(spine, ScriptedParser(PLAN), heir)
    await other.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    return task_id, heir


@pytest.mark.parametrize(
    ("answer", "event"),
    [(PLAN, "plan_accepted"), (UserError("UNCLEAR", "what?"), "gave_up"), (ZeroDivisionError("a bug"), "gave_up")],
)
async def test_a_splitter_that_lost_its_task_changes_nothing_any_more(
    spine: Spine, answer: Any, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slow = _bench(spine, answer)
    task_id, _ = await _taken_over(spine, slow)
    slow.parser.go.set()
    async with asyncio.timeout(120):
        while slow.splitting.count:
            slow.room.clear()
            await slow.room.wait()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "READY"}
    assert refusals(caplog) == [{"task_id": str(task_id), "from": "PROCESSING", "event": event}]


async def test_a_closed_splitter_leaves_its_tasks_to_the_next(spine: Spine) -> None:
    slow = _bench(spine, PLAN)
    slow.parser.go.clear()
    task_id = await _submit(spine)
    await slow.splitting.turn(spine.incarnation)
    await slow.parser.called.wait()
    await slow.splitting.close()
    assert slow.splitting.count == 0
    assert (await spine.task(task_id))["status"] == "SPLITTING"
    await end_incarnation(spine.engine, spine.incarnation)
    heir = uuid7()
    await begin_incarnation(spine.engine, heir, actor="the heir", exclusive=False)
    await Bench(spine, ScriptedParser(PLAN), heir).through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"


async def test_a_task_whose_claim_was_not_answered_is_taken_again(spine: Spine) -> None:
    bench = Bench(spine, ScriptedParser(PLAN), spine.incarnation)
    task_id = await _submit(spine)
    # As if the answer to this claim had been lost on its way to the splitter.
    assert [task.task_id for task in await claim_tasks(spine.engine, incarnation=spine.incarnation, dead=(), limit=8)]
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"


async def test_what_is_being_split_is_not_taken_twice(spine: Spine) -> None:
    parser = ScriptedParser(PLAN)
    parser.go.clear()
    bench = Bench(spine, parser, spine.incarnation)
    await _submit(spine)
    await bench.splitting.turn(spine.incarnation)
    await parser.called.wait()
    await bench.splitting.turn(spine.incarnation)
    assert bench.splitting.count == 1
    parser.go.set()
    await bench.through()
    assert len(parser.asked) == 1


@pytest.mark.parametrize("unknown", ["tools", "nodes"])
async def test_nothing_is_split_before_tools_and_nodes_are_known(spine: Spine, unknown: str) -> None:
    bench = _bench(spine, PLAN)
    known = bench.judge.tools, bench.judge.nodes
    if unknown == "tools":
        bench.judge.tools = ToolSnapshot(version=-1, tools={})
    else:
        bench.judge.nodes = ()
    task_id = await _submit(spine)
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PENDING"
    bench.judge.tools, bench.judge.nodes = known
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"


def _planned(**more: Any) -> Planned:
    return Planned(plan=PLAN, source="model", notes=(), language="en", parsed_s=0.0, split_s=0.2, **more)


async def test_a_plan_may_use_only_what_its_task_and_its_key_may(spine: Spine) -> None:
    rules: list[JsonObject] = [
        {"allow": ["core.echo"]},
        {"allow": ["*"], "within": {"allow": ["core.echo"]}},
        {"allow": ["*"], "within": {"allow": ["*"], "deny": ["core.noop"]}},
    ]
    for rule in rules:
        task_id = await _submit(spine, options={"tools": rule})
        await _bench(spine, PLAN).through()
        task = await spine.task(task_id)
        assert (task["status"], task["error"]["code"]) == ("FAILED", "PLAN_REFUSED"), rule
        assert "core.noop" in task["error"]["message"]


async def test_thinking_is_planned_where_a_model_is_configured(spine: Spine) -> None:
    thinking: JsonObject = {"subtasks": [{"id": "a", "type": "REASONING", "instruction": "think"}]}
    task_id = await _submit(spine)
    await _bench(spine, thinking).through()
    assert (await spine.task(task_id))["error"]["code"] == "PLAN_REFUSED"
    task_id = await _submit(spine, options={"budget": {"max_tokens": 9}})
    bench = _bench(spine, thinking, settings=EngineSettings(with_models=True))
    await bench.through()
    assert await spine.statuses(task_id) == {"a": "QUEUED"}
    (request,) = bench.parser.asked
    assert request.nodes == NODES
    assert request.budget == {"max_tokens": 9}
    assert (request.payer.user_id, request.payer.task_id) == (str(spine.user_id), str(task_id))


async def test_questions_end_the_task_and_stand_in_its_error(spine: Spine) -> None:
    task_id = await _submit(spine)
    await _bench(spine, NeedsClarification(["Which report?", "For whom?"])).through()
    error = (await spine.task(task_id))["error"]
    assert (error["code"], error["class"]) == ("NEEDS_CLARIFICATION", "user")
    assert error["questions"] == ["Which report?", "For whom?"]


CALL = PlanCall(purpose="split", model="m", use=ModelUse(tokens_in=5, tokens_out=6), began_s=0, duration_s=0.1)


def _after(error: RayloomError, text: str = "") -> RayloomError:
    error.tried = Tried(notes=("what was wrong",), calls=(CALL,), text=text)
    return error


@pytest.mark.parametrize(
    "ended",
    [
        UserError("PLAN_FAILED", "no"),
        NeedsClarification(["Which?"]),
        Refused("BUDGET_EXCEEDED", "spent"),
        Planned(
            plan={"subtasks": [{"id": "a", "type": "TOOL", "tool": "core.nothing"}]}, source="model", calls=(CALL,),
            notes=("what was wrong",), language="en", parsed_s=0.0, split_s=0.2,
        ),
    ],
    ids=["no plan", "questions", "over budget", "a plan that is refused"],
)  # fmt: skip
async def test_a_planning_that_failed_is_in_the_record(spine: Spine, ended: RayloomError | Planned) -> None:
    task_id = await _submit(spine)
    await _bench(spine, _after(ended) if isinstance(ended, RayloomError) else ended).through()
    task = await spine.task(task_id)
    assert task["status"] == "FAILED"
    assert task["plan_meta"]["usage"] == {"tokens": 11, "cost_usd": 0.0}
    assert (task["plan_meta"]["notes"], len(task["plan_meta"]["calls"])) == (["what was wrong"], 1)
    lines = await spine.rows("SELECT stream, message FROM log_lines WHERE task_id = $1 ORDER BY id", task_id)
    told = [(line["stream"], line["message"]) for line in lines]
    assert told[0] == ("model", "split: m, 5 + 6 tokens, 0.000000 USD, 0.1 s")
    assert ("system", "what was wrong") in told


async def test_the_calls_that_planned_a_task_are_in_its_trace_though_it_was_cancelled(spine: Spine) -> None:
    task_id = await _submit(spine)
    await _bench(spine, PLAN).through()
    ledger = Ledger(spine.engine)
    payer = Payer(user_id=str(spine.user_id), task_id=str(task_id))
    calls = [
        Reservation(id=str(uuid7()), payer=each, model="m", purpose="split", tokens=20, cost_usd=0.0, lease_s=60)
        for each in (payer, replace(payer, sub_task_id=str(uuid7()), attempt=1))
    ]
    await ledger.reserve(calls)
    await ledger.settle([(call, ModelUse(tokens_in=5, tokens_out=6)) for call in calls])
    await ledger.close()
    await end_task(spine.engine, task_id, status="CANCELLED", error=None, reason="enough")
    rows = await read_trace(spine.engine, task_id, spine.user_id)
    assert rows is not None
    # What a subtask asked is told by its attempt.
    assert [(row.purpose, row.tokens_in, row.tokens_out) for row in rows.calls] == [("split", 5, 6)]


async def test_what_was_tried_is_handed_on_to_the_next_try(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = await _submit(spine)
    away = _after(Transient("MODEL_UNAVAILABLE", "away"), text="{}")
    bench = _bench(spine, away, Transient(PARSER_BROKE, "it died"), PLAN)
    await bench.through()
    assert [asked.tried.text for asked in bench.parser.asked] == ["", "{}", "{}"]
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    # It is told, too, where nobody goes on from it.
    monkeypatch.setattr(module, "AWAY_MAX_S", -1.0)
    task_id = await _submit(spine)
    await _bench(spine, _after(Transient("MODEL_UNAVAILABLE", "away"))).through()
    assert (await spine.task(task_id))["plan_meta"]["usage"]["tokens"] == 11


async def test_who_has_enough_waiting_keeps_nobody_else_waiting(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_OF_USER_MAX", 2)
    monkeypatch.setattr(module, "AGAIN_S", 3_600.0)
    monkeypatch.setattr(module, "AGAIN_MAX_S", 3_600.0)
    bench = _bench(spine, Transient("QUOTA_EXCEEDED", "spent"))
    waiting = [await _submit(spine) for _ in range(2)]
    await bench.splitting.turn(spine.incarnation)
    while len(bench.splitting._jobs.waiting) < 2:
        bench.room.clear()
        await bench.room.wait()
    more = await _submit(spine)
    bench.parser.script = [PLAN]
    other = await Spine.of_new_user(spine.engine)
    theirs = await _submit(other)
    await bench.splitting.turn(spine.incarnation)
    while (await spine.task(theirs))["status"] != "PROCESSING":
        bench.room.clear()
        await bench.room.wait()
    statuses = [(await spine.task(each))["status"] for each in (*waiting, more)]
    assert statuses == ["SPLITTING", "SPLITTING", "PENDING"]
    await bench.splitting.close()
    await other.put_away()


async def test_a_plan_over_its_budget_waits_for_approval_and_says_why(spine: Spine) -> None:
    task_id = await _submit(spine)
    await _bench(spine, _planned(over_budget=("`max_tokens`: too many",), calls=(CALL,), repairs=1)).through()
    lines = await spine.rows("SELECT message FROM log_lines WHERE task_id = $1 AND stream = 'model'", task_id)
    assert [line["message"] for line in lines] == [CALL.line]
    task = await spine.task(task_id)
    assert task["status"] == "READY"
    assert task["held_at"] is not None
    assert task["plan_meta"]["usage"]["tokens"] == 11
    assert task["plan_meta"]["repairs"] == 1
    events = await spine.rows("SELECT reason FROM task_events WHERE task_id = $1 AND kind = 'approval'", task_id)
    assert [event["reason"] for event in events] == ["over budget: `max_tokens`: too many"]
    await approve(spine.engine, task_id, subtask=None, reason="go on")
    assert (await spine.task(task_id))["status"] == "PROCESSING"


async def test_a_model_that_is_away_is_waited_for_but_not_for_ever(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, quota = Transient("MODEL_UNAVAILABLE", "away"), Transient("QUOTA_EXCEEDED", "spent")
    task_id = await _submit(spine)
    await _bench(spine, away, away, away, away, PLAN).through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    lines = await spine.rows("SELECT message FROM log_lines WHERE task_id = $1 ORDER BY id", task_id)
    assert [line["message"].startswith("not planned yet: away") for line in lines] == [True] * 3 + [False]
    monkeypatch.setattr(module, "AWAY_MAX_S", -1.0)
    # Who has spent a quota waits for another one, however long that takes.
    task_id = await _submit(spine)
    await _bench(spine, quota, quota, PLAN).through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    task_id = await _submit(spine)
    await _bench(spine, away, PLAN).through()
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["code"]) == ("FAILED", "MODEL_UNAVAILABLE")


async def test_a_task_that_failed_without_a_plan_is_planned_again(spine: Spine) -> None:
    task_id = await _submit(spine)
    await _bench(spine, Refused("BUDGET_EXCEEDED", "spent")).through()
    row = await spine.task(task_id)
    assert (row["status"], row["error"]["code"], row["plan"]) == ("FAILED", "BUDGET_EXCEEDED", None)
    given: JsonObject = {"max_tokens": 9_000}
    assert await retries.plan_again(spine.engine, task_id, budget=given, reason="retried") == "PENDING"
    assert await retries.plan_again(spine.engine, task_id, budget=given, reason="retried") is None
    await _bench(spine, PLAN).through()
    row = await spine.task(task_id)
    assert (row["status"], row["error"], row["options"]["budget"]) == ("PROCESSING", None, given)
    assert ("FAILED", "PENDING") in await spine.events(task_id)
    await spine.audit()


async def test_whose_prompt_can_not_be_planned_is_not_planned_again(spine: Spine) -> None:
    task_id = await _submit(spine)
    await _bench(spine, NeedsClarification(("which one?",))).through()
    assert (await spine.task(task_id))["status"] == "FAILED"
    assert await retries.plan_again(spine.engine, task_id, budget={"max_tokens": 9}, reason="retried") is None
    row = await spine.task(task_id)
    assert (row["status"], "budget" in row["options"]) == ("FAILED", False)


async def test_a_quota_is_asked_for_again_and_again_while_its_window_lasts() -> None:
    away = module.Away()
    spent = Transient("QUOTA_EXCEEDED", "spent", retry_after_s=55)
    assert [away.pause_s(spent, 0.0), away.pause_s(spent, 10**6)] == [module.QUOTA_AGAIN_S] * 2


async def test_who_waits_for_a_model_keeps_nobody_from_being_split(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_MAX_S", 3600.0)
    monkeypatch.setattr(module, "AGAIN_S", 3600.0)
    away = Transient("MODEL_UNAVAILABLE", "away")
    bench = _bench(spine, *[away] * AT_ONCE, PLAN)
    for _ in range(AT_ONCE):
        await _submit(spine)
    await bench.splitting.turn(bench.incarnation)
    async with asyncio.timeout(120):
        while len(bench.splitting._jobs.waiting) < AT_ONCE:
            bench.room.clear()
            await bench.room.wait()
    task_id = await _submit(spine)
    await bench.splitting.turn(bench.incarnation)
    async with asyncio.timeout(120):
        while bench.splitting.count > AT_ONCE:
            bench.room.clear()
            await bench.room.wait()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    await bench.splitting.close()


async def test_a_task_that_is_cancelled_is_planned_no_longer(spine: Spine) -> None:
    bench = _bench(spine, PLAN, settings=EngineSettings(with_models=True))
    bench.parser.go.clear()
    cancelled, other = await _submit(spine), await _submit(spine)
    await bench.splitting.turn(bench.incarnation)
    async with asyncio.timeout(120):
        while len(bench.parser.asked) < 2:
            bench.parser.called.clear()
            await bench.parser.called.wait()
    await end_task(spine.engine, cancelled, status="CANCELLED", error=None, reason="cancelled by its user")
    await bench.splitting.turn(bench.incarnation)
    async with asyncio.timeout(120):
        while bench.splitting.count > 1:
            bench.room.clear()
            await bench.room.wait()
    bench.parser.go.set()
    async with asyncio.timeout(120):
        while bench.splitting.count:
            bench.room.clear()
            await bench.room.wait()
    assert (await spine.task(other))["status"] == "PROCESSING"
    assert (await spine.task(cancelled))["status"] == "CANCELLED"
