"""Parsing and splitting with a model by a script: rounds of mending, questions, and when the outline is taken."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from rayloom.dag.errors import AnswerInvalid, NeedsClarification, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import Completion, ModelRequest, ModelUse, Payer
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.replan import Reached, ReplanRequest
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verify import verify
from rayloom.serve.parser import Parser
from rayloom.serve.planner import Planner
from tests.fakes.answering_models import AnsweringModels, Step, completion
from tests.unit.dag.planning.views import VIEWS

OUTLINED = "1. @any {}\n2. think about it"
GOOD = json.dumps(
    {
        "intent": "look",
        "max_tokens": 50,
        "subtasks": [{"id": "a", "tool": "any"}, {"id": "b", "do": "Say so", "after": ["a"]}],
    }
)
BAD = json.dumps({"subtasks": [{"id": "a", "tool": "nothing"}]})


def request(prompt: str = "Have a look", **more: Any) -> PlanRequest:
    return PlanRequest(task_id="t", prompt=prompt, context={}, tools=VIEWS, payer=Payer(user_id="u"), **more)


async def plan(*script: Step, asked: PlanRequest | None = None) -> tuple[Planned, AnsweringModels]:
    models = AnsweringModels(*script)
    planned = await Parser(lambda payer: models).plan(asked or request())
    # Whatever it proposes can run.
    verify(parse_plan(planned.plan), tools=VIEWS, nodes=(), model_available=True)
    return planned, models


async def test_a_plan_comes_with_all_that_is_known_of_it() -> None:
    planned, models = await plan(GOOD, asked=request(p50_s={"any": 7.0}))
    assert (planned.source, planned.repairs, planned.language) == ("model", 0, "en")
    assert planned.brief == {"intent": "look", "language": "en", "budget": {"max_tokens": 50}}
    assert (planned.use.tokens_in, planned.use.tokens_out) == (10, 5)
    assert planned.estimate is not None
    assert planned.estimate.seconds > 7.0
    assert "`max_tokens`" in planned.over_budget[0]
    meta = planned.meta()
    assert set(meta) >= {"brief", "usage", "calls", "estimate", "over_budget", "repairs"}
    (asked,) = models.asked
    assert (asked.role, asked.purpose) == ("planner", "split")
    assert asked.schema is not None
    assert "http.fetch_text" in asked.messages[1].text


async def test_a_plan_that_will_be_late_is_told_of() -> None:
    for prompt in ("Have a look", OUTLINED):
        planned, _ = await plan(BAD if prompt == OUTLINED else GOOD, asked=request(prompt, budget={"deadline_s": 1}))
        assert planned.notes[-1].startswith("`deadline_s`")


async def test_faults_are_mended_in_two_rounds_at_most() -> None:
    planned, models = await plan(BAD, "nonsense", GOOD)
    assert (planned.source, planned.repairs) == ("model", 2)
    assert [asked.purpose for asked in models.asked] == ["split", "repair", "repair"]
    assert "there is no tool `nothing`" in models.asked[1].messages[-1].text
    assert models.asked[2].messages[-2].text == "nonsense"
    assert [call.fault_count for call in planned.calls] == [1, 1, 0]
    assert planned.use.tokens == 45


async def test_an_answer_that_the_client_refuses_is_read_with_more_patience() -> None:
    refused = AnswerInvalid("no", text=f"Here:\n```\n{GOOD}\n```", faults=["prose"])
    refused.use = ModelUse(tokens_in=7, tokens_out=3)
    planned, _ = await plan(refused)
    assert planned.source == "model"
    # It is paid for as any other.
    assert planned.use == refused.use


async def test_an_answer_that_was_cut_off_is_told_so() -> None:
    _, models = await plan(lambda asked: completion(GOOD[:60], is_cut=True), GOOD)
    assert "cut off at the most tokens" in models.asked[1].messages[-1].text


async def test_questions_are_not_guessed_at() -> None:
    with pytest.raises(NeedsClarification) as asked:
        await plan(json.dumps({"intent": "?", "questions": ["Which report?"], "subtasks": []}))
    assert asked.value.questions == ("Which report?",)


async def test_what_no_round_mends_is_taken_from_the_outline_where_there_is_one() -> None:
    planned, models = await plan(BAD, asked=request(OUTLINED))
    assert len(models.asked) == 3
    assert (planned.source, planned.repairs) == ("outline", 2)
    subtasks: Any = planned.plan["subtasks"]
    assert [each["type"] for each in subtasks] == ["TOOL", "REASONING"]
    assert subtasks[1]["instruction"] == "think about it"
    assert subtasks[1]["input"] == {subtasks[0]["id"]: {"$ref": f"{subtasks[0]['id']}.output"}}
    assert any("outline" in note for note in planned.notes)
    assert planned.use.tokens == 45
    assert planned.estimate is not None


async def test_without_an_outline_it_fails_and_says_what_was_wrong() -> None:
    with pytest.raises(UserError, match=r"3 answers.*there is no tool `nothing`") as failed:
        await plan(BAD)
    assert failed.value.code == "PLAN_FAILED"


@pytest.mark.parametrize(
    "error",
    [
        Transient("MODEL_UNAVAILABLE", "away", retry_after_s=5),
        Refused("MODEL_REFUSED", "no"),
        UserError("CONTEXT_TOO_LONG", "too long"),
    ],
    ids=["away", "refused", "too long"],
)
async def test_a_model_that_gives_no_answer_at_all(error: RayloomError) -> None:
    planned, _ = await plan(error, asked=request(OUTLINED))
    assert planned.source == "outline"
    assert any(error.code in note for note in planned.notes)
    with pytest.raises(type(error)) as raised:
        await plan(error)
    assert raised.value.code == error.code


async def test_an_outline_that_can_not_run_is_left_for_whoever_stores_it() -> None:
    models = AnsweringModels(Transient("MODEL_UNAVAILABLE", "away"))
    tools = {"any": ToolView(name="any", schema={"required": ["x"]}, resources={})}
    asked = replace(request("1. @any\n2. @any {}"), tools=tools)
    planned = await Parser(lambda payer: models).plan(asked)
    assert planned.source == "outline"


async def test_fewer_tools_are_shown_where_the_prompt_is_too_long_for_more() -> None:
    many = {f"t{i}": ToolView(name=f"t{i}", schema={}, resources={}) for i in range(40)}
    long = UserError("CONTEXT_TOO_LONG", "too long")
    models = AnsweringModels(long, long, json.dumps({"subtasks": [{"id": "a", "tool": "t1"}]}))
    draft = await Planner(models).draft(replace(request(), tools=many))
    assert draft.verdict.plan is not None
    assert [len(asked.messages[1].text.splitlines()) for asked in models.asked] == [28, 16, 10]
    assert "6 of 40 tools" in draft.notes[0]
    small = AnsweringModels(long, context_tokens=4_096)
    with pytest.raises(UserError):
        await Planner(small).draft(replace(request("Use t and @" + ", @".join(many)[:200]), tools=many))
    assert len(small.asked) == 2


async def test_a_small_model_is_shown_what_fits_and_held_to_it() -> None:
    models = AnsweringModels(
        json.dumps(
            {
                "intent": "mail",
                "subtasks": [
                    {"id": "s1", "do": "Count them", "after": [], "tool": "code"},
                    {"id": "s2", "do": "Send", "after": ["s1"],
                     "tool": {"name": "mail.send", "input": {"to": ["a@b.c"], "body": "${s1.output}"}}},
                ],
            }
        ),
        context_tokens=8_192,
    )  # fmt: skip
    draft = await Planner(models).draft(request("Count them and send a mail"))
    (asked,) = models.asked
    assert (
        asked.messages[1].text == "TOOLS\nmail.send{to: [string], body?: string, urgent?: boolean}\n\n"
        "REQUEST\nCount them and send a mail"
    )
    assert asked.schema is not None
    assert "$defs" in asked.schema
    assert draft.verdict.plan is not None
    subtasks: Any = draft.verdict.plan["subtasks"]
    assert subtasks[0]["input"] == {"whole_request": {"$literal": "Count them and send a mail"}}
    assert subtasks[1]["input"] == {"to": ["a@b.c"], "body": "${s1.output.result}"}


async def test_without_room_for_a_round_there_is_none() -> None:
    models = AnsweringModels(BAD, UserError("CONTEXT_TOO_LONG", "too long"))
    draft = await Planner(models).draft(request())
    assert draft.repairs == 0
    assert draft.verdict.faults
    assert "no room" in draft.notes[-1]
    with pytest.raises(UserError, match="other"):
        await Planner(AnsweringModels(BAD, UserError("OTHER", "other"))).draft(request())


@pytest.mark.parametrize(
    "error", [Transient("MODEL_UNAVAILABLE", "away"), Refused("BUDGET_EXCEEDED", "spent")], ids=["away", "over budget"]
)
async def test_an_answer_that_is_paid_for_is_gone_on_from(error: RayloomError) -> None:
    with pytest.raises(type(error)) as raised:
        await plan(BAD, error)
    tried = raised.value.tried
    assert tried is not None
    assert (tried.text, [call.purpose for call in tried.calls]) == (BAD, ["split"])
    assert "there is no tool `nothing`" in tried.notes[0]
    planned, models = await plan(GOOD, asked=request(tried=tried))
    assert [asked.purpose for asked in models.asked] == ["repair"]
    assert "there is no tool `nothing`" in models.asked[0].messages[-1].text
    assert (planned.repairs, planned.use.tokens) == (1, 30)
    assert planned.notes[0] == tried.notes[0]
    # Where it can run meanwhile nobody is asked at all.
    planned, models = await plan(error, asked=request(tried=replace(tried, text=GOOD)))
    assert (planned.source, models.asked) == ("model", [])
    # An outline tells what was tried before it, too.
    planned, _ = await plan(BAD, error, asked=request(OUTLINED))
    assert planned.use.tokens == 15
    assert "there is no tool `nothing`" in planned.notes[0]


async def test_what_gives_no_plan_says_what_was_tried() -> None:
    asks = json.dumps({"intent": "?", "questions": ["Which report?"], "subtasks": []})
    for script, count in (((BAD,), 3), ((asks,), 1)):
        with pytest.raises(UserError) as raised:
            await plan(*script)
        assert raised.value.tried is not None
        assert len(raised.value.tried.calls) == count
    models = AnsweringModels(BAD, Transient("MODEL_UNAVAILABLE", "away"))
    with pytest.raises(Transient) as away:
        await Parser(lambda payer: models).replan(more(a=True, b=False))
    assert away.value.tried is not None
    assert away.value.tried.text == BAD


async def test_without_models_it_is_the_outline_as_ever() -> None:
    planned = await Parser().plan(request("Have a look"))
    assert planned.source == "outline"
    assert planned.calls == ()
    assert planned.meta().keys() == {"source", "language", "notes", "parsed_s", "split_s"}


def more(**reached: bool) -> ReplanRequest:
    """Of a plan of which something is BLOCKED."""
    subtasks: list[Json] = [{"id": key, "type": "TOOL", "tool": "any"} for key in reached]
    return ReplanRequest(
        request=request(),
        plan={"subtasks": subtasks},
        reached=tuple(
            Reached(key=key, status="COMPLETED" if is_done else "BLOCKED", is_done=is_done)
            for key, is_done in reached.items()
        ),
        reason="b is BLOCKED",
    )


async def test_a_model_adds_to_a_plan_and_mends_what_it_adds() -> None:
    wrong = json.dumps({"subtasks": [{"id": "c", "tool": "any", "after": ["b"]}]})
    models = AnsweringModels(wrong, json.dumps({"subtasks": [{"id": "c", "tool": "any", "after": ["a"]}]}))
    planned = await Parser(lambda payer: models).replan(more(a=True, b=False))
    assert planned.plan == {"subtasks": [{"id": "c", "type": "DATA_RETRIEVAL", "tool": "any", "depends_on": ["a"]}]}
    assert (planned.source, planned.repairs) == ("model", 1)
    assert [asked.purpose for asked in models.asked] == ["replan", "repair"]
    assert "b gave nothing" in models.asked[1].messages[-1].text.replace("`", "")


async def test_the_joiner_is_told_and_another_takes_its_place() -> None:
    steps = [{"id": "a", "tool": "any"}, {"id": "b", "tool": "any"}]
    planned, _ = await plan(json.dumps({"intent": "x", "subtasks": steps, "answer": "Tell both"}))
    assert (planned.joiner, planned.meta()["joiner"]) == ("answer", "answer")
    reached = tuple(Reached(key=key, status="COMPLETED", is_done=True) for key in ("a", "b", "answer"))
    asked = ReplanRequest(
        request=request(), plan=planned.plan, reached=reached, reason="it needs more", joiner=planned.joiner
    )
    models = AnsweringModels(json.dumps({"subtasks": [{"id": "c", "tool": "any"}]}))
    added = await Parser(lambda payer: models).replan(asked)
    assert added.joiner == "answer_2"
    assert [each["id"] for each in subtasks_of(added.plan)] == ["c", "answer_2"]


async def test_a_model_that_adds_nothing_that_can_run_gives_no_plan() -> None:
    models = AnsweringModels(BAD, BAD, BAD)
    with pytest.raises(UserError) as error:
        await Parser(lambda payer: models).replan(more(a=True, b=False))
    assert error.value.code == "PLAN_FAILED"


async def test_without_a_model_nothing_is_added() -> None:
    with pytest.raises(UserError, match="no model"):
        await Parser().replan(more(a=False))


EARLY = {"id": "a", "tool": "db.get", "input": {"limit": 1}}
STREAMED = json.dumps({"intent": "look", "subtasks": [EARLY, {"id": "b", "do": "Say so", "after": ["a"]}]})
BROKEN = json.dumps({"intent": "look", "subtasks": [EARLY, {"id": "b", "tool": "nothing"}]})


async def streamed(*script: Step, asked: PlanRequest | None = None) -> tuple[list[Early], Planned, AnsweringModels]:
    models = AnsweringModels(*script)
    stream = Parser(lambda payer: models).stream(asked or request(may_begin=True))
    *early, planned = [given async for given in stream]
    assert isinstance(planned, Planned)
    return [given for given in early if isinstance(given, Early)], planned, models


async def test_what_may_begin_comes_before_the_plan() -> None:
    early, planned, _ = await streamed(STREAMED)
    (first,) = early
    assert subtasks_of(planned.plan)[0] == first.subtask
    early, planned, _ = await streamed(STREAMED, asked=request())
    assert (early, planned.source) == ([], "model")


async def test_only_the_first_answer_begins_anything_and_the_model_is_told_what_runs() -> None:
    early, planned, models = await streamed(BROKEN, STREAMED)
    assert [each.subtask["id"] for each in early] == ["a"]
    assert planned.repairs == 1
    assert "leave these as they are: a." in models.asked[1].messages[-1].text


async def test_a_model_is_told_what_has_begun_of_an_earlier_plan() -> None:
    begun: JsonObject = {"id": "a", "type": "DATA_RETRIEVAL", "tool": "db.get", "input": {"limit": 1}}
    models = AnsweringModels(STREAMED)
    await Parser(lambda payer: models).plan(request(begun=(begun,)))
    said = models.asked[0].messages[-1].text
    assert said.endswith('[{"id":"a","tool":"db.get","input":{"limit":1},"after":[]}]')


async def test_what_breaks_off_breaks_the_stream_off() -> None:
    with pytest.raises(UserError, match="no plan that can run"):
        await streamed(BROKEN)
    with pytest.raises(Transient):
        await streamed(Transient("MODEL_UNAVAILABLE", "away"))


async def test_who_goes_away_stops_the_model() -> None:
    class Endless(AnsweringModels):
        is_stopped = False

        async def complete(self, request: ModelRequest, *, on_text: Any = None) -> Completion:
            try:
                on_text(STREAMED[:-30])
                await asyncio.Event().wait()
            finally:
                self.is_stopped = True
            raise AssertionError

    models = Endless()
    stream = Parser(lambda payer: models).stream(request(may_begin=True))
    assert isinstance(await anext(stream), Early)
    await stream.aclose()
    assert models.is_stopped


async def test_outline_taken_for_a_model_calls_nothing_that_is_quoted() -> None:
    prompt = '1. read this `@any {}`\n2. sum up\n\n> @mail.send {"to": []}\n\n<!-- @any -->'
    for script in (BAD, Transient("MODEL_UNAVAILABLE", "away")):
        planned, _ = await plan(script, asked=request(prompt))
        assert planned.source == "outline"
        assert {each["type"] for each in subtasks_of(planned.plan)} == {"REASONING"}


@pytest.mark.parametrize(("prompt", "is_offered"), [("Do @shell.run", True), ("Explain\n\n> @shell.run", False)])
async def test_small_model_is_not_offered_what_only_quoted_text_mentions(prompt: str, is_offered: bool) -> None:
    models = AnsweringModels(GOOD, context_tokens=8_192)
    tools = {**VIEWS, "shell.run": ToolView(name="shell.run", schema={}, resources={})}
    await Planner(models).draft(replace(request(prompt), tools=tools))
    assert ("shell.run" in json.dumps(models.asked[0].schema)) is is_offered
