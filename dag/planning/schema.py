"""The JSON Schema that a model's plan is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rayloom.dag.planning.brief import schema_of_brief
from rayloom.dag.planning.join import ANSWER, MAX_ANSWER_CHARS
from rayloom.dag.planning.read import CODE, MAX_PLANNED, THINK
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject

MAX_ID_CHARS: Final = 32
MAX_DO_CHARS: Final = 400
MAX_AFTER: Final = 16


def plan_schema(tools: Sequence[ToolView], *, with_code: bool) -> JsonObject:
    """What an answer is that plans with these tools, and code where it may.

    Everything in it is bounded, since small models run on.

    Inputs are not held to the tools' schemas here: many grammars for one answer are more than most endpoints take, and
    references stand where values are wanted. Verification judges them.
    """
    subtask: JsonObject = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS},
            "tool": {"type": "string", "enum": [*(tool.name for tool in tools), THINK, *([CODE] if with_code else [])]},
            "input": {"type": "object"},
            "do": {"type": "string", "maxLength": MAX_DO_CHARS},
            "after": {
                "type": "array",
                "maxItems": MAX_AFTER,
                "items": {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS},
            },
        },
        # What may be left out small models do leave out, input and instruction first of all.
        "required": ["id", "tool", "input", "do", "after"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            **schema_of_brief(),
            "subtasks": {"type": "array", "maxItems": MAX_PLANNED, "items": subtask},
            ANSWER: {"type": "string", "maxLength": MAX_ANSWER_CHARS},
        },
        "required": ["intent", "subtasks"],
        "additionalProperties": False,
    }
