"""What the type of a subtask asks of it, and what this version can't do for any type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from rayloom.dag.plan import Subtask, TaskType

CODE_TOOL: Final = "python.run"
"""What runs the code of a CODE_GEN subtask that names no tool."""

# What later versions bring. Each row: the field, when it is asked for, and what to say. Support removes the row.
UNSUPPORTED: Final[tuple[tuple[str, Callable[[Subtask], bool], str], ...]] = (
    ("cacheable", lambda s: s.cacheable, "cached results are not supported by this version: leave it false"),
    ("skills", lambda s: bool(s.skills), "Skills are not supported by this version: leave the list empty"),
    ("on_failure", lambda s: s.on_failure != "block", "this version only knows `block`"),
    ("default", lambda s: "default" in s.model_fields_set, "defaults are not supported by this version: leave it out"),
    ("fallback", lambda s: s.fallback is not None, "fallbacks are not supported by this version: leave it out"),
    ("require_approval", lambda s: s.require_approval, "approval is not supported by this version: leave it false"),
    (
        "resources/lane",
        lambda s: s.resources.lane == "shared",
        "the shared lane is not supported by this version: use `auto` or `own`",
    ),
)


def kind_faults(subtask: Subtask, *, model_available: bool) -> Iterator[tuple[str, str]]:
    """Field and message of everything that is wrong with a subtask's type, or asks for a feature that is not there."""
    for field, is_asked, message in UNSUPPORTED:
        if is_asked(subtask):
            yield field, message
    if subtask.type is TaskType.REASONING:
        if subtask.instruction is None:
            yield "instruction", "is missing: REASONING needs an instruction"
        if subtask.tool is not None:
            yield "tool", "REASONING takes no tool"
    elif subtask.tool is None and subtask.type is not TaskType.CODE_GEN:
        yield "tool", f"is missing: {subtask.type} needs a tool"
    elif needs_model(subtask) and subtask.instruction is None:
        yield "tool", "is missing: CODE_GEN needs a tool, code in `input.code`, or an instruction"
    if needs_model(subtask) and not model_available:
        remedy = "give the code in `input.code`" if subtask.type is TaskType.CODE_GEN else "use a tool instead"
        yield "type", f"no model is configured, so this {subtask.type} can't run: {remedy}"


def needs_model(subtask: Subtask) -> bool:
    """Whether only a model can do it: REASONING, and CODE_GEN with neither a tool nor given code."""
    if subtask.type is TaskType.REASONING:
        return True
    return subtask.type is TaskType.CODE_GEN and subtask.tool is None and "code" not in subtask.input


def tool_of(subtask: Subtask) -> str:
    """The tool that runs it; empty where it names none and needs none, or needs one."""
    if subtask.type is TaskType.REASONING:
        return ""
    return subtask.tool or (CODE_TOOL if subtask.type is TaskType.CODE_GEN else "")
