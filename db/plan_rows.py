"""The subtasks of a plan as rows: what is written of each, and what it begins as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from rayloom.dag.states import SubtaskEvent, SubtaskStatus, move_subtask
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan, VerifiedSubtask
from rayloom.db.engine import dump, dump_sorted
from rayloom.db.plan_inputs import KeptInput
from rayloom.db.queue import Queued

SUB_TASK_COLUMNS = (
    "id", "parent_id", "user_id", "key", "name", "task_type", "status", "execution_order", "dependencies", "dependents",
    "pending_dependencies", "tool", "input_context", "referred", "timeout_s", "max_retries", "resources", "shape",
    "score", "created_at", "queued_at", "finished_at", "cacheable",
)  # fmt: skip
POLICY_COLUMNS = (
    "on_failure", "stand_in", "fallback_tool", "fallback_input", "fallback_referred", "require_approval", "held_at",
)  # fmt: skip
"""Written only where a subtask of the plan has something else in them than every other plan."""
BLOB_COLUMNS = ("input_blob",)
"""Written only where an input of the plan is kept apart."""
MODEL_COLUMNS = ("instruction", "skills")
"""Written only where a subtask of the plan is done by a model."""
EVENT_COLUMNS = ("task_id", "kind", "subtask", "from_status", "to_status", "reason", "at")
ACCEPTED = move_subtask(SubtaskStatus.PENDING, SubtaskEvent.ACCEPTED)
"""What a subtask is as soon as its plan is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSubtask:
    """A subtask that is to be written. ``keys``: the ids in the plan of what it depends on; ``pending``: how many of
    those are not done; ``status``: what it begins as."""

    id: UUID
    task_id: UUID
    user_id: UUID
    planned: VerifiedSubtask
    status: SubtaskStatus
    keys: Sequence[str]
    dependents: Sequence[UUID]
    pending: int
    input: KeptInput
    score: float

    @property
    def queued(self) -> Queued:
        """Its place in the queue."""
        return Queued(str(self.id), str(self.user_id), shape_of(self.planned), self.score)


def shape_of(subtask: VerifiedSubtask) -> str:
    """The key of its resource shape."""
    return dump_sorted(subtask.shape.as_json())


def shape_of_plan(plan: VerifiedPlan) -> JsonObject:
    """What is stored of a plan beside how it was made."""
    return {"width": plan.width, "critical_path": list(plan.critical_path)}


def first_status(subtask: VerifiedSubtask, *, pending: int, is_dead: bool = False) -> SubtaskStatus:
    """What an accepted subtask begins as. ``is_dead``: it depends on what will never be done."""
    if is_dead:
        return move_subtask(ACCEPTED, SubtaskEvent.DEPENDENCY_BLOCKED)
    if pending:
        return ACCEPTED
    return move_subtask(ACCEPTED, SubtaskEvent.HELD if subtask.needs_approval else SubtaskEvent.FREED)


def first_events(new: NewSubtask, now: datetime, *, reason: str | None = None) -> list[tuple[Any, ...]]:
    """The events that lead from accepted to what a subtask begins as, in the order of ``EVENT_COLUMNS``."""
    key, status = new.planned.spec.id, new.status
    if status is ACCEPTED:
        return []
    events: list[tuple[Any, ...]] = [(new.task_id, "subtask", key, ACCEPTED, status, reason, now)]
    if status is SubtaskStatus.AWAITING_APPROVAL:
        events.append((new.task_id, "approval", key, ACCEPTED, status, "asked", now))
    return events


async def write_subtasks(connection: asyncpg.Connection[Any], rows: Sequence[NewSubtask], now: datetime) -> None:
    """Write new subtasks; their events are the caller's."""
    has_policies = any(_has_policy(row.planned) for row in rows)
    has_models = any(_is_thought(row.planned) for row in rows)
    has_blobs = any(row.input.blob is not None for row in rows)
    columns = SUB_TASK_COLUMNS + (BLOB_COLUMNS if has_blobs else ())
    columns += (POLICY_COLUMNS if has_policies else ()) + (MODEL_COLUMNS if has_models else ())
    records = [
        _record(row, now)
        + ((row.input.blob,) if has_blobs else ())
        + (_policy(row.planned, row.status, now) if has_policies else ())
        + (_told(row.planned) if has_models else ())
        for row in rows
    ]
    await connection.copy_records_to_table("sub_tasks", records=records, columns=columns)


def _record(row: NewSubtask, now: datetime) -> tuple[Any, ...]:
    """The values of ``SUB_TASK_COLUMNS``."""
    spec, shape, status = row.planned.spec, shape_of(row.planned), row.status
    return (
        row.id, row.task_id, row.user_id, spec.id, spec.name or spec.id, spec.type, status,
        row.planned.ordinal, dump(list(row.keys)), list(row.dependents), row.pending,
        row.planned.tool, row.input.text, list(row.planned.references), spec.timeout_s, spec.max_retries,
        shape, shape, row.score, now, now if status is SubtaskStatus.QUEUED else None,
        now if status is SubtaskStatus.SKIPPED else None, spec.cacheable,
    )  # fmt: skip


def _has_policy(subtask: VerifiedSubtask) -> bool:
    return subtask.needs_approval or subtask.spec.on_failure != "block"


def _policy(subtask: VerifiedSubtask, status: SubtaskStatus, now: datetime) -> tuple[Any, ...]:
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


def _is_thought(subtask: VerifiedSubtask) -> bool:
    return not subtask.tool


def _told(subtask: VerifiedSubtask) -> tuple[Any, ...]:
    """The values of ``MODEL_COLUMNS``: what a tool has no use for is left in the plan."""
    return (subtask.spec.instruction, list(subtask.spec.skills)) if _is_thought(subtask) else (None, [])
