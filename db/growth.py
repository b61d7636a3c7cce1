"""Plans that grow while they run: who sees to it, what is added, and how it ends.

A task that grows counts one more in ``open_count``, so it can't close meanwhile (``migrations/sql/0012_growth.sql``).
One whose plan has begun before it was whole grows, too, until it is (``migrations/sql/0013_beginning.sql``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Stale
from rayloom.dag.order import queue_score
from rayloom.dag.output import sanitise
from rayloom.dag.plan import subtasks_of
from rayloom.dag.planned import WHOLE
from rayloom.dag.states import SubtaskStatus
from rayloom.dag.tried import TRIED, Kept
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db.attempts import INLINE_BYTES, Committed, committed_of
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import driver, dump
from rayloom.db.plan_inputs import keep_inputs
from rayloom.db.plan_rows import (
    ACCEPTED,
    EVENT_COLUMNS,
    NewSubtask,
    first_events,
    first_status,
    shape_of_plan,
    tell_earlier,
    write_subtasks,
)
from rayloom.db.task_moves import TaskToSplit

NOT_BLOCKED: Final = "NOT_BLOCKED"
_DEAD = (SubtaskStatus.BLOCKED, SubtaskStatus.SKIPPED, SubtaskStatus.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowingTask:
    """A task that this incarnation sees to. ``replans_left``: so often it may grow again after this.

    ``superseded``: where its plan is not whole, the ids of what can't be part of it any more.
    """

    task_id: UUID
    user_id: UUID
    prompt: str
    context: JsonObject
    options: JsonObject
    plan: JsonObject
    meta: JsonObject
    replans_left: int
    api_key_id: UUID | None
    superseded: frozenset[str] = frozenset()

    def to_split(self) -> TaskToSplit:
        """The same for whoever has the rest of its plan made."""
        return TaskToSplit(
            task_id=self.task_id, user_id=self.user_id, prompt=self.prompt, context=self.context, options=self.options,
            key_id=self.api_key_id, begun=tuple(subtasks_of(self.plan)), lost=self.superseded, kept=self.kept,
        )  # fmt: skip

    @property
    def kept(self) -> Kept:
        """What was tried before for what is to be added."""
        return Kept.of_meta(self.meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """One subtask of a task as it is now. ``output`` is cut after so many characters as were asked for.

    ``is_done``: what depends on it need not wait.
    """

    key: str
    status: str
    is_done: bool
    output: str
    error: JsonObject | None


async def claim_growths(
    engine: AsyncEngine,
    *,
    incarnation: UUID,
    dead: Sequence[UUID],
    limit: int,
    busy: Sequence[UUID],
    partial: bool = False,
) -> tuple[GrowingTask, ...]:
    """Take tasks that are due to grow, and those whose grower died; not those that are ``busy`` here already.

    ``partial``: those whose plan is not whole yet, as whoever split them has died; else all others.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM claim_growths($1, $2, $3::uuid[], $4::uuid[], $5)",
            limit, incarnation, list(dead), list(busy), partial,
        )  # fmt: skip
        superseded: dict[UUID, list[str]] = {}
        if partial and rows:
            of = await connection.fetch(
                "SELECT parent_id, array_agg(key) AS keys FROM sub_tasks WHERE parent_id = ANY ($1) AND superseded "
                "GROUP BY parent_id",
                [row["id"] for row in rows],
            )
            superseded = {row["parent_id"]: row["keys"] for row in of}
    return tuple(
        GrowingTask(
            task_id=row["id"],
            user_id=row["user_id"],
            prompt=row["original_prompt"] or "",
            context=row["context"],
            options=row["options"],
            plan=row["plan"],
            meta=row["plan_meta"],
            replans_left=row["replans_left"],
            api_key_id=row["api_key_id"],
            superseded=frozenset(superseded.get(row["id"], ())),
        )
        for row in rows
    )


