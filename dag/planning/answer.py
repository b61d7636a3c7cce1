"""The JSON in what a model said: within fences or prose, and with slips that leave no doubt about what was meant."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import faults_of
from rayloom.dag.output import clean_text
from rayloom.dag.values import Json, JsonObject

MAX_ANSWER_CHARS: Final = 100_000
"""A longer answer is not looked at: no plan of as many subtasks as are taken from a model needs that."""
LISTS: Final = ("subtasks", "steps", "tasks", "plan")
"""What models call the list of subtasks."""
_TRIES: Final = 40
_SHOWN_CHARS: Final = 40
# Strings stay as they are, whatever is in them; outside of them these are slips.
# One that never ends is taken to the end at once: to look for an end from each quote would take for ever.
_SLIP: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|,(?=\s*[}\]])|//[^\n]*|\b(?:True|False|None|NaN)\b', re.DOTALL)
_WORDS: Final = {"True": "true", "False": "false", "None": "null", "NaN": "null"}
# What begins like this is the answer, and nothing within it is, however broken it may be.
_OURS: Final = re.compile(rf'\{{\s*"(?:intent|output|constraints|entities|questions|{"|".join(LISTS)})"\s*:')
_DECODER: Final = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found: an object with a list ``subtasks`` or with questions, or else the fault that says why not."""

    value: JsonObject | None
    notes: tuple[str, ...] = ()
    fault: Fault | None = None


def find_answer(text: str) -> Found:
    """The answer in a text. Never raises."""
    if len(text) > MAX_ANSWER_CHARS:
        said = f"the answer has {len(text):,} characters, at most {MAX_ANSWER_CHARS:,} are read: make it much shorter"
        return Found(value=None, fault=Fault("", said))
    text = clean_text(text).strip()
    if not text:
        return Found(value=None, fault=Fault("", "the answer is empty: give the plan as one line of JSON"))
    notes: list[str] = []
    value, error = _decoded(text)
    if value is None:
        mended = _SLIP.sub(_mend, text)
        if mended != text:
            value, again = _decoded(mended)
            error = again or error
            notes += ["mended commas, comments or words that JSON does not have"] if value is not None else []
    if value is None:
        return Found(value=None, fault=Fault("", error))
    found = faults_of(value)
    if found:
        return Found(value=None, fault=found[0])
    return Found(value=value, notes=tuple(notes))


def _mend(match: re.Match[str]) -> str:
    word = match[0]
    return word if word.startswith('"') else _WORDS.get(word, "")


def _decoded(text: str) -> tuple[JsonObject | None, str]:
    """The first value that is an answer, else what is wrong with the first that is none."""
    first = ""
    starts = [match.start() for match in re.finditer(r"[{\[]", text)]
    end = 0
    tries = 0
    for start in starts:
        if start < end:
            continue
        if tries == _TRIES:
            break
        tries += 1
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            first = first or _said(error, text)
            if _OURS.match(text, start):
                return None, first
            continue
        except RecursionError:
            return None, "is nested too deep"
        except ValueError:
            # Python reads no number of more than 4,300 digits.
            return None, "has a number that is too long"
        answer = _as_answer(value)
        if answer is not None:
            return answer, ""
        first = first or "the JSON has no list `subtasks`"
    return None, first or "there is no JSON in the answer: give the plan as one line of JSON, and nothing else"


def _as_answer(value: Any) -> JsonObject | None:
    if isinstance(value, list):
        return {"subtasks": value} if _is_plan(value) else None
    # A plan may stand within another object: {"plan": {"subtasks": […]}}.
    within: Json = value
    for _ in range(3):
        if not isinstance(within, dict):
            return None
        if isinstance(within.get("subtasks"), list):
            return within
        name = next((each for each in LISTS if _is_plan(within.get(each))), None)
        if name is not None:
            return {**within, "subtasks": within[name]}
        if within.get("questions"):
            return {**within, "subtasks": []}
        within = within.get("plan", within.get("answer"))
    return None


def _is_plan(value: Any) -> bool:
    """Whether it is a list of subtasks, whatever it is called."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(item, dict) and ("id" in item or "tool" in item) for item in value)


def _said(error: json.JSONDecodeError, text: str) -> str:
    if error.pos >= len(text) - 1 or error.msg.startswith("Unterminated string"):
        return f"the answer breaks off after {len(text):,} characters: give fewer subtasks and shorter texts"
    near = text[max(0, error.pos - _SHOWN_CHARS // 2) : error.pos + _SHOWN_CHARS // 2]
    return f"is not JSON: {error.msg} at character {error.pos:,}, near `{near}`"
