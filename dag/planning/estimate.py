"""What a plan will use, before any of it has run: tokens, money and time, from what calls used to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rayloom.dag.kinds import needs_model
from rayloom.dag.model import ModelView
from rayloom.dag.plan import TaskType
from rayloom.dag.planning.brief import Brief
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan, VerifiedSubtask

UNKNOWN_TOOL_S: Final = 2.0
"""Of a tool that nobody has called yet."""
_TOKENS_IN: Final = {TaskType.REASONING: 1_500, TaskType.CODE_GEN: 2_000}
_TOKENS_OUT: Final = {TaskType.REASONING: 500, TaskType.CODE_GEN: 800}
_SEEN_TOKENS: Final = 800
"""More that is read for each output that it refers to."""
_TOKENS_PER_S: Final = 30.0
"""That a model writes; a local one is slower, a hosted one faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The models that will think and code. Without one of them its subtasks cost nothing that is known."""

    reasoner: ModelView | None = None
    coder: ModelView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtaskEstimate:
    """What one subtask will use."""

    id: str
    tokens: int
    cost_usd: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan will use in all. ``seconds``: along its slowest chain, with room for all that could run at once."""

    tokens: int
    cost_usd: float
    seconds: float
    subtasks: tuple[SubtaskEstimate, ...]

    def as_json(self) -> JsonObject:
        """The totals, as the API shows them."""
        return {"tokens": self.tokens, "cost_usd": round(self.cost_usd, 6), "seconds": round(self.seconds, 3)}


def estimate(plan: VerifiedPlan, *, p50_s: Mapping[str, float], prices: Prices) -> Estimate:
    """What a plan will use. ``p50_s``: the median seconds of each tool's recent calls."""
    parts = tuple(_of(subtask, p50_s, prices) for subtask in plan.subtasks)
    ends = [0.0] * len(parts)
    # A higher rank has a longer way to go: nothing depends on what has a lower one.
    for subtask in sorted(plan.subtasks, key=lambda each: -each.rank):
        begins = max((ends[needed] for needed in subtask.dependencies), default=0.0)
        ends[subtask.ordinal] = begins + parts[subtask.ordinal].seconds
    return Estimate(
        tokens=sum(part.tokens for part in parts),
        cost_usd=sum(part.cost_usd for part in parts),
        seconds=max(ends, default=0.0),
        subtasks=parts,
    )


def _of(subtask: VerifiedSubtask, p50_s: Mapping[str, float], prices: Prices) -> SubtaskEstimate:
    spec = subtask.spec
    if not needs_model(spec):
        return SubtaskEstimate(id=spec.id, tokens=0, cost_usd=0.0, seconds=p50_s.get(subtask.tool, UNKNOWN_TOOL_S))
    view = prices.reasoner if spec.type is TaskType.REASONING else prices.coder
    tokens_in = _TOKENS_IN[spec.type] + _SEEN_TOKENS * len(subtask.references)
    tokens_out = _TOKENS_OUT[spec.type]
    return SubtaskEstimate(
        id=spec.id,
        tokens=tokens_in + tokens_out,
        cost_usd=view.cost_usd(tokens_in, tokens_out) if view is not None else 0.0,
        seconds=tokens_out / _TOKENS_PER_S,
    )


def over_budget(found: Estimate, *, budget: Mapping[str, object], brief: Brief) -> tuple[str, ...]:
    """Where an estimate is beyond what its task may use, or what the prompt says that it may; empty where it is not.

    ``budget``: ``max_tokens``, ``max_cost_usd`` and ``deadline_s``, as submitted. The stricter of both counts.
    """
    limits = (
        ("max_tokens", found.tokens, brief.max_tokens, "{:,.0f} tokens"),
        ("max_cost_usd", found.cost_usd, brief.max_cost_usd, "{:.4f} USD"),
        ("deadline_s", found.seconds, brief.deadline_s, "{:,.0f} s"),
    )
    said = []
    for name, needed, of_prompt, form in limits:
        given = budget.get(name)
        known = [each for each in (given, of_prompt) if isinstance(each, (int, float)) and not isinstance(each, bool)]
        if known and needed > min(known):
            said.append(f"`{name}`: about {form.format(needed)} are needed, {form.format(min(known))} allowed")
    return tuple(said)
