"""A plan that can run: each subtask with everything that the plan leaves to be worked out."""

from __future__ import annotations

from dataclasses import dataclass

from rayloom.dag.plan import Plan, Subtask
from rayloom.dag.resources import ResourceShape
from rayloom.dag.tool_view import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSubtask:
    """One subtask with everything that the plan leaves to be worked out."""

    spec: Subtask
    ordinal: int
    """Its place in the plan, from 0."""
    tool: str
    """The tool that runs it; empty where a model does."""
    dependencies: tuple[int, ...]
    """Ordinals, ascending, no repeats: what ``depends_on`` names and what references imply."""
    dependents: tuple[int, ...]
    references: tuple[str, ...]
    """Ids of the subtasks whose outputs its input refers to, sorted."""
    fallback_references: tuple[str, ...]
    """The same of its fallback's input."""
    needs_approval: bool
    """It asks for approval itself, or one of its tools has a permission level that wants it."""
    rank: int
    """Nodes on the longest way from here to a sink, this one counted."""
    shape: ResourceShape
    lane: Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPlan:
    """A plan that can run."""

    plan: Plan
    subtasks: tuple[VerifiedSubtask, ...]
    width: int
    """Size of the largest level: the most that runs at once if every subtask takes equally long."""
    critical_path: tuple[str, ...]
    """Ids of a longest chain, in running order."""
    sinks: tuple[str, ...]
    """Ids that nothing depends on: their outputs are the task's result."""
