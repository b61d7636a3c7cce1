"""What a request was understood to want, beside the plan: what the parser found in the prompt."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from rayloom.dag.json_text import faults_of
from rayloom.dag.values import Json, JsonObject

MAX_ITEMS: Final = 8
MAX_QUESTIONS: Final = 3
MAX_CHARS: Final = 200
_ATTACHMENT: Final = re.compile(
    r"https?://[^\s<>\"'`，。；！？、）】》]+|(?<![\w/.@\-])(?:[\w\-]+/)*[\w\-]+\.(?:csv|tsv|xlsx?|json|jsonl|parquet|pdf|docx?|"
    r"pptx?|txt|md|html?|xml|ya?ml|log|png|jpe?g|gif|svg|zip|gz|py|sql|db)\b",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What was found in a prompt; empty or None where nothing was.

    ``intent``: in a few words. ``attachments``: addresses and names of files that the prompt mentions. ``questions``:
    what must be known before anything can be planned. The limits are what its author wrote, as a model read it: noted,
    and not yet applied.
    """

    intent: str = ""
    language: str = "und"
    constraints: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    wanted_output: str = ""
    attachments: tuple[str, ...] = ()
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    deadline_s: float | None = None
    questions: tuple[str, ...] = ()

    def as_json(self) -> JsonObject:
        """What is stored and shown of it: the members that say something."""
        budget: JsonObject = {}
        if self.max_tokens is not None:
            budget["max_tokens"] = self.max_tokens
        if self.max_cost_usd is not None:
            budget["max_cost_usd"] = self.max_cost_usd
        members: JsonObject = {
            "intent": self.intent,
            "language": self.language,
            "constraints": list(self.constraints),
            "entities": list(self.entities),
            "wanted_output": self.wanted_output,
            "attachments": list(self.attachments),
            "budget": budget,
            "deadline_s": self.deadline_s,
        }
        return {name: value for name, value in members.items() if value not in ("", [], {}, None)}


def brief_of(answer: JsonObject, *, prompt: str, language: str) -> Brief:
    """The brief in a model's answer, whatever that is like: what is no text, list or amount says nothing."""
    return Brief(
        intent=_text(answer.get("intent")),
        language=language,
        constraints=_texts(answer.get("constraints"), MAX_ITEMS),
        entities=_texts(answer.get("entities"), MAX_ITEMS),
        wanted_output=_text(answer.get("output")),
        attachments=attachments_of(prompt),
        max_tokens=_whole(answer.get("max_tokens")),
        max_cost_usd=_amount(answer.get("max_cost_usd")),
        deadline_s=_amount(answer.get("deadline_s")),
        questions=_texts(answer.get("questions"), MAX_QUESTIONS),
    )


def attachments_of(prompt: str) -> tuple[str, ...]:
    """The addresses and names of files in a prompt, each once, in their order."""
    found = (match.rstrip(".,;:!?)") for match in _ATTACHMENT.findall(prompt))
    return tuple(dict.fromkeys(found))[:MAX_ITEMS]


def schema_of_brief() -> JsonObject:
    """The members of an answer that make its brief, as JSON Schema has them. Bounded: small models run on."""
    line: JsonObject = {"type": "string", "maxLength": MAX_CHARS}
    lines: JsonObject = {"type": "array", "maxItems": MAX_ITEMS, "items": line}
    return {
        "intent": line,
        "output": line,
        "constraints": lines,
        "entities": lines,
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_cost_usd": {"type": "number", "exclusiveMinimum": 0},
        "deadline_s": {"type": "number", "exclusiveMinimum": 0},
        "questions": {**lines, "maxItems": MAX_QUESTIONS},
    }


def _text(value: Json | None) -> str:
    is_text = isinstance(value, str) and not faults_of(value)
    return " ".join(value.split())[:MAX_CHARS] if is_text and isinstance(value, str) else ""


def _texts(value: Json | None, most: int) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(text for text in map(_text, items[: most * 2]) if text)[:most]


def _amount(value: Json | None) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not isinstance(value, (int, float)) or not 0 < value < 1e15 or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: Json | None) -> int | None:
    amount = _amount(value)
    return None if amount is None or amount < 1 else int(amount)
