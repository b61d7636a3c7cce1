"""What the parser is asked, and what it answers: a plan for a prompt, and more of a plan that runs already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject

PARSER_BROKE: Final = "PARSER_BROKE"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the parser needs to plan a prompt. ``tools``: those that the task may use, by name."""

    task_id: str
    prompt: str
    context: JsonObject
    tools: Mapping[str, ToolView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan as the parser proposes it, not yet verified; ``parsed_s`` and ``split_s`` are how long each took.

    ``joiner``: the id of the subtask that answers the whole request, and may say in its output's ``more`` what is still
    needed for that; empty where there is none.
    """

    plan: JsonObject
    source: Literal["outline", "model"]
    notes: tuple[str, ...]
    language: str
    parsed_s: float
    split_s: float
    joiner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """One subtask of a running task as it is now.

    ``output`` is the beginning of its JSON text; ``error`` says why it has none. ``is_done``: others may use it.
    """

    key: str
    status: str
    is_done: bool
    output: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanRequest:
    """The request, the plan so far, what has come of it, and why that is not enough."""

    request: PlanRequest
    plan: JsonObject
    reached: tuple[Reached, ...]
    reason: str


class ParserPort(Protocol):
    """The parser deployment, as the scheduler sees it."""

    async def plan(self, request: PlanRequest) -> Planned:
        """Parse a prompt and split it into a plan.

        Raises UserError when it can't be planned, and Transient when it was not: with the code ``PARSER_BROKE`` when a
        parser took the prompt and never answered, with any other when there was none to take it.
        """


class PlannerPort(ParserPort, Protocol):
    """The parser deployment, as far as it also adds to plans."""

    async def replan(self, request: ReplanRequest) -> Planned:
        """What to add to the plan of a running task: its subtasks are new ones alone, and may be none.

        Raises as ``plan``.
        """
