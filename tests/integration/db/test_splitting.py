"""From a prompt to a plan in the record: by one splitter, whatever the parser does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.actors import splitting as module
from rayloom.actors.backlog import Backlog
from rayloom.actors.described import describe
from rayloom.actors.splitting import AT_ONCE, Splitting
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.parser_port import PARSER_BROKE, Planned, PlanRequest
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.values import JsonObject
from rayloom.db.blobs import Blob, BlobStore
from rayloom.db.incarnations import begin_incarnation, end_incarnation
from rayloom.db.s3 import BlobsAway
from rayloom.db.submit import NewTask, submit_task
from rayloom.db.task_moves import claim_tasks
from rayloom.tools.builtin.catalogue import BUILTINS
from tests.fakes.memory_queue import MemoryQueue
from tests.fakes.refusals import refusals
from tests.integration.db.spine import NODES, Spine

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

    def __init__(self, *script: JsonObject | Exception) -> None:
        self.script = list(script)
        self.asked: list[PlanRequest] = []
        self.called, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def plan(self, request: PlanRequest) -> Planned:
        self.asked.append(request)
        self.called.set()
        await self.go.wait()
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return Planned(plan=answer, source="outline", notes=("a note",), language="en", parsed_s=0.1, split_s=0.2)


class Bench:
    """A splitter of a scheduler that lives, and the queue that it fills."""

    def __init__(self, spine: Spine, parser: ScriptedParser, incarnation: UUID) -> None:
        self.queue, self.parser, self.incarnation = MemoryQueue(), parser, incarnation
        self.room = asyncio.Event()
        backlog = Backlog(spine.engine, self.queue)
        self.splitting = Splitting(spine.engine, spine.blobs, backlog, parser, on_room=self.room.set)
        self.splitting.tools, self.splitting.nodes = TOOLS, NODES

    async def through(self) -> None:
        """Take what there is, and see it through."""
        await self.splitting.turn(self.incarnation)
        async with asyncio.timeout(120):
            while self.splitting.count:
                self.room.clear()
                await self.room.wait()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)


@pytest.fixture
async def spine(spine: Spine) -> AsyncIterator[Spine]:
    """The one user's tasks; every other user's are put away by their own tests."""
    yield spine
    await spine.put_away()


async def _submit(spine: Spine, **more: Any) -> UUID:
    new = NewTask(user_id=spine.user_id, title="t", prompt="do it", priority=5, **more)
    return (await submit_task(spine.engine, spine.blobs, new)).task_id


def _bench(spine: Spine, *script: JsonObject | Exception) -> Bench:
    return Bench(spine, ScriptedParser(*script), spine.incarnation)


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
    ],
)
async def test_what_can_not_be_planned_ends_its_task_and_says_why(
    spine: Spine, answer: JsonObject | Exception, code: str
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
    known = bench.splitting.tools, bench.splitting.nodes
    if unknown == "tools":
        bench.splitting.tools = ToolSnapshot(version=-1, tools={})
    else:
        bench.splitting.nodes = ()
    task_id = await _submit(spine)
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PENDING"
    bench.splitting.tools, bench.splitting.nodes = known
    await bench.through()
    assert (await spine.task(task_id))["status"] == "PROCESSING"
