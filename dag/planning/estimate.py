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
    """Where an estimate is beyond what its task may spend, or what the prompt says that it may; empty where it is not.

    ``budget``: ``max_tokens`` and ``max_cost_usd``, as submitted. The stricter of both counts.
    """
    tokens = _limit(budget.get("max_tokens"), brief.max_tokens)
    cost_usd = _limit(budget.get("max_cost_usd"), brief.max_cost_usd)
    said = []
    if tokens is not None and found.tokens > tokens:
        said.append(f"`max_tokens`: about {found.tokens:,} tokens are needed, {tokens:,.0f} allowed")
    if cost_usd is not None and found.cost_usd > cost_usd:
        said.append(f"`max_cost_usd`: about {found.cost_usd:.4f} USD are needed, {cost_usd:.4f} allowed")
    return tuple(said)


def lateness(found: Estimate, *, budget: Mapping[str, object], brief: Brief) -> str:
    """What to say of a plan that will hardly be done by its deadline; empty of any other.

    It is told and no more: to wait for somebody's word would take the time that there is.
    """
    deadline_s = _limit(budget.get("deadline_s"), brief.deadline_s)
    if deadline_s is None or found.seconds <= deadline_s:
        return ""
    return f"`deadline_s`: about {found.seconds:,.0f} s are needed, {deadline_s:,.0f} s allowed"


def _limit(given: object, of_prompt: float | None) -> float | None:
    """The stricter of two limits."""
    known = [each for each in (given, of_prompt) if isinstance(each, (int, float)) and not isinstance(each, bool)]
    return min(known) if known else None
