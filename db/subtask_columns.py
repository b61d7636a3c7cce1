"""The columns that a new subtask is written with; those that few plans need are written only by those."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rayloom.dag.states import SubtaskStatus
from rayloom.dag.verified import VerifiedSubtask
from rayloom.db.engine import dump

SUB_TASK_COLUMNS = (
    "id", "parent_id", "user_id", "key", "name", "task_type", "status", "execution_order", "dependencies", "dependents",
    "pending_dependencies", "tool", "input_context", "referred", "timeout_s", "max_retries", "resources", "shape",
    "score", "created_at", "queued_at", "cacheable",
)  # fmt: skip
POLICY_COLUMNS = (
    "on_failure", "stand_in", "fallback_tool", "fallback_input", "fallback_referred", "require_approval", "held_at",
)  # fmt: skip
"""Written only where a subtask of the plan has something else in them than every other plan."""
BLOB_COLUMNS = ("input_blob",)
"""Written only where an input of the plan is kept apart."""
MODEL_COLUMNS = ("instruction", "skills")
"""Written only where a subtask of the plan is done by a model."""


def has_policy(subtask: VerifiedSubtask) -> bool:
    """Whether it has something in ``POLICY_COLUMNS``."""
    return subtask.needs_approval or subtask.spec.on_failure != "block"


def policy_of(subtask: VerifiedSubtask, status: SubtaskStatus, now: datetime) -> tuple[Any, ...]:
    """The values of ``POLICY_COLUMNS``."""
    spec, fallback = subtask.spec, subtask.spec.fallback
    has_stand_in = spec.on_failure in ("continue", "default")
    return (
        spec.on_failure,
        dump(spec.default) if has_stand_in else None,
        None if fallback is None else fallback.tool,
        None if fallback is None else dump(fallback.input),
        list(subtask.fallback_references),
        subtask.needs_approval,
        now if status is SubtaskStatus.AWAITING_APPROVAL else None,
    )


def is_thought(subtask: VerifiedSubtask) -> bool:
    """Whether a model does it: it has something in ``MODEL_COLUMNS``."""
    return not subtask.tool


def told_of(subtask: VerifiedSubtask) -> tuple[Any, ...]:
    """The values of ``MODEL_COLUMNS``: what a tool has no use for is left in the plan."""
    return (subtask.spec.instruction, list(subtask.spec.skills)) if is_thought(subtask) else (None, [])
