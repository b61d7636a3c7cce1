"""What is sent to an endpoint, and which options it has refused: those are left out from then on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, Literal

import orjson

from rayloom.dag.model import Message, ModelRequest
from rayloom.dag.values import JsonObject
from rayloom.tools.models.settings import ModelSettings, Structured
from rayloom.tools.models.tokens import count

Way = Literal["schema", "object", "prompt"]
Option = Literal["stream_options", "seed", "temperature", "max_tokens", "max_completion_tokens", "schema", "object"]

_NEXT: Final[Mapping[Way, Way]] = {"schema": "object", "object": "prompt"}
_HARD_SCHEMAS_MAX: Final = 500
"""They may be users': with more of them it is found out anew which are hard."""
_MESSAGE_TOKENS: Final = 4
"""What a message costs beside its text: about what chat templates put around it."""
_OF_THIS_SCHEMA: Final = re.compile(r"invalid (json )?schema|in context=|grammar|unsupported.*keyword", re.I)
_OF_THE_VALUE: Final = re.compile(r"too (large|high|big)|at most|less than|exceed|maximum", re.I)
_ANSWER_JSON: Final = "Answer with one JSON value that fits this JSON Schema, and with nothing else:\n"

# How endpoints call what they refuse. The first that is found counts, so what holds another's word comes before it.
_WORDS: Final[tuple[tuple[Option, re.Pattern[str]], ...]] = (
    ("stream_options", re.compile(r"stream_options|include_usage")),
    ("seed", re.compile(r"\bseed\b")),
    ("temperature", re.compile(r"\btemperature\b")),
    # "Use 'max_completion_tokens' instead" names both: what was sent is what is refused.
    ("max_tokens", re.compile(r"\bmax_tokens\b")),
    ("max_completion_tokens", re.compile(r"\bmax_completion_tokens\b")),
    ("schema", re.compile(r"response_format|json[_ ]schema|structured output|grammar|guided|\bschema\b", re.I)),
    ("object", re.compile(r"response_format|json[_ ]object|json mode", re.I)),
)


@dataclass(slots=True)
class Wire:
    """One model's endpoint: what may be sent to it, as far as it has said.

    ``refused``: options that it does not take. ``hard_schemas``: the schemas that it does not, though it takes others.
    """

    settings: ModelSettings
    refused: set[Option] = field(default_factory=set)
    hard_schemas: set[bytes] = field(default_factory=set)

    def body(self, request: ModelRequest, max_tokens: int, doubted: Set[Way] = frozenset()) -> JsonObject:
        """The body of a request for a completion; ``doubted``: ways that are not to be gone for now."""
        way = self.way(request, doubted)
        messages = request.messages if way in (None, "schema") else _with_schema(request)
        body: JsonObject = {
            "model": self.settings.model,
            "messages": [{"role": each.speaker, "content": each.text} for each in messages],
            "stream": True,
        }
        if request.schema is not None and way == "schema":
            schema: JsonObject = {"name": "answer", "schema": request.schema, "strict": _is_strict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif way == "object":
            body["response_format"] = {"type": "json_object"}
        options: dict[Option, JsonObject] = {
            "stream_options": {"stream_options": {"include_usage": True}},
            "temperature": {"temperature": request.temperature},
            "seed": {} if self.settings.seed is None else {"seed": self.settings.seed},
            self._limit: {self._limit: max_tokens},
        }
        for name, members in options.items():
            if name not in self.refused:
                body |= members
        return body

    def way(self, request: ModelRequest, doubted: Set[Way] = frozenset()) -> Way | None:
        """How it is asked for JSON; None where it is not."""
        if request.schema is None:
            return None
        way: Way = _first(self.settings.structured)
        hard = doubted | ({"schema"} if _key(request.schema) in self.hard_schemas else set())
        while way in self.refused or way in hard:
            way = _NEXT[way]
        return way

    def learn(self, request: ModelRequest, body: JsonObject, message: str, param: str, doubted: set[Way]) -> bool:
        """Understand a refusal (a 400 or its like). Whether there is another way to ask the same.

        Where it does not say what it minds, the way in which it was asked for JSON is ``doubted``, in this call alone:
        it may be that nothing helps.
        """
        named = next(_named(body, param), None) or next(_named(body, message), None)
        way = self.way(request, doubted)
        if named is None and way is not None and way != "prompt":
            doubted.add(way)
            return True
        if named is None or (named == self._limit and _OF_THE_VALUE.search(message)):
            return False
        if named == "schema" and request.schema is not None and _OF_THIS_SCHEMA.search(message):
            # It can't take this one, though it may take others: it says which part of it.
            self._avoid(request.schema)
        else:
            self.refused.add(named)
        return True

    def confirm(self, request: ModelRequest, doubted: Set[Way]) -> None:
        """Without the ways that were doubted it went well: it was them."""
        if request.schema is not None and "schema" in doubted:
            self._avoid(request.schema)
        if "object" in doubted:
            self.refused.add("object")

    def _avoid(self, schema: JsonObject) -> None:
        if len(self.hard_schemas) >= _HARD_SCHEMAS_MAX:
            self.hard_schemas.clear()
        self.hard_schemas.add(_key(schema))

    @property
    def _limit(self) -> Literal["max_tokens", "max_completion_tokens"]:
        return "max_completion_tokens" if "max_tokens" in self.refused else "max_tokens"


def prompt_tokens(request: ModelRequest) -> int:
    """How many tokens a question has, about: with its schema, which may have to be said in words."""
    said = sum(count(each.text) + _MESSAGE_TOKENS for each in request.messages)
    return said + (0 if request.schema is None else count(_in_words(request.schema)) + _MESSAGE_TOKENS)


def _first(chosen: Structured) -> Way:
    return "schema" if chosen == "auto" else chosen


def _named(body: JsonObject, text: str) -> Iterator[Option]:
    """The options in the body that a text speaks of."""
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    sent = {*body, "schema" if kind == "json_schema" else "object" if kind == "json_object" else ""}
    return (name for name, words in _WORDS if name in sent and words.search(text))


def _is_strict(schema: JsonObject) -> bool:
    """Whether the strict mode of hosted APIs takes it: no member that may be left out, and none that is not named."""
    open_: list[object] = [schema]
    while open_:
        item = open_.pop()
        if isinstance(item, list):
            open_.extend(item)
        elif isinstance(item, dict):
            properties = item.get("properties")
            if item.get("type") == "object" or isinstance(properties, dict):
                named = set(properties) if isinstance(properties, dict) else set()
                required = item.get("required")
                if item.get("additionalProperties") is not False or named != set(_texts(required)):
                    return False
            open_.extend(item.values())
    return True


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _with_schema(request: ModelRequest) -> tuple[Message, ...]:
    assert request.schema is not None
    words, first = _in_words(request.schema), request.messages[0]
    if first.speaker == "system":
        return (Message(speaker="system", text=f"{first.text}\n\n{words}"), *request.messages[1:])
    return (Message(speaker="system", text=words), *request.messages)


def _in_words(schema: JsonObject) -> str:
    return _ANSWER_JSON + orjson.dumps(schema).decode()


def _key(schema: JsonObject) -> bytes:
    return orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
