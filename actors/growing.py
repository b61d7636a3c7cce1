"""Running tasks whose plans grow: ask the parser what to add, verify it with what is there, and store it, or let it be.

What a task has come to may ask for more (its joiner says so), or be in its way (a subtask is BLOCKED). What is done is
never done again: what is added may use it. A plan is asked for so often as its task has replans.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.jobs import Jobs
from rayloom.actors.splitting import AGAIN_S, BROKEN_MAX, scope_of, usable
from rayloom.dag.errors import Bug, RayloomError, Stale, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.parser_port import PARSER_BROKE, Planned, PlannerPort, PlanRequest, Reached, ReplanRequest
from rayloom.dag.plan import parse_plan
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.resources import NodeShape
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.db import growth, incarnations
from rayloom.db.attempts import Committed
from rayloom.db.blobs import BlobStore
from rayloom.db.growth import GrowingTask, Grown
from rayloom.db.log_lines import append

_log = logging.getLogger(__name__)

AT_ONCE = 4
OUTPUT_CHARS = 2_000
"""So much of each output the parser is shown."""


class Growing:
    """The tasks whose growth this incarnation sees to. ``on_grown`` is told what each growth has changed.

    ``levels``: permission levels of tools that want approval.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        parser: PlannerPort,
        *,
        on_room: Callable[[], None],
        on_closed: Callable[[], None],
        levels: Collection[str] = (),
    ) -> None:
        self._engine, self._blobs, self._backlog, self._parser = engine, blobs, backlog, parser
        self._on_closed, self._levels = on_closed, levels
        self._jobs = Jobs(at_once=AT_ONCE, on_room=on_room)
        self.tools = ToolSnapshot(version=-1, tools={})
        self.nodes: tuple[NodeShape, ...] = ()

    async def turn(self, incarnation: UUID) -> None:
        """Take as many tasks as there is room for, once tools and nodes are known."""
        if self.tools.version < 0 or not self.nodes or self._jobs.room <= 0:
            return
        dead = await incarnations.dead_with_leases(self._engine)
        taken = await growth.claim_growths(
            self._engine, incarnation=incarnation, dead=dead, limit=self._jobs.room, busy=self._jobs.busy
        )
        for task in taken:
            self._jobs.start(task.task_id, self._grow(task, incarnation))

    async def close(self) -> None:
        """Stop; another incarnation takes it over."""
        await self._jobs.close()

    @property
    def count(self) -> int:
        """How many tasks are growing here."""
        return len(self._jobs.busy)

    async def _grow(self, task: GrowingTask, incarnation: UUID) -> None:
        broken = 0
        while True:
            try:
                await self._add(task, incarnation)
                return
            except Stale:
                # It was ended, or another sees to it.
                return
            except Transient as error:
                _log.warning("growth.again", extra={"task_id": str(task.task_id), "error": error.message})
                broken += error.code == PARSER_BROKE
                failure: Exception = Bug("PARSER_FAILED", error.message)
            except Exception as error:  # noqa: BLE001 - what breaks us must end this growth, and nothing else
                if not isinstance(error, RayloomError):
                    _log.exception("growth.failed", extra={"task_id": str(task.task_id)})
                broken, failure = BROKEN_MAX, error
            if broken >= BROKEN_MAX:
                await self._give_up(task, incarnation, failure)
                return
            await asyncio.sleep(AGAIN_S)

    async def _add(self, task: GrowingTask, incarnation: UUID) -> None:
        subtasks = await growth.subtasks_so_far(self._engine, task.task_id, output_chars=OUTPUT_CHARS)
        reached = tuple(_reached(each) for each in subtasks)
        scope = scope_of(task.options)
        request = PlanRequest(
            task_id=str(task.task_id), prompt=task.prompt, context=task.context, tools=usable(self.tools, scope)
        )
        blocked = [each for each in reached if each.status == "BLOCKED" and not each.is_done]
        planned = await self._parser.replan(
            ReplanRequest(request=request, plan=task.plan, reached=reached, reason=_reason(blocked))
        )
        known = [str(each["id"]) for each in growth.plan_so_far(task)]
        done = frozenset(each.key for each in reached if each.is_done)
        verified = await asyncio.to_thread(self._verify, planned, task, done)
        await self._tell(task, planned.notes, planned.source)
        if verified is None:
            await self._stop(task, incarnation)
            return
        committed = await growth.extend_plan(
            self._engine, self._blobs, task.task_id, verified, known=known, incarnation=incarnation,
            meta=_meta(task, planned, added=[each.spec.id for each in verified.subtasks[len(known) :]]),
            is_last=True, goes_around=True,
        )  # fmt: skip
        await self._tell_others(committed)

    def _verify(self, planned: Planned, task: GrowingTask, done: frozenset[str]) -> VerifiedPlan | None:
        """What is there with what is added; None where nothing is. Raises InvalidPlan."""
        added: Json = planned.plan.get("subtasks")
        if not added or not isinstance(added, list):
            return None
        before = growth.plan_so_far(task)
        whole: JsonObject = {"subtasks": [*before, *added]}
        scope, known = scope_of(task.options), frozenset(str(each["id"]) for each in before)
        return verify(
            parse_plan(whole),
            tools=self.tools.views(),
            nodes=self.nodes,
            allow=scope.allow,
            deny=scope.deny,
            approval_levels=self._levels,
            done=known,
            unusable=known - done,
        )

    async def _give_up(self, task: GrowingTask, incarnation: UUID, error: Exception) -> None:
        why = error.message if isinstance(error, RayloomError) else type(error).__name__
        await self._tell(task, (f"no other plan could be made: {why}",), "model", level="WARNING")
        await self._stop(task, incarnation)

    async def _stop(self, task: GrowingTask, incarnation: UUID) -> None:
        await self._tell_others(await growth.end_growth(self._engine, task.task_id, incarnation, spent=True))

    async def _tell_others(self, committed: Committed) -> None:
        await self._backlog.add(committed.queued, tasks=committed.touched)
        if committed.closed:
            self._on_closed()

    async def _tell(self, task: GrowingTask, notes: tuple[str, ...], source: str, *, level: str = "INFO") -> None:
        at = datetime.now(UTC)
        lines = [
            LogLine(at=at, task_id=str(task.task_id), message=note, level=level, fields={"source": source})
            for note in notes
        ]
        await append(self._engine, lines)


def _reached(subtask: Grown) -> Reached:
    error = subtask.error or {}
    said = f"{error.get('code')}: {error.get('message')}" if error else ""
    return Reached(
        key=subtask.key,
        status=subtask.status,
        is_done=subtask.is_done,
        output=subtask.output,
        error=said[:OUTPUT_CHARS],
    )


def _reason(blocked: list[Reached]) -> str:
    if not blocked:
        return "what has come of the plan so far is not enough"
    return "BLOCKED: " + "; ".join(f"{each.key} ({each.error})" for each in blocked[:10])


def _meta(task: GrowingTask, planned: Planned, *, added: list[str]) -> JsonObject:
    """What is written down of a growth: one more version of the plan."""
    versions: Json = task.meta.get("versions")
    earlier: list[Json] = list(versions) if isinstance(versions, list) else []
    this: JsonObject = {"source": planned.source, "added": list[Json](added), "notes": list[Json](planned.notes)}
    return {"versions": [*earlier, this], "joiner": planned.joiner or None}
