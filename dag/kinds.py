"""What the type of a subtask asks of it, and what this version can't do for any type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from rayloom.dag.plan import Subtask, TaskType

CODE_TOOL: Final = "python.run"
"""What runs the code of a CODE_GEN subtask that names no tool, whoever wrote it."""

# What later versions bring. Each row: the field, when it is asked for, and what to say. Support removes the row.
UNSUPPORTED: Final[tuple[tuple[str, Callable[[Subtask], bool], str], ...]] = (
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
    yield from _policy_faults(subtask)
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
    if subtask.skills and not needs_model(subtask):
        yield "skills", "no model does this subtask that could go by them: call the tool `skill.<name>`"


def _policy_faults(subtask: Subtask) -> Iterator[tuple[str, str]]:
    """What follows a failure needs what it follows with."""
    # A default may be null; a fallback that is null is none.
    is_given = {"default": "default" in subtask.model_fields_set, "fallback": subtask.fallback is not None}
    if not is_given.get(subtask.on_failure, True):
        yield subtask.on_failure, f"is missing: `on_failure` `{subtask.on_failure}` needs it"


def needs_model(subtask: Subtask) -> bool:
    """Whether only a model can do it: REASONING, and CODE_GEN with neither a tool nor given code."""
    if subtask.type is TaskType.REASONING:
        return True
    return subtask.type is TaskType.CODE_GEN and subtask.tool is None and "code" not in subtask.input


def tool_of(subtask: Subtask) -> str:
    """The tool that runs it; empty where a model does it, or it names none and needs one."""
    return "" if needs_model(subtask) else permitted_by(subtask)


def permitted_by(subtask: Subtask) -> str:
    """The tool that its task must be allowed, and whose resources it asks for; empty where it takes none.

    It is the one that runs it. What a model writes as CODE_GEN runs as if it were given.
    """
    if subtask.type is TaskType.REASONING:
        return ""
    return subtask.tool or (CODE_TOOL if subtask.type is TaskType.CODE_GEN else "")
