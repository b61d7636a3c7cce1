"""What the endpoint as a process answers: the name of the model says how it behaves, the prompt what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.integration.models.endpoint import Asked, Reply, refusing

_MANNERS: Final[Mapping[str, Reply]] = {
    "good": Reply(),
    "slow": Reply(gap_s=0.2, piece_chars=4),
    "rate-limited": Reply(status=429, headers={"retry-after": "1"}),
    "rate-limited-long": Reply(status=429, headers={"retry-after": "60"}),
    "failing": Reply(status=500),
    "flaky": Reply(status=500),
    "unavailable": Reply(status=503, headers={"retry-after": "1"}),
    "forbidden": Reply(status=401),
    "hang-before": Reply(hang="before"),
    "hang-first": Reply(hang="first"),
    "hang-within": Reply(hang="within"),
    "half": Reply(ends="unfinished"),
    "cut": Reply(ends="cut"),
    "usage-missing": Reply(usage=None),
    "usage-absurd": Reply(usage={"prompt_tokens": 10**9, "completion_tokens": -5, "total_tokens": 0}),
    "long-winded": Reply(text="blah " * 40_000, finish="length", piece_chars=4_000),
    "invalid-json": Reply(text='{"subtasks": [{"id": "a"'),
    "wrong-schema": Reply(text='{"unasked": true}'),
}
_REFUSED: Final[Mapping[str, Sequence[str]]] = {
    "no-schema": ("response_format.json_schema",),
    "no-format": ("response_format",),
    "no-usage": ("stream_options",),
    "no-seed": ("seed",),
    "plain": ("response_format", "stream_options", "seed", "temperature", "max_tokens"),
}
NAMES: Final = (*_MANNERS, *_REFUSED)
_SAYS_ITSELF: Final = frozenset({"long-winded", "invalid-json", "wrong-schema"})
_MAX_ITEMS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said to a prompt in which ``match`` is found; its other members are a `Reply`'s."""

    match: re.Pattern[str]
    members: Mapping[str, Any]


def answers_from(path: str) -> tuple[Answer, ...]:
    """The answers that a file holds."""
    found = json.loads(Path(path).read_text())
    return tuple(
        Answer(match=re.compile(each["match"], re.S), members={k: v for k, v in each.items() if k != "match"})
        for each in found
    )


def scenario(asked: Asked, answers: Sequence[Answer] = ()) -> Reply:
    """The reply of the model that is asked; of one that is not known, as of ``good``."""
    name = str(asked.body.get("model", ""))
    # A flaky one fails every other time.
    manner = Reply() if name == "flaky" and asked.number % 2 == 0 else _MANNERS.get(name, Reply())
    if name not in _SAYS_ITSELF:
        said = next((answer.members for answer in answers if answer.match.search(asked.prompt)), None)
        manner = replace(manner, **(said if said is not None else {"text": _text(asked)}))
    return refusing(_REFUSED.get(name, ()), manner)(asked)


def _text(asked: Asked) -> str:
    if asked.schema is not None:
        return json.dumps(fitting(asked.schema))
    return f"You said: {asked.prompt[-200:]}"


def fitting(schema: Mapping[str, Any]) -> Any:
    """A small value that fits a plain schema: what is required, and the least of each."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return fitting(schema[choice][0])
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: fitting(schema["properties"][name]) for name in schema.get("required", ())}
    if kind == "array":
        return [fitting(schema.get("items", {})) for _ in range(min(schema.get("minItems", 0), _MAX_ITEMS))]
    least = schema.get("minimum", 0)
    return {"string": "x" * schema.get("minLength", 1), "integer": least, "number": least, "boolean": True}.get(kind)
