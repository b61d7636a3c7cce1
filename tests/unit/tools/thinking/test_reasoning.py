"""What a model is asked for REASONING, and what becomes of its answers."""

from __future__ import annotations

import pytest

from rayloom.dag.errors import Transient, UserError
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.call import checked
from rayloom.tools.thinking.asking import LOG_CHARS
from rayloom.tools.thinking.reasoning import Reasoning
from rayloom.tools.thinking.thinking import SkillText
from tests.fakes.scripted_models import ScriptedModels
from tests.unit.tools.context import KeptLog, make_context
from tests.unit.tools.thinking.thinkers import thinking

NUMBER: JsonObject = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def think(models: ScriptedModels, input_: dict[str, Json], *, log: KeptLog | None = None) -> Json:
    made = Reasoning(thinking(models), uses_tools=False)
    return (await made.run(checked(made, input_), make_context(log=log))).output


async def test_instruction_input_and_skills_are_told_in_one_question() -> None:
    models = ScriptedModels(["Paris."])
    skill = SkillText(name="skill.maps", description="about maps", instructions="Look north.", version="1")
    made = Reasoning(thinking(models, instruction="Name the capital.", skills=[skill]), uses_tools=False)
    log = KeptLog()
    result = await made.run({"country": "France", "hints": [1]}, make_context(log=log))
    assert result.output == {"text": "Paris."}
    (request,) = models.asked
    assert (request.role, request.purpose, request.schema) == ("reasoner", "reason", None)
    system, user = request.messages
    assert (system.speaker, user.speaker) == ("system", "user")
    assert "# Skill skill.maps: about maps\n\nLook north." in system.text
    assert user.text == 'INSTRUCTION:\nName the capital.\n\nINPUT (JSON):\n{"country":"France","hints":[1]}'
    assert [stream for stream, _ in log.lines] == ["model", "model"]
    assert log.lines[1][1] == "reason: answered\nParis."


async def test_a_schema_makes_the_answer_the_output() -> None:
    models = ScriptedModels(['{"n": 3}'])
    assert await think(models, {"output_schema": NUMBER, "x": 1}) == {"n": 3}
    assert models.asked[0].schema == NUMBER
    assert "output_schema" not in models.asked[0].messages[1].text


async def test_an_answer_that_does_not_fit_is_sent_back_with_what_is_wrong() -> None:
    models = ScriptedModels(['{"n": "three"}', "three", '{"n": 3}'])
    log = KeptLog()
    assert await think(models, {"output_schema": NUMBER}, log=log) == {"n": 3}
    assert [request.purpose for request in models.asked] == ["reason", "repair", "repair"]
    first, second = models.asked[1].messages[-2:]
    assert (first.speaker, first.text) == ("assistant", '{"n": "three"}')
    assert "/n: 'three' is not of type 'integer'" in second.text
    # The answers before the last one are not shown again.
    assert len(models.asked[2].messages) == 4
    assert any("does not fit" in line for _, line in log.lines)


async def test_two_repairs_are_enough() -> None:
    models = ScriptedModels(["no"] * 9)
    with pytest.raises(UserError) as failed:
        await think(models, {"output_schema": NUMBER})
    assert failed.value.code == "ANSWER_UNFIT"
    assert len(models.asked) == 3


async def test_what_models_raise_keeps_its_class() -> None:
    away = Transient("MODEL_RATE_LIMITED", "later", retry_after_s=9)
    with pytest.raises(Transient) as failed:
        await think(ScriptedModels([away]), {})
    assert failed.value is away


async def test_a_text_that_was_cut_off_says_so() -> None:
    log = KeptLog()
    assert await think(ScriptedModels(["And then"], finish="length"), {}, log=log) == {
        "text": "And then",
        "cut_off": True,
    }
    assert "cut off" in log.lines[-1][1]


async def test_a_schema_that_is_none_is_told_before_a_model_is_asked() -> None:
    schemas: list[JsonObject] = [{"type": 7}, {"$ref": "https://example.org/nowhere"}, {"$ref": "#/$defs/gone"}]
    for schema in schemas:
        models = ScriptedModels()
        with pytest.raises(UserError) as failed:
            await think(models, {"output_schema": schema})
        assert failed.value.code == "SCHEMA_INVALID"


async def test_what_a_model_thinks_aloud_is_no_part_of_its_answer() -> None:
    assert await think(ScriptedModels(["<think>Hm. Lyon?</think>\n\nParis."]), {}) == {"text": "Paris."}


@pytest.mark.parametrize("empty", ["", " \n", "<think>Hm.</think>\n"])
async def test_an_empty_answer_is_none(empty: str) -> None:
    models = ScriptedModels([empty, "Paris."])
    assert await think(models, {}) == {"text": "Paris."}
    assert "it is empty" in models.asked[1].messages[-1].text
    with pytest.raises(UserError) as failed:
        await think(ScriptedModels([empty] * 3), {})
    assert failed.value.code == "ANSWER_UNFIT"


async def test_the_log_gets_no_more_than_it_can_bear() -> None:
    log = KeptLog()
    await think(ScriptedModels(["x" * (LOG_CHARS + 9)]), {}, log=log)
    assert log.lines[-1][1].endswith("x … 9 more characters")


async def test_an_instruction_that_is_too_long_is_refused() -> None:
    models = ScriptedModels(context_tokens=600)
    made = Reasoning(thinking(models, instruction="word " * 500), uses_tools=False)
    with pytest.raises(UserError) as failed:
        await made.run({"a": 1}, make_context())
    assert failed.value.code == "CONTEXT_TOO_LONG"


def test_equal_attempts_have_one_version() -> None:
    def version(instruction: str) -> str:
        return Reasoning(thinking(ScriptedModels(), instruction=instruction), uses_tools=False).spec.version

    assert version("Do it.") == version("Do it.")
    assert version("Do it.") != version("Do another thing.")
