"""An attempt by a model, from its order to its outcome."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import orjson
import pytest

from rayloom.actors.attempt import run_attempt
from rayloom.actors.order import Thought
from rayloom.actors.settings import EngineSettings
from rayloom.actors.shared_calls import SharedCalls
from rayloom.dag.breaker import BreakerView
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.model import ModelRequest
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.values import Json
from rayloom.tools.skills.skill import dumped, read_skill
from rayloom.tools.thinking import coding
from rayloom.tools.tool import ToolContext, ToolResult
from tests.fakes.scripted_models import ScriptedModels
from tests.fakes.tools import tool
from tests.unit.actors.test_attempt import SPEC, Place, Run, ScriptedTool, gives, order, raises, waits
from tests.unit.actors.test_shared_calls import Memory
from tests.unit.tools.thinking.test_coding import Box, program, ran
from tests.unit.tools.thinking.test_steps import answers, calls


def place(models: ScriptedModels | None, **tools: Run) -> Place:
    made = Place(waits, thinks=models)
    for name, do in tools.items():
        known = name.replace("_", ".")
        made.registry[known] = (
            replace(tool(known), schema={"type": "object"}), ScriptedTool(do, replace(SPEC, name=known)),
        )  # fmt: skip
    return made


def thought(kind: str = "REASONING", instruction: str = "Think.", **more: Any) -> Thought:
    rules = orjson.dumps(more.pop("rules")).decode() if "rules" in more else ""
    return Thought(task_type=kind, instruction=instruction, rules=rules, **more)


async def attempt(where: Place, input_: Json = None, told: Thought | None = None, **more: Any) -> Outcome:
    return await run_attempt(order(input_, tool="", thought=told or thought(), **more), where)


def spans(outcome: Outcome) -> list[tuple[str, str, bool]]:
    return [(span["kind"], span["name"], span["ok"]) for span in orjson.loads(outcome.spans)]


def code_of(outcome: Outcome) -> str:
    assert outcome.error is not None
    return outcome.error.code


async def test_reasoning_is_an_attempt_like_any_other() -> None:
    models = ScriptedModels(["It is seven."])
    where = place(models)
    where.known = {"up": {"n": 7}}
    outcome = await attempt(where, {"n": {"$ref": "up.output.n"}}, referred=("up",))
    assert (outcome.verdict, outcome.output) == ("succeeded", '{"text":"It is seven."}')
    assert outcome.tokens_used == models.use.tokens > 0
    assert spans(outcome) == [
        ("phase", "PREPARE_ENV", True), ("model", "reason", True), ("model", "reasoning", True),
        ("phase", "EXECUTING", True), ("phase", "POST_PROCESS", True),
    ]  # fmt: skip
    assert '{"n":7}' in models.asked[0].messages[1].text
    assert "model" in {stream for stream, _ in where.log.lines}


async def test_what_a_failed_attempt_has_used_is_told() -> None:
    models = ScriptedModels(["a b c", Transient("MODEL_UNAVAILABLE", "away", retry_after_s=4)])
    outcome = await attempt(place(models), {"output_schema": {"type": "integer"}})
    assert (outcome.verdict, code_of(outcome), outcome.called) == ("failed", "MODEL_UNAVAILABLE", True)
    assert outcome.error is not None
    assert (outcome.error.retryable, outcome.error.retry_after_s) == (True, 4)
    assert outcome.tokens_used == models.use.tokens > 3
    assert [span for span in spans(outcome) if span[0] == "model"] == [
        ("model", "reason", False), ("model", "repair", False), ("model", "reasoning", False),
    ]  # fmt: skip


async def test_what_was_never_asked_spends_no_retry() -> None:
    class Closed(ScriptedModels):
        async def complete(self, request: ModelRequest, **_more: Any) -> Any:
            raise Transient("ACTOR_UNAVAILABLE", "the token controller is away")

    outcome = await attempt(place(Closed()))
    assert (outcome.verdict, code_of(outcome), outcome.called) == ("lost", "ACTOR_UNAVAILABLE", False)


async def test_without_a_model_nothing_is_tried() -> None:
    outcome = await attempt(place(None))
    assert (outcome.verdict, code_of(outcome), outcome.called) == ("failed", "MODEL_MISSING", False)


async def test_what_is_reserved_in_the_input_is_checked() -> None:
    outcome = await attempt(place(ScriptedModels()), {"use_tools": "core.noop"})
    assert code_of(outcome) == "INPUT_INVALID"


async def test_a_stop_reaches_the_model() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    class Silent(ScriptedModels):
        async def complete(self, request: ModelRequest, **_more: Any) -> Any:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

    running = asyncio.ensure_future(attempt(place(Silent())))
    await asked.wait()
    running.cancel()
    outcome = await running
    assert (outcome.verdict, left.is_set()) == ("cancelled", True)


async def test_equal_attempts_share_an_answer_where_they_may() -> None:
    models = ScriptedModels(["one", "two", "three"])
    where = place(models)
    where.calls = SharedCalls(Memory(), ttl_s=60)
    first = await attempt(where, {"a": 1}, cacheable=True)
    again = await attempt(where, {"a": 1}, cacheable=True)
    assert first.output == again.output == '{"text":"one"}'
    assert again.tokens_used == 0
    other = await attempt(where, {"a": 1}, thought(instruction="Think again."), cacheable=True)
    scoped = await attempt(where, {"a": 1}, thought(rules={"deny": ["x"]}), cacheable=True)
    assert (other.output, scoped.output) == ('{"text":"two"}', '{"text":"three"}')


async def test_the_skills_of_a_subtask_are_read_to_the_model() -> None:
    text = b"---\nname: maps\ndescription: About maps.\n---\nLook north first.\n"
    data = dumped(read_skill({"SKILL.md": text}, folder="maps"))
    version = hashlib.sha256(data).hexdigest()
    models = ScriptedModels(["ok", "ok"])
    where = place(models)
    where.kept_contents[version] = data
    skill = RegisteredTool(
        name="skill.maps", type="SKILL", description="About maps.", version=version, schema={}, output_schema=None,
        endpoint=f"skill:{version}", config={}, resources={}, lane="own", permission_level="read", is_active=True,
    )  # fmt: skip
    where.registry["skill.maps"] = (skill, ScriptedTool(waits))
    told = thought(skills=("skill.maps",))
    assert (await attempt(where, None, told)).verdict == "succeeded"
    assert "# Skill skill.maps: About maps.\n\nLook north first." in models.asked[0].messages[0].text
    denied = replace(told, rules='{"deny": ["skill.*"]}')
    assert code_of(await attempt(where, None, denied)) == "TOOL_REFUSED"
    where.registry["skill.maps"] = (replace(skill, is_active=False), ScriptedTool(waits))
    assert code_of(await attempt(where, None, told)) == "TOOL_INACTIVE"
    del where.registry["skill.maps"]
    assert code_of(await attempt(where, None, told)) == "TOOL_UNKNOWN"
    where.registry["skill.maps"] = (tool("skill.maps"), ScriptedTool(waits))
    assert code_of(await attempt(where, None, told)) == "TOOL_UNKNOWN"


async def test_a_model_calls_tools_as_a_subtask_would() -> None:
    seen: list[ToolContext] = []

    async def look(input_: dict[str, Json], context: ToolContext) -> ToolResult:
        seen.append(context)
        return ToolResult(output={"at": input_["at"]}, tokens_used=5)

    models = ScriptedModels([calls("look", at=1), calls("look", at=2), answers("done")])
    where = place(models, look=look)
    outcome = await attempt(where, {"use_tools": ["lo*"]})
    assert (outcome.verdict, outcome.output) == ("succeeded", '{"text":"done"}')
    assert outcome.tokens_used == models.use.tokens + 10
    assert [span for span in spans(outcome) if span[0] == "tool"] == [("tool", "look", True)] * 2
    # A receiver must not take the second call for a repetition of the first.
    assert len({context.idempotency_key for context in seen}) == 2
    assert all(context.idempotency_key.startswith("s-") for context in seen)
    assert [call.succeeded for call in where.reported] == [True, True]


@pytest.mark.parametrize(
    ("error", "succeeded"),
    [(Transient("HTTP_503", "away"), [False]), (UserError("BAD", "bad"), []), (ZeroDivisionError(), [False])],
)
async def test_how_its_calls_went_is_told_to_their_breakers(error: Exception, succeeded: list[bool]) -> None:
    models = ScriptedModels([calls("look"), answers("it failed")])
    where = place(models, look=raises(error))
    assert (await attempt(where, {"use_tools": ["look"]})).verdict == "succeeded"
    assert [call.succeeded for call in where.reported] == succeeded


@pytest.mark.parametrize(
    ("rules", "registered"),
    [
        ({"deny": ["strong"]}, {}),
        ({"allow": ["weak"]}, {}),
        ({"within": {"deny": ["strong"]}}, {}),
        ({"max_level": "write"}, {"permission_level": "execute"}),
        ({"within": {"max_level": "read"}}, {"permission_level": "write"}),
        ({}, {"permission_level": "admin"}),
        ({}, {"is_active": False}),
    ],
)
async def test_a_model_that_was_talked_into_it_is_refused(rules: dict[str, Any], registered: dict[str, Any]) -> None:
    """The endpoint may ignore the schema, and the model may have read anything: what is not its own it can't call."""
    where = place(None, weak=gives(1), strong=waits)
    where.settings = where.settings.model_copy(update={"engine": EngineSettings(approval_levels=("admin",))})
    known, code = where.registry["strong"]
    where.registry["strong"] = (replace(known, **registered), code)

    class Rogue(ScriptedModels):
        async def complete(self, request: ModelRequest, **more: Any) -> Any:
            assert "strong" not in str(request.schema)
            return await super().complete(replace(request, schema={}), **more)

    models = where.thinks = Rogue([calls("strong"), answers("no")])
    outcome = await attempt(where, {"use_tools": ["*"]}, thought(rules=rules))
    assert outcome.verdict == "succeeded"
    assert "TOOL_REFUSED" in models.asked[1].messages[-1].text
    assert [span for span in spans(outcome) if span[0] == "tool"] == []


