"""The JSON in an answer: found in what was said, and held to the schema that was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NoReturn

from rayloom.dag.errors import AnswerInvalid, Bug, UserError
from rayloom.dag.json_text import faults_of
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.call import schema_faults

# What a model thinks aloud first; of some, the template says the opening itself.
_THOUGHT: Final = re.compile(r"\A.*?</think(?:ing)?>", re.S)
_FENCE: Final = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*(?=\n)")
_FENCE_END: Final = re.compile(r"\n[ \t]*```")
_OPENING: Final = re.compile(r"[\[{]")
_MAX_OPENINGS: Final = 64
"""So many places are tried as the beginning of a JSON text: one is found at the first, or not at all."""


def structured(text: str, schema: JsonObject, *, cut_off: str = "") -> Json:
    """The JSON value that an answer holds, which fits the schema.

    ``cut_off``: why the answer ended before its end, if it did. Raises AnswerInvalid (what was said, and every fault),
    and UserError (``SCHEMA_INVALID``) where nothing could ever fit.
    """
    told: list[str] = []
    longest = 0
    for length, value in _values(text):
        faults = [f"{fault.pointer or '/'}: {fault.message}" for fault in faults_of(value, limit=5)]
        faults = faults or _schema_faults(schema, value)
        if not faults:
            return value
        if length > longest:
            longest, told = length, faults
    if told:
        raise AnswerInvalid(f"the answer does not fit its schema: {'; '.join(told)}"[:1_000], text=text, faults=told)
    why = f"the answer is not JSON: it was cut off {cut_off}" if cut_off else "the answer is not JSON"
    raise AnswerInvalid(why, text=text, faults=(_why_not(text),))


def check_schema(schema: JsonObject) -> None:
    """Raise UserError (``SCHEMA_INVALID``) for what is no JSON Schema, before anybody pays for an answer."""
    _schema_faults(schema, None)


def _schema_faults(schema: JsonObject, value: Json) -> list[str]:
    try:
        return schema_faults(schema, value, of="the answer")
    except Bug as error:
        raise UserError("SCHEMA_INVALID", error.message) from error


def _values(text: str) -> Iterator[tuple[int, Json]]:
    """The JSON values in a text, each with its length: the whole if it is one, else what is fenced or between words."""
    for whole in (text, _THOUGHT.sub("", text, count=1)):
        with suppress(ValueError, RecursionError):
            yield len(whole), _DECODER.decode(whole.strip())
            return
    text = whole
    for fenced in _fenced(text):
        with suppress(ValueError, RecursionError):
            yield len(fenced), _DECODER.decode(fenced.strip())
    at = 0
    for _ in range(_MAX_OPENINGS):
        opening = _OPENING.search(text, at)
        if opening is None:
            return
        at = opening.end()
        with suppress(ValueError, RecursionError):
            value, at = _DECODER.raw_decode(text, opening.start())
            yield at - opening.start(), value


def _fenced(text: str) -> Iterator[str]:
    at = 0
    while opening := _FENCE.search(text, at):
        end = _FENCE_END.search(text, opening.end())
        if end is None:
            return
        yield text[opening.end() : end.start()]
        at = end.end()


def _why_not(text: str) -> str:
    try:
        _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        return f"/: {error.msg} at line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        return f"/: {str(error) or 'is nested too deep'}"[:300]
    return "/: is not JSON"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
