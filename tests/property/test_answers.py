"""Whatever a model says, and whoever counts it: an answer is a value that fits, or it is told what is wrong."""

from __future__ import annotations

from contextlib import suppress

import orjson
from hypothesis import assume, given
from hypothesis import strategies as st

from rayloom.dag.errors import AnswerInvalid
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.models.structure import structured
from rayloom.tools.models.tokens import count, encode, without_surrogates

SCHEMA: JsonObject = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ANY = st.text(st.characters(exclude_categories=()))
PIECES = ['{"n": 1}', "```json\n", "\n```", "</think>", "{", "[", '"', "\\", "x ", "1e9", "NaN"]
SAID = st.lists(st.sampled_from(PIECES)).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8", min_codepoint=1)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8", min_codepoint=1)), inner),
)


@given(ANY | SAID)
def test_an_answer_fits_or_its_faults_are_told(text: str) -> None:
    with suppress(AnswerInvalid):
        value = structured(text, SCHEMA)
        assert isinstance(value, dict)
        assert isinstance(value["n"], int)


@given(VALUES)
def test_what_is_written_as_json_is_found(value: Json) -> None:
    text = orjson.dumps(value).decode()
    assert structured(text, {}) == value
    assume("</think" not in text)
    assert structured(f"Here it is:\n```json\n{text}\n```\n", {}) == value


@given(ANY)
def test_any_text_has_a_count(text: str) -> None:
    assert count(text) == len(encode(text)) <= len(without_surrogates(text).encode())
