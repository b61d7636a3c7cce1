"""From a prompt to a plan in the database: ask the parser, verify what it says, store it, or say why not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.dag.errors import Bug, ErrorInfo, InvalidPlan, RayloomError, Stale, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.plan import parse_plan
from rayloom.dag.ports import PARSER_BROKE, ParserPort, Planned, PlanRequest, ToolSnapshot
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verify import VerifiedPlan, verify
from rayloom.db import incarnations, task_moves
from rayloom.db.log_lines import append
from rayloom.db.submit import accept_plan
from rayloom.db.task_moves import TaskToSplit

_log = logging.getLogger(__name__)

AT_ONCE = 8
AGAIN_S = 1.0
BROKEN_MAX = 3


class Splitting:
    """The tasks that this incarnation is splitting. They are rows; losing this object loses nothing."""

    def __init__(
        self, engine: AsyncEngine, backlog: Backlog, parser: ParserPort, *, on_room: Callable[[], None]
    ) -> None:
        self._engine, self._backlog, self._parser, self._on_room = engine, backlog, parser, on_room
        self._busy: dict[asyncio.Task[None], UUID] = {}
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
        room = AT_ONCE - len(self._busy)
        if room <= 0:
            return
        dead = await incarnations.dead_with_leases(self._engine)
        busy = tuple(self._busy.values())
        taken = await task_moves.claim_tasks(self._engine, incarnation=incarnation, dead=dead, limit=room, busy=busy)
        for task in taken:
            job = asyncio.get_running_loop().create_task(self._split(task, incarnation))
            self._busy[job] = task.task_id
            job.add_done_callback(self._done)

    def _done(self, job: asyncio.Task[None]) -> None:
        self._busy.pop(job, None)
        self._on_room()

    async def close(self) -> None:
        """Stop; what was being split is taken over by the next incarnation."""
        for job in self._busy:
            job.cancel()
        if self._busy:
            await asyncio.wait(self._busy)

    @property
    def count(self) -> int:
        """How many tasks are being split."""
        return len(self._busy)

    async def _split(self, task: TaskToSplit, incarnation: UUID) -> None:
        broken: list[Exception] = []
        while True:
            try:
                if len(broken) >= BROKEN_MAX:
                    await self._fail(task, incarnation, broken[-1])
                    return
                # What was with the parser when it broke goes alone from then on: the one that breaks it shall not
                # take the others with it.
                async with self._suspected if broken else nullcontext():
                    await self._try(task, incarnation)
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

    async def _try(self, task: TaskToSplit, incarnation: UUID) -> None:
        await self._backlog.add((), tasks=[str(task.task_id)])
        try:
            planned = await self._parser.plan(
                PlanRequest(
                    task_id=str(task.task_id),
                    prompt=task.prompt,
                    context=task.context,
                    tools=_usable(self.tools, task),
                )
            )
            verified = await asyncio.to_thread(self._verify, planned, task)
        except Transient:
            raise
        except RayloomError as error:
            await self._fail(task, incarnation, error)
            return
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
        queued = await accept_plan(self._engine, task.task_id, verified, meta=meta, incarnation=incarnation)
        await self._backlog.add(queued, tasks=[str(task.task_id)])

    def _verify(self, planned: Planned, task: TaskToSplit) -> VerifiedPlan:
        allow, deny = _rules(task)
        return verify(parse_plan(planned.plan), tools=self.tools.views(), nodes=self.nodes, allow=allow, deny=deny)

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


def _usable(snapshot: ToolSnapshot, task: TaskToSplit) -> dict[str, ToolView]:
    allow, deny = _rules(task)
    return {
        name: view
        for name, view in snapshot.views().items()
        if view.is_active
        and any(fnmatchcase(name, glob) for glob in allow)
        and not any(fnmatchcase(name, glob) for glob in deny)
    }


def _rules(task: TaskToSplit) -> tuple[list[str], list[str]]:
    """What the task allows and denies: globs of tool names."""
    rules = task.options.get("tools")
    allow, deny = (rules.get("allow"), rules.get("deny")) if isinstance(rules, dict) else (None, None)
    return (
        [str(glob) for glob in allow] if isinstance(allow, list) else ["*"],
        [str(glob) for glob in deny] if isinstance(deny, list) else [],
    )
