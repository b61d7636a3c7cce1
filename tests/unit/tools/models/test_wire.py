"""What is sent, and what is learned from refusals."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.model import Message, ModelRequest
from rayloom.dag.values import JsonObject
from rayloom.tools.models.settings import ModelSettings
from rayloom.tools.models.tokens import count
from rayloom.tools.models.wire import Way, Wire, prompt_tokens

STRICT: JsonObject = {
    "type": "object",
    "properties": {
        "a": {
            "type": "array",
            "items": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
        }
    },
    "required": ["a"],
    "additionalProperties": False,
}


def request(schema: JsonObject | None = None) -> ModelRequest:
    messages = (Message(speaker="user", text="Hello"),)
    return ModelRequest(role="cheap", purpose="reason", messages=messages, schema=schema)


def wire(**settings: Any) -> Wire:
    return Wire(ModelSettings(base_url="http://host/v1", model="m", seed=1, **settings))


@pytest.mark.parametrize(
    ("schema", "is_strict"),
    [
        (STRICT, True),
        ({"type": "object"}, False),
        (STRICT | {"required": []}, False),
        (STRICT | {"additionalProperties": True}, False),
        ({"anyOf": [STRICT, {"properties": {"b": {}}}]}, False),
    ],
    ids=["strict", "open", "optional", "additional", "within"],
)
def test_strict_is_asked_for_where_it_can_be(schema: JsonObject, is_strict: bool) -> None:
    form: Any = wire().body(request(schema), 10)["response_format"]
    assert form["json_schema"]["strict"] is is_strict


@pytest.mark.parametrize(
    ("message", "param", "refused"),
    [
        ("Unsupported parameter: 'seed' is not supported with this model.", "", {"seed"}),
        ("no", "temperature", {"temperature"}),
        ("Unsupported value: 'temperature' does not support 0 with this model.", "", {"temperature"}),
        ("Use 'max_completion_tokens' instead of 'max_tokens'.", "", {"max_tokens"}),
        ("body.stream_options: extra fields not permitted", "", {"stream_options"}),
        ("This response_format type is unavailable now", "", {"schema"}),
        ("no", "response_format", {"schema"}),
    ],
)
def test_a_refusal_is_understood(message: str, param: str, refused: set[str]) -> None:
    asked = request(STRICT)
    to = wire()
    body = to.body(asked, 10)
    assert to.learn(asked, body, message, param, set())
    assert to.refused == refused
    assert to.body(asked, 10) != body


def test_a_refusal_of_what_was_not_sent_is_no_lesson() -> None:
    to = wire()
    body = to.body(request(), 10)
    assert not to.learn(request(), body, "the schema of your tools is wrong", "tools", set())
    assert not to.refused


def test_a_refusal_that_says_nothing_is_believed_when_the_rest_went_well() -> None:
    to, asked, doubted = wire(), request(STRICT), set[Way]()
    for way in ("schema", "object"):
        assert to.way(asked, doubted) == way
        assert to.learn(asked, to.body(asked, 10, doubted), "no", "", doubted)
    assert to.way(asked, doubted) == "prompt"
    assert not to.learn(asked, to.body(asked, 10, doubted), "no", "", doubted)
    assert to.way(asked) == "schema"
    to.confirm(asked, doubted)
    assert to.way(asked) == "prompt"
    assert to.way(request({"type": "object"})) == "schema"


def test_a_grammar_that_fails_is_of_one_schema() -> None:
    to, asked = wire(), request(STRICT)
    assert to.learn(asked, to.body(asked, 10), "failed to parse grammar", "", set())
    assert (to.way(asked), to.way(request({"type": "object"}))) == ("object", "schema")


def test_a_question_counts_with_its_schema() -> None:
    assert prompt_tokens(request()) == count("Hello") + 4
    assert prompt_tokens(request(STRICT)) > prompt_tokens(request()) + 20
