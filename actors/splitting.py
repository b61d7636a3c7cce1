"""From a prompt to a plan in the database: ask the parser, verify what it says, store it, or say why not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.jobs import Jobs
from rayloom.dag.errors import Bug, ErrorInfo, InvalidPlan, RayloomError, Stale, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.parser_port import PARSER_BROKE, ParserPort, Planned, PlanRequest
from rayloom.dag.plan import parse_plan
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_scope import ToolScope
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.db import incarnations, task_moves
from rayloom.db.blobs import BlobStore
from rayloom.db.log_lines import append
from rayloom.db.submit import accept_plan
from rayloom.db.task_moves import TaskToSplit

_log = logging.getLogger(__name__)

AT_ONCE = 8
AGAIN_S = 1.0
BROKEN_MAX = 3


@dataclass(frozen=True, slots=True)
class _Made:
    """A plan that may be stored, and how it was made."""

    plan: VerifiedPlan
    meta: JsonObject
    replans: int


class Splitting:
    """The tasks that this incarnation is splitting. They are rows; losing this object loses nothing.

    ``levels``: permission levels of tools that want approval. ``replans``: how often what a model planned may grow.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        parser: ParserPort,
        *,
        on_room: Callable[[], None],
        levels: Collection[str] = (),
        replans: int = 0,
    ) -> None:
        self._engine, self._blobs = engine, blobs
        self._backlog, self._parser = backlog, parser
        self._levels, self._replans = levels, replans
        self._jobs = Jobs(at_once=AT_ONCE, on_room=on_room)
        self._suspected = asyncio.Lock()
        self.tools = ToolSnapshot(version=-1, tools={})
        self.nodes: tuple[NodeShape, ...] = ()

    async def turn(self, incarnation: UUID) -> None:
        """Take as many tasks as there is room for, once tools and nodes are known.

        Without tools every mention of one would be taken for plain text, and without nodes nobody offers what tools ask
        for by default.
        """
        if self.tools.version < 0 or not self.nodes:
            return
        if self._jobs.room <= 0:
            return
        dead = await incarnations.dead_with_leases(self._engine)
        taken = await task_moves.claim_tasks(
            self._engine, incarnation=incarnation, dead=dead, limit=self._jobs.room, busy=self._jobs.busy
        )
        for task in taken:
            self._jobs.start(task.task_id, self._split(task, incarnation))

    async def close(self) -> None:
        """Stop; what was being split is taken over by the next incarnation."""
        await self._jobs.close()

    @property
    def count(self) -> int:
        """How many tasks are being split."""
        return len(self._jobs.busy)

    async def _split(self, task: TaskToSplit, incarnation: UUID) -> None:
        broken: list[Exception] = []
        made: _Made | None = None
        while True:
            try:
                if len(broken) >= BROKEN_MAX:
                    await self._fail(task, incarnation, broken[-1])
                    return
                # What was with the parser when it broke goes alone from then on: the one that breaks it shall not
                # take the others with it.
                if made is None:
                    async with self._suspected if broken else nullcontext():
                        made = await self._plan(task, incarnation)
                # What the parser has made once is kept: only to store it is tried again.
                if made is not None:
                    await self._store(task, made, incarnation)
                return
            except Transient as error:
                _log.warning("split.again", extra={"task_id": str(task.task_id), "error": error.message})
                if error.code == PARSER_BROKE:
                    broken.append(
                        Bug(
                            "PARSER_FAILED",
                            f"{error.message}, {BROKEN_MAX} times: shorten the prompt, divide it, or give a plan",
                        )
                    )
            except Stale:
                # The task has moved on without us. Who refused has told so.
                return
            except Exception as error:  # noqa: BLE001 - a plan that breaks us must end its own task, and no other
                _log.exception("split.failed", extra={"task_id": str(task.task_id)})
                broken.append(error)
            await asyncio.sleep(AGAIN_S)

    async def _plan(self, task: TaskToSplit, incarnation: UUID) -> _Made | None:
        """What the parser and the rules make of it; None where the task has ended over that."""
        await self._backlog.add((), tasks=[str(task.task_id)])
        try:
            planned = await self._parser.plan(
                PlanRequest(
                    task_id=str(task.task_id),
                    prompt=task.prompt,
                    context=task.context,
                    tools=usable(self.tools, scope_of(task.options)),
                )
            )
            verified = await asyncio.to_thread(self._verify, planned, task)
        except Transient:
            raise
        except RayloomError as error:
            await self._fail(task, incarnation, error)
            return None
        at = datetime.now(UTC)
        lines = [
            LogLine(at=at, task_id=str(task.task_id), message=note, fields={"source": planned.source})
            for note in planned.notes
        ]
        await append(self._engine, lines)
        meta: JsonObject = {
            "source": planned.source,
            "language": planned.language,
            "notes": list(planned.notes),
            "parsed_s": planned.parsed_s,
            "split_s": planned.split_s,
        }
        if planned.joiner:
            meta["joiner"] = planned.joiner
        # What its author wrote down is not second-guessed; what a model made may be.
        return _Made(verified, meta, replans=self._replans if planned.source == "model" else 0)

    async def _store(self, task: TaskToSplit, made: _Made, incarnation: UUID) -> None:
        queued = await accept_plan(
            self._engine, self._blobs, task.task_id, made.plan, meta=made.meta, incarnation=incarnation,
            replans=made.replans,
        )  # fmt: skip
        await self._backlog.add(queued, tasks=[str(task.task_id)])

    def _verify(self, planned: Planned, task: TaskToSplit) -> VerifiedPlan:
        scope = scope_of(task.options)
        return verify(
            parse_plan(planned.plan),
            tools=self.tools.views(),
            nodes=self.nodes,
            allow=scope.allow,
            deny=scope.deny,
            approval_levels=self._levels,
        )

    async def _fail(self, task: TaskToSplit, incarnation: UUID, error: Exception) -> None:
        info = ErrorInfo.from_exception(error)
        if isinstance(error, InvalidPlan):
            info = ErrorInfo(
                code="PLAN_REFUSED", error_class="user", message=f"the plan of this prompt is refused: {info.message}",
                retryable=False,
            )  # fmt: skip
        # Another may have taken the task over, and be running it by now: then what we found is of no interest.
        await task_moves.end_task(
            self._engine, task.task_id, status="FAILED", error=info, reason=info.message, splitter=incarnation
        )
        await self._backlog.add((), tasks=[str(task.task_id)])


def scope_of(options: JsonObject) -> ToolScope:
    """Which tools a task may use, by its options."""
    return ToolScope.of(options.get("tools"))


def usable(snapshot: ToolSnapshot, scope: ToolScope) -> dict[str, ToolView]:
    """The tools that a plan within this scope may use."""
    return {
        name: view
        for name, view in snapshot.views().items()
        if view.is_active and scope.takes(name) and scope.admits(view.permission_level)
    }
