"""Which tools the subtasks of a plan may use, and what is asked of their inputs; each looked at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from rayloom.dag.errors import shown
from rayloom.dag.input_check import InputCheck
from rayloom.dag.kinds import CODE_TOOL
from rayloom.dag.nearest import Hints
from rayloom.dag.plan import Subtask, TaskType
from rayloom.dag.references import LITERAL, REF, SECRET
from rayloom.dag.thinking import REASONING_INPUT, coding_input, schema_fault
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json

MODEL_RESOURCES: Final[Mapping[str, float]] = {"CPU": 0.25}
"""What a subtask without a tool asks for: it waits for a model."""


class ToolJudge:
    """The tools, and the rules of one task. ``levels``: permission levels of tools that want approval.

    ``beyond``: names of tools that whoever asks may not use.
    """

    def __init__(
        self,
        tools: Mapping[str, ToolView],
        *,
        allow: Sequence[str],
        deny: Sequence[str],
        beyond: Collection[str],
        levels: Collection[str],
        hints: Hints,
    ) -> None:
        self._tools, self._allow, self._deny, self._levels, self._hints = tools, allow, deny, levels, hints
        self._beyond = frozenset(beyond)
        self._faults: dict[str, str | None] = {}
        self._checks: dict[str, InputCheck] = {}
        self._globs: dict[str, tuple[str, ...]] = {}
        self._reasoning = InputCheck(REASONING_INPUT)
        self._coding: InputCheck | None = None

    def fault(self, name: str) -> str | None:
        """Why a tool can't be used; None: it can."""
        if name not in self._faults:
            self._faults[name] = self._judged(name)
        return self._faults[name]

    def _judged(self, name: str) -> str | None:
        tool = self._tools.get(name)
        if tool is None:
            active = sorted(known for known, view in self._tools.items() if view.is_active)
            return f"there is no tool `{shown(name)}`{self._hints(name, active)}"
        if not tool.is_active:
            return f"the tool `{name}` is switched off"
        if name in self._beyond:
            return f"the tool `{name}` is none of those that the API key of this task may use"
        if any(fnmatchcase(name, glob) for glob in self._deny):
            return f"the tool `{name}` is denied to this task by `tools.deny`"
        if not any(fnmatchcase(name, glob) for glob in self._allow):
            return f"the tool `{name}` is not among those that `tools.allow` gives this task"
        return None

    def wants_approval(self, name: str) -> bool:
        """Whether its permission level wants it. Only of tools that can be used."""
        return self._tools[name].permission_level in self._levels

    def input_check(self, name: str) -> InputCheck:
        """The check of a tool's input."""
        if name not in self._checks:
            self._checks[name] = InputCheck(self._tools[name].schema)
        return self._checks[name]

    def thinking_check(self, subtask: Subtask) -> InputCheck:
        """The check of the input of a subtask that a model does."""
        if subtask.type is TaskType.REASONING:
            return self._reasoning
        if self._coding is None:
            runs = self._tools.get(CODE_TOOL)
            self._coding = InputCheck(coding_input(runs.schema if runs is not None else {}))
        return self._coding

    def thinking_faults(self, subtask: Subtask) -> Iterator[tuple[str, str]]:
        """Field and message of all else that is wrong with a subtask that a model does: Skills, schema, tools."""
        for place, name in enumerate(subtask.skills):
            fault = self.fault(name)
            if fault is None and self._tools[name].type != "SKILL":
                fault = f"`{name}` is no Skill: their names begin with `skill.`"
            if fault is not None:
                yield f"skills/{place}", fault
        schema = subtask.input.get("output_schema")
        if isinstance(schema, dict):
            schema = schema.get(LITERAL, schema)
        if isinstance(schema, dict) and not {REF, SECRET} & schema.keys():
            fault = schema_fault(schema)
            if fault is not None:
                yield "input/output_schema", fault
        if _is_open(subtask):
            # What a model may call is judged before anything runs, and no output may widen it.
            yield "input/use_tools", "must be written out: it can't hold references"
        for place, glob in enumerate(globs_of(subtask)):
            if not self.usable(glob):
                yield f"input/use_tools/{place}", self._useless(glob)

    def usable(self, glob: str) -> tuple[str, ...]:
        """The tools of this name, or these names, that a model may call by itself, sorted."""
        if glob not in self._globs:
            found = sorted(name for name in self._tools if fnmatchcase(name, glob))
            able = (name for name in found if self.fault(name) is None and not self.wants_approval(name))
            self._globs[glob] = tuple(able)
        return self._globs[glob]

    def _useless(self, glob: str) -> str:
        if any(mark in glob for mark in "*?["):
            return f"there is no tool `{shown(glob)}` that a model may call for this task"
        return self.fault(glob) or f"the tool `{glob}` wants approval, so no model may call it by itself"

    def resources(self, tool: str, globs: tuple[str, ...]) -> Mapping[str, float]:
        """What a subtask asks for by default: what its tool does, or the most of what its model may call."""
        if tool:
            # One that is gone has none: what it did is done.
            known = self._tools.get(tool)
            return known.resources if known is not None else {}
        most: dict[str, float] = dict(MODEL_RESOURCES)
        for name in {name for glob in globs for name in self.usable(glob)}:
            for resource, amount in self._tools[name].resources.items():
                most[resource] = max(most.get(resource, 0.0), amount)
        return most


def _is_open(subtask: Subtask) -> bool:
    """Whether a REASONING subtask names tools for its model by references."""
    named: Json | Any = subtask.input.get("use_tools") if subtask.type is TaskType.REASONING else None
    within = named if isinstance(named, list) else [named]
    return any(isinstance(each, dict) and bool({REF, SECRET} & each.keys()) for each in within)


def globs_of(subtask: Subtask) -> tuple[str, ...]:
    """The tools that a REASONING subtask names for its model, as far as they are there to be read."""
    if subtask.type is not TaskType.REASONING:
        return ()
    named: Json | Any = subtask.input.get("use_tools")
    if isinstance(named, dict) and set(named) == {LITERAL}:
        named = named[LITERAL]
    return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()