async def subtasks_so_far(engine: AsyncEngine, task_id: UUID, *, output_chars: int) -> tuple[Grown, ...]:
    """The subtasks of a task in the order of its plan, with the beginnings of their outputs as JSON text."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT key, status, error, status = 'COMPLETED' OR (status = 'BLOCKED' AND stand_in IS NOT NULL) AS done, "
            "left(coalesce(output_result::text, CASE WHEN output_blob IS NOT NULL "
            "THEN format('(%s bytes, kept apart)', output_size) ELSE '' END), $2) AS output "
            "FROM sub_tasks WHERE parent_id = $1 AND NOT superseded ORDER BY execution_order",
            task_id,
            output_chars,
        )
    return tuple(
        Grown(key=row["key"], status=row["status"], is_done=row["done"], output=row["output"], error=row["error"])
        for row in rows
    )


async def extend_plan(
    engine: AsyncEngine,
    blobs: BlobStore,
    task_id: UUID,
    plan: VerifiedPlan,
    *,
    known: Collection[str],
    incarnation: UUID,
    meta: JsonObject,
    is_last: bool,
    goes_around: bool = False,
    dropped: Collection[str] = (),
    replans: int | None = None,
    while_blocked: Collection[str] = (),
) -> Committed:
    """Add to the plan of a growing task what of ``plan`` is not ``known`` yet: the ids that are there already.

    Those come first in ``plan``, as they are. ``meta`` goes over that of the plan. ``is_last``: this growth ends with
    it. ``goes_around``: what is BLOCKED or SKIPPED now is superseded, as the plan goes another way; else what grows is
    a plan that is not whole yet, and with the last of it is. ``dropped``: of those that are known, what the whole plan
    does without: stopped, and superseded. ``replans``: how often it may grow from now on, where that is not known yet.
    ``while_blocked``: one of these has to be BLOCKED still, where any are named; somebody may have retried them since
    they were looked at.

    Raises Stale: ``TASK_MOVED_ON`` when the task no longer grows by this incarnation, ``NOT_BLOCKED`` when none
    of ``while_blocked`` is BLOCKED any more, and Transient.
    """
    inputs = await keep_inputs(plan, blobs, taken=frozenset(known))
    now = datetime.now(UTC)
    async with driver(engine) as connection, connection.transaction():
        task = await _must_be_growing(connection, task_id, incarnation, partial=not goes_around)
        if while_blocked and not await _is_any_blocked(connection, task_id, while_blocked):
            raise Stale(NOT_BLOCKED, "what the plan was to go around is in nobody's way any more")
        events: list[tuple[Any, ...]] = []
        if goes_around:
            await _supersede(connection, task_id)
        if dropped:
            reason = "no part of the whole plan"
            await connection.execute("SELECT drop_subtasks($1, $2::text[], $3)", task_id, list(dropped), reason)
        earlier = {
            row["key"]: row
            for row in await connection.fetch(
                "SELECT id, key, status, status = 'COMPLETED' OR (status = 'BLOCKED' AND stand_in IS NOT NULL) AS done "
                "FROM sub_tasks WHERE parent_id = $1",
                task_id,
            )
        }
        if earlier.keys() != set(known):
            # Another has added to it in our name: what we know of it is old.
            raise Stale("TASK_MOVED_ON", "the plan is no longer what it was")
        rows: list[NewSubtask] = []
        ids = {each.spec.id: uuid7() for each in plan.subtasks if each.spec.id not in known}
        dead = {key for key, row in earlier.items() if row["status"] in _DEAD and not row["done"]}
        created_ms = int(task["created_at"].timestamp() * 1000)
        # In running order: what depends on what is skipped is skipped itself.
        for subtask in sorted(plan.subtasks, key=lambda each: -each.rank):
            spec = subtask.spec
            if spec.id in known:
                continue
            keys = [plan.subtasks[ordinal].spec.id for ordinal in subtask.dependencies]
            is_dead = not dead.isdisjoint(keys)
            if is_dead:
                dead.add(spec.id)
            pending = sum(key in ids or not earlier[key]["done"] for key in keys)
            new = NewSubtask(
                id=ids[spec.id], task_id=task_id, user_id=task["user_id"], planned=subtask,
                status=first_status(subtask, pending=pending, is_dead=is_dead), keys=keys,
                dependents=[ids[plan.subtasks[ordinal].spec.id] for ordinal in subtask.dependents], pending=pending,
                input=inputs[subtask.ordinal],
                score=queue_score(priority=task["priority"], created_ms=created_ms, rank=subtask.rank),
            )  # fmt: skip
            rows.append(new)
            events.append((task_id, "subtask", spec.id, SubtaskStatus.PENDING, ACCEPTED, None, now))
            events += first_events(new, now, reason="a dependency is BLOCKED" if is_dead else None)
        await write_subtasks(connection, rows, now)
        await tell_earlier(connection, earlier, rows)
        still_open = sum(new.status is not SubtaskStatus.SKIPPED for new in rows)
        await connection.execute(
            "UPDATE tasks SET plan = $2, subtask_count = subtask_count + $4, open_count = open_count + $5, "
            "plan_meta = (plan_meta || $3::jsonb) - CASE WHEN $6 THEN ARRAY['partial', $8] ELSE '{}' END, "
            "replans_left = coalesce($7, replans_left) WHERE id = $1",
            task_id, dump(plan.plan.model_dump(mode="json", exclude_unset=True)),
            dump(sanitise(meta | shape_of_plan(plan))),
            len(rows), still_open, is_last, replans, TRIED,
        )  # fmt: skip
        said = f"{len(rows)} more subtasks, width {plan.width}"
        said = f"{WHOLE}: {said}" if is_last and not goes_around else said
        events.insert(0, (task_id, "plan", None, None, None, said, now))
        await connection.copy_records_to_table("task_events", records=events, columns=EVENT_COLUMNS)
        closed = Committed()
        if is_last:
            closed = await _end(connection, task_id, incarnation, spent=False)
    queued = tuple(new.queued for new in rows if new.status is SubtaskStatus.QUEUED)
    return closed.joined(Committed(queued=queued, touched=frozenset({str(task_id)})))


async def end_growth(engine: AsyncEngine, task_id: UUID, incarnation: UUID, *, spent: bool) -> Committed:
    """Nothing more is added: the task closes when nothing else is open. ``spent``: nor is it asked again.

    Changes nothing where the task no longer grows by this incarnation.
    """
    async with driver(engine) as connection, connection.transaction():
        await connection.execute("SELECT FROM tasks WHERE id = $1 FOR NO KEY UPDATE", task_id)
        return await _end(connection, task_id, incarnation, spent=spent)


async def _end(connection: asyncpg.Connection[Any], task_id: UUID, incarnation: UUID, *, spent: bool) -> Committed:
    rows = await connection.fetch("SELECT * FROM end_growth($1, $2, $3, $4)", task_id, incarnation, spent, INLINE_BYTES)
    return committed_of(rows)


async def _must_be_growing(
    connection: asyncpg.Connection[Any], task_id: UUID, incarnation: UUID, *, partial: bool
) -> Mapping[str, Any]:
    """Lock a task for what its grower does to it. ``partial``: its plan is not whole yet."""
    row = await connection.fetchrow(
        "SELECT user_id, priority, created_at, status = 'PROCESSING' AND incarnation = $2 AND growth IS NOT NULL "
        "AND (coalesce(plan_meta -> 'partial', 'false') = 'true') = $3 AS is_ours "
        "FROM tasks WHERE id = $1 FOR NO KEY UPDATE",
        task_id,
        incarnation,
        partial,
    )
    if row is None or not row["is_ours"]:
        raise Stale("TASK_MOVED_ON", "the plan of this task no longer grows here")
    return dict(row)


async def _is_any_blocked(connection: asyncpg.Connection[Any], task_id: UUID, keys: Collection[str]) -> bool:
    is_any: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM sub_tasks WHERE parent_id = $1 AND key = ANY ($2) AND status = 'BLOCKED' "
        "AND NOT superseded)",
        task_id,
        list(keys),
    )
    return is_any


async def _supersede(connection: asyncpg.Connection[Any], task_id: UUID) -> None:
    """Leave aside what is BLOCKED, and what is SKIPPED for it; its letters are put away."""
    blocked = await connection.fetch(
        "UPDATE sub_tasks SET superseded = true WHERE parent_id = $1 AND NOT superseded "
        "AND (status = 'SKIPPED' OR (status = 'BLOCKED' AND stand_in IS NULL)) RETURNING id, status",
        task_id,
    )
    letters = [row["id"] for row in blocked if row["status"] == SubtaskStatus.BLOCKED]
    await connection.execute("SELECT discard_letters($1::uuid[])", letters)
