"""What the parser is asked, and what it proposes: values that cross Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from rayloom.dag.model import ModelUse, Payer
from rayloom.dag.planning.estimate import Estimate
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_view import ToolView
from rayloom.dag.tried import NOTHING_TRIED, PlanCall, Tried, calls_meta
from rayloom.dag.values import JsonObject

NOBODY: Final = Payer(user_id="")
BEGINS: Final = "begins with"
"""How an event of a plan begins that is not whole yet."""
WHOLE: Final = "whole"
"""How that event begins by which it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the parser needs to plan a prompt.

    ``tools``: those that the task may use, by name. ``nodes``: every kind of node; none: resources are not judged.
    ``payer``: on whose account models are called. ``budget``: of the task, as submitted. ``p50_s``: the median seconds
    of the tools' recent calls. ``tried``: what was done for this plan already, as the error said that ended it.
    ``may_begin``: what only reads may run before the plan is whole. ``begun``: what does, or has, of an earlier plan of
    this prompt that never became whole.
    """

    task_id: str
    prompt: str
    context: JsonObject
    tools: Mapping[str, ToolView]
    nodes: Sequence[NodeShape] = ()
    payer: Payer = NOBODY
    budget: JsonObject = field(default_factory=dict)
    p50_s: Mapping[str, float] = field(default_factory=dict)
    tried: Tried = NOTHING_TRIED
    may_begin: bool = False
    begun: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Early:
    """A subtask of a plan that a model is still writing, which may run already."""

    subtask: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan as the parser proposes it; whoever stores it verifies it.

    ``parsed_s`` and ``split_s``: how long each took. ``repairs``: rounds in which a model mended its plan. ``brief``:
    what was understood. ``calls``: of models, in their order. ``estimate``: None where nobody made one.
    ``over_budget``: why it needs more than it may use. ``joiner``: the id of the subtask that answers the whole
    request, and may say in its output's ``more`` what is still needed for that; empty where there is none.
    """

    plan: JsonObject
    source: Literal["outline", "model"]
    notes: tuple[str, ...]
    language: str
    parsed_s: float
    split_s: float
    repairs: int = 0
    brief: JsonObject = field(default_factory=dict)
    calls: tuple[PlanCall, ...] = ()
    estimate: Estimate | None = None
    over_budget: tuple[str, ...] = ()
    joiner: str = ""

    @property
    def use(self) -> ModelUse:
        """What planning itself has used."""
        return sum((call.use for call in self.calls), ModelUse())

    def meta(self) -> JsonObject:
        """How it was made, as it is stored with the plan."""
        made: JsonObject = {
            "source": self.source,
            "language": self.language,
            "notes": list(self.notes),
            "parsed_s": self.parsed_s,
            "split_s": self.split_s,
        }
        if self.calls:
            made |= calls_meta(self.calls) | {"repairs": self.repairs}
        if self.brief:
            made["brief"] = self.brief
        if self.estimate is not None:
            made["estimate"] = self.estimate.as_json()
        if self.joiner:
            made["joiner"] = self.joiner
        if self.over_budget:
            made["over_budget"] = list(self.over_budget)
        return made
