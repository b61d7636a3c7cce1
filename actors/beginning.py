"""The beginning of one task's plan: what runs already while a model still writes the rest, and how that becomes whole.

It is on disk like everything else: losing this object loses nothing. Whoever takes the task over finds what has begun,
has the rest planned anew, and goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.judge import Judge
from rayloom.dag.errors import Bug, InvalidPlan, Transient
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.dag.planning.written import ids_of
from rayloom.dag.replan import PlannerPort
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db import growth
from rayloom.db.attempts import Committed
from rayloom.db.blobs import BlobStore
from rayloom.db.submit import accept_plan
from rayloom.db.task_moves import TaskToSplit

_log = logging.getLogger(__name__)

_META: Final[JsonObject] = {"source": "model"}
"""All that is known of how a plan was made that is not whole."""


class Beginning:
    """``begun``: what runs already, in its order, as it was accepted. ``lost``: ids of what was ended before."""

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        judge: Judge,
        task: TaskToSplit,
        incarnation: UUID,
    ) -> None:
        self._engine, self._blobs, self._backlog, self._judge = engine, blobs, backlog, judge
        self._task, self._incarnation = task, incarnation
        self.begun: tuple[JsonObject, ...] = task.begun
        self.lost = task.lost
        self._waiting: tuple[JsonObject, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Those of what runs already."""
        return ids_of(self.begun)

    @property
    def usable(self) -> tuple[JsonObject, ...]:
        """What may be part of the whole plan."""
        return tuple(each for each in self.begun if each["id"] not in self.lost)

    async def planned(self, parser: PlannerPort, request: PlanRequest) -> Planned:
        """What the parser says; what of it may begin before it has said all does.

        Raises Stale when the task has moved on, and what the parser raises.
        """
        if not request.may_begin:
            return await parser.plan(request)
        self._waiting = ()
        async with aclosing(parser.stream(request)) as answer:
            async for given in answer:
                if isinstance(given, Planned):
                    return given
                await self._add(given.subtask)
        raise Bug("PARSER_FAILED", "the parser ended without a plan")

    async def _add(self, subtask: JsonObject) -> None:
        """Have it begin, if it may. What can't be written down now is tried again with the next."""
        more = (*self._waiting, subtask)
        plan: JsonObject = {"subtasks": [*self.begun, *more]}
        try:
            verified = await asyncio.to_thread(self._verified, plan)
        except InvalidPlan:
            verified = None
        if verified is None:
            # The tools have changed meanwhile, or a rule of the task forbids it: the whole plan will tell.
            return
        try:
            await self._store(verified)
        except Transient as error:
            _log.warning("beginning.later", extra={"task_id": str(self._task.task_id), "error": error.message})
            self._waiting = more
        else:
            self.begun, self._waiting = (*self.begun, *more), ()

    async def finish(self, plan: VerifiedPlan, *, meta: JsonObject, replans: int, dropped: Sequence[str]) -> Committed:
        """The whole plan is known: it has what has begun first. ``dropped``: ids of what it does without.

        Gives what became of the task by it. Raises Stale when the task has moved on, and Transient.
        """
        committed = await growth.extend_plan(
            self._engine, self._blobs, self._task.task_id, plan, known=self.ids, incarnation=self._incarnation,
            meta=meta | {"begun": list(self.ids)}, is_last=True, dropped=dropped, replans=replans,
        )  # fmt: skip
        await self._tell(committed)
        return committed

    def _verified(self, plan: JsonObject) -> VerifiedPlan | None:
        """None where not all of it may run before the plan is whole. Raises InvalidPlan."""
        verified = self._judge.verify(plan, self._task.options, done=self.ids)
        return verified if self._judge.may_begin(verified, begun=len(self.begun)) else None

    async def _store(self, plan: VerifiedPlan) -> None:
        task_id = self._task.task_id
        if self.begun:
            committed = await growth.extend_plan(
                self._engine, self._blobs, task_id, plan, known=self.ids, incarnation=self._incarnation, meta=_META,
                is_last=False,
            )  # fmt: skip
        else:
            queued = await accept_plan(
                self._engine, self._blobs, task_id, plan, meta=_META, incarnation=self._incarnation, grows=True
            )
            committed = Committed(queued=queued, touched=frozenset({str(task_id)}))
        await self._tell(committed)

    async def _tell(self, committed: Committed) -> None:
        await self._backlog.add(committed.queued, tasks=committed.touched)
