"""What subtasks are passed: what of an output is its result, and what all that a model does sees of the request."""

from __future__ import annotations

import json
from typing import Final

from rayloom.dag.plan import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S, subtasks_of
from rayloom.dag.planning.written import input_of
from rayloom.dag.references import LITERAL
from rayloom.dag.thinking import CODE, WHOLE_REQUEST
from rayloom.dag.values import Json, JsonObject

CONTEXT: Final = "context"
_MAX_CHARS: Final = 100_000
"""As long as a prompt may be. A longer context is not passed by itself: each subtask would keep a copy."""


def result_of(subtask: JsonObject) -> str:
    """What follows ``id.output`` for the result alone of what a model does, or a program; empty: all of it is."""
    given = input_of(subtask)
    if subtask.get("tool") is not None or ("output_schema" in given and subtask.get("type") == "REASONING"):
        return ""
    if subtask.get("type") == "REASONING":
        return ".text"
    return ".stdout" if CODE in given else ".result"


def patient(plan: JsonObject, *, think_s: float, code_s: float) -> JsonObject:
    """The plan, where an attempt of what a model does may take so many seconds, and no fewer than else."""
    limits = {"REASONING": think_s, "CODE_GEN": code_s}
    subtasks: list[Json] = []
    for each in subtasks_of(plan):
        limit_s = limits.get(str(each["type"]), 0.0)
        is_short = result_of(each) != ".stdout" and each.get("tool") is None and limit_s > DEFAULT_TIMEOUT_S
        subtasks.append({**each, "timeout_s": min(limit_s, MAX_TIMEOUT_S)} if is_short else each)
    return {"subtasks": subtasks}


def told_to_all(prompt: str, context: JsonObject) -> JsonObject:
    """What the input of each subtask that a model does has beside the outputs: it is told of its own step alone."""
    told: JsonObject = {WHOLE_REQUEST: {LITERAL: prompt}}
    if context and len(json.dumps(context)) <= _MAX_CHARS:
        told[CONTEXT] = {LITERAL: context}
    return told