async def test_what_it_was_not_given_it_can_not_call_either() -> None:
    class Rogue(ScriptedModels):
        async def complete(self, request: ModelRequest, **more: Any) -> Any:
            return await super().complete(replace(request, schema={}), **more)

    models = Rogue([calls("strong"), calls("gone"), answers("no")])
    where = place(models, weak=gives(1), strong=waits)
    assert (await attempt(where, {"use_tools": ["weak"]})).verdict == "succeeded"
    assert "not among those" in models.asked[1].messages[-1].text
    assert "no such tool" in models.asked[2].messages[-1].text


async def test_what_has_an_open_breaker_is_not_offered() -> None:
    where = place(ScriptedModels(), look=waits)
    where.breakers = {where.registry["look"][0].breaker_key: BreakerView(state="open", retry_at=None)}
    assert code_of(await attempt(where, {"use_tools": ["look"]})) == "TOOLS_REFUSED"


async def test_a_tool_that_is_switched_off_meanwhile_is_not_called_any_more() -> None:
    async def look(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
        known, code = where.registry["look"]
        where.registry["look"] = (replace(known, is_active=False), code)
        return ToolResult(output=1)

    models = ScriptedModels([calls("look", at=1), calls("look", at=2), answers("no")])
    where = place(models, look=look)
    outcome = await attempt(where, {"use_tools": ["look"]})
    assert "TOOL_REFUSED: look can't be called here: it is switched off" in models.asked[2].messages[-1].text
    assert [span for span in spans(outcome) if span[0] == "tool"] == [("tool", "look", True)]


async def test_while_the_registry_is_away_what_was_known_last_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ScriptedModels([calls("look"), answers("done")])
    where, asked = place(models, look=gives(1)), 0
    tools = where.tools

    async def once(version: int) -> ToolSnapshot:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise Transient("ACTOR_UNAVAILABLE", "the registry is away")
        return await tools(version)

    monkeypatch.setattr(where, "tools", once)
    outcome = await attempt(where, {"use_tools": ["look"]})
    assert (asked, outcome.output) == (2, '{"text":"done"}')


async def test_an_input_that_does_not_fit_is_told_to_the_model() -> None:
    models = ScriptedModels([calls("look", at="x"), answers("no")])
    where = place(models, look=waits)
    spec = replace(SPEC, name="look", input_schema={"properties": {"at": {"type": "integer"}}})
    where.registry["look"] = (where.registry["look"][0], ScriptedTool(waits, spec))
    outcome = await attempt(where, {"use_tools": ["look"]})
    assert "INPUT_INVALID" in models.asked[1].messages[-1].text
    assert ("tool", "look", False) in spans(outcome)
    assert where.reported == []


async def test_code_is_written_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(ran(stderr="boom", exit_code=1), ran("3"))
    monkeypatch.setattr(coding, "run_source", box)
    models = ScriptedModels([program("bad"), program("good")])
    outcome = await attempt(place(models, python_run=waits), {"numbers": [1, 2]}, thought("CODE_GEN", "Add."))
    assert outcome.output is not None
    assert orjson.loads(outcome.output)["result"] == 3
    assert outcome.stdout == "3"
    assert [name for _, name, _ in spans(outcome)] == [
        "PREPARE_ENV", "code", "python.run", "mend", "python.run", "coding", "EXECUTING", "POST_PROCESS",
    ]  # fmt: skip


async def test_code_needs_the_leave_of_what_runs_it() -> None:
    where = place(ScriptedModels(), python_run=gives("as given"))
    told = thought("CODE_GEN", rules={"deny": ["python.run"]})
    assert code_of(await attempt(where, None, told)) == "TOOL_REFUSED"
    # Somebody has retried it with code of their own.
    outcome = await attempt(where, {"code": "1"}, thought("CODE_GEN"))
    assert (outcome.output, outcome.called) == ('"as given"', True)
