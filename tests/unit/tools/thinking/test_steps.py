"""A model that calls tools before it answers, and cannot be led astray without end."""

from __future__ import annotations

import json

import pytest

from rayloom.dag.errors import RayloomError, Transient
from rayloom.dag.values import Json
from rayloom.tools.call import checked
from rayloom.tools.thinking.reasoning import Reasoning
from tests.fakes.scripted_models import Answer, ScriptedModels
from tests.unit.tools.context import KeptLog, make_context
from tests.unit.tools.thinking.thinkers import Tools, thinking


def calls(name: str, **input_: Json) -> str:
    return json.dumps({"call": name, "input": input_})


def answers(value: Json) -> str:
    return json.dumps({"answer": value})


async def think(models: ScriptedModels, tools: Tools, *, log: KeptLog | None = None, **input_: Json) -> Json:
    made = Reasoning(thinking(models, tools=tools), uses_tools=True)
    given: dict[str, Json] = {"use_tools": ["*"], **input_}
    return (await made.run(checked(made, given), make_context(log=log))).output


async def test_it_calls_hears_and_answers() -> None:
    models = ScriptedModels([calls("look", at="x"), calls("look", at="y"), answers("seven")])
    tools = Tools({"look": {"n": 7}, "other": None})
    assert await think(models, tools, data=1) == {"text": "seven"}
    assert tools.called == [("look", {"at": "x"}), ("look", {"at": "y"})]
    assert {request.purpose for request in models.asked} == {"step"}
    assert "- look: does look Input schema: " in models.asked[0].messages[0].text
    assert "at most 8 times" in models.asked[0].messages[0].text
    assert [m.text for m in models.asked[1].messages[2:]] == [
        '{"call":"look","input":{"at":"x"}}',
        '{"result":{"n":7}}',
    ]


async def test_an_answer_may_have_to_fit_a_schema() -> None:
    schema: Json = {"type": "array", "items": {"type": "integer"}}
    models = ScriptedModels([answers("seven"), answers([7])])
    assert await think(models, Tools({"look": 1}), output_schema=schema) == [7]
    models = ScriptedModels([answers("seven"), answers([7])])
    refers: Json = {"$ref": "#/$defs/all", "$defs": {"all": schema}}
    assert await think(models, Tools({"look": 1}), output_schema=refers) == [7]
    assert "/answer/: 'seven' is not of type 'array'" in models.asked[1].messages[-1].text


async def test_an_empty_answer_is_none() -> None:
    models = ScriptedModels([answers(" "), answers("ok")])
    assert await think(models, Tools({"look": 1})) == {"text": "ok"}
    assert "/answer: it is empty" in models.asked[1].messages[-1].text


@pytest.mark.parametrize("said", ["{}", '{"call": "nobody", "input": {}}', '{"call": "look"}', "hm", "[]"])
async def test_what_is_neither_call_nor_answer_is_sent_back(said: str) -> None:
    models, tools = ScriptedModels([said, answers("ok")]), Tools({"look": 1})
    assert await think(models, tools) == {"text": "ok"}
    assert tools.called == []


async def test_what_a_tool_raises_is_told_to_the_model() -> None:
    models = ScriptedModels([calls("look"), answers("it is away")])
    await think(models, Tools({"look": Transient("HTTP_503", "away")}))
    assert models.asked[1].messages[-1].text == '{"error":"HTTP_503: away"}'


async def test_the_same_call_is_made_once_warned_about_once_and_then_the_end() -> None:
    models, tools = ScriptedModels([calls("look")] * 9), Tools({"look": 1})
    with pytest.raises(RayloomError) as failed:
        await think(models, tools)
    assert (failed.value.code, failed.value.retryable) == ("LOOP_DETECTED", False)
    assert len(tools.called) == 1
    assert len(models.asked) == 3
    assert "already" in models.asked[2].messages[-1].text


async def test_steps_are_bounded_and_the_last_word_is_asked_for() -> None:
    answers_: list[Answer] = [calls("look", n=n) for n in range(9)]
    models, tools = ScriptedModels(answers_), Tools({"look": 1})
    with pytest.raises(RayloomError) as failed:
        await think(models, tools, max_steps=3)
    assert failed.value.code == "STEPS_SPENT"
    assert len(tools.called) == 3
    assert models.asked[3].messages[-1].text.endswith("answer now, with what you have.")
    models = ScriptedModels([*answers_[:3], answers("enough")])
    assert await think(models, tools, max_steps=3) == {"text": "enough"}


async def test_a_long_result_is_cut_for_the_model_and_said_so() -> None:
    models, log = ScriptedModels([calls("look"), answers("ok")]), KeptLog()
    await think(models, Tools({"look": "word " * 9_000}), log=log)
    shown = models.asked[1].messages[-1].text
    assert "more characters are left out here" in shown
    assert models.count(shown) < 1_000
    assert any("the model is shown" in line for _, line in log.lines)


async def test_old_results_make_room_for_new_ones() -> None:
    said: list[Answer] = [calls("look", n=n) for n in range(8)]
    models, log = ScriptedModels([*said, answers("ok")], context_tokens=2_000), KeptLog()
    await think(models, Tools({"look": "word " * 9_000}), log=log)
    last = models.asked[-1]
    assert sum(models.count(m.text) for m in last.messages) < 1_500
    assert "left out to make room" in last.messages[3].text
    assert "word" in last.messages[-1].text


async def test_without_a_tool_there_is_nothing_to_do() -> None:
    with pytest.raises(RayloomError) as failed:
        await think(ScriptedModels(), Tools())
    assert failed.value.code == "TOOLS_REFUSED"
    with pytest.raises(RayloomError) as failed:
        await think(ScriptedModels(), Tools({f"t{n}": 1 for n in range(65)}))
    assert failed.value.code == "TOOLS_TOO_MANY"
