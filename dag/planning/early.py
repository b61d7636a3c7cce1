"""Which subtasks may begin before their plan is whole: those that only read, and stand on what has begun already.

What writes waits until the whole plan is verified, and so does what a model or a person has still to decide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rayloom.dag.kinds import needs_model, tool_of
from rayloom.dag.plan import Subtask
from rayloom.dag.references import scan
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject

READS = "read"


def may_plan_begin(options: JsonObject, *, approval_levels: Collection[str]) -> bool:
    """Whether anything of a task with these options may begin early: nobody has to approve it, nor is money short."""
    budget = options.get("budget")
    is_short = isinstance(budget, dict) and any(budget.get(name) is not None for name in ("max_tokens", "max_cost_usd"))
    return not options.get("require_approval") and not is_short and READS not in approval_levels


def may_begin(subtask: Subtask, *, tools: Mapping[str, ToolView], begun: Collection[str]) -> bool:
    """Whether this one may begin, when ``begun`` are those of its plan that have. ``tools``: all that it may use."""
    view = tools.get(tool_of(subtask))
    if view is None or view.permission_level != READS or needs_model(subtask):
        return False
    if subtask.require_approval or subtask.fallback is not None:
        return False
    if any(name not in begun for name in subtask.depends_on):
        return False
    # A reference to an id that is not known yet would be taken for text.
    found = scan(subtask.input, begun, pointer="")
    return not found.faults and not found.secrets
