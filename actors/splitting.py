"""From a prompt to a plan in the database: ask the parser, verify what it says, store it, or say why not."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.beginning import Beginning
from rayloom.actors.jobs import ENDS, Jobs
from rayloom.actors.judge import Judge
from rayloom.actors.tries import Tries
from rayloom.dag.decision import QUOTA_EXCEEDED
from rayloom.dag.errors import Bug, ErrorInfo, InvalidPlan, RayloomError, Refused, Stale, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.planned import Planned
from rayloom.dag.planning.beginning import held_back, joined
from rayloom.dag.ports import PARSER_BROKE
from rayloom.dag.replan import PlannerPort
from rayloom.dag.tried import Kept, Tried
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db import growth, incarnations, task_moves
from rayloom.db.blobs import BlobStore
from rayloom.db.log_lines import append_if_taken
from rayloom.db.submit import accept_plan
from rayloom.db.task_moves import TaskToSplit
from rayloom.db.usage import tool_stats

_log = logging.getLogger(__name__)

AT_ONCE = 8
AGAIN_S = 1.0
AGAIN_MAX_S = 30.0
BROKEN_MAX = 3
QUOTA_AGAIN_S = 10.0
"""A limit may be raised at any moment, and to ask whether it was costs nothing."""
AWAY_MAX_S = 3600.0
"""How long a model that does not answer is waited for; a quota is waited for as long as the task may live."""
WAITING_MAX = 10_000
"""How many tasks may wait for a model or a quota beside those that are being split."""
WAITING_OF_USER_MAX = 200
"""How many of one user may: with a quota that is spent, all that somebody submits waits, and others' shall not."""
WAITED_FOR = ("MODEL_", "QUOTA_")
"""How the codes begin of what nobody but a model, or who sets its limits, can end."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A plan that may be stored, and how it was made."""

    plan: VerifiedPlan
    meta: JsonObject
    hold: str
    """Why it must not start before somebody approves; empty where it may."""
    replans: int
    dropped: tuple[str, ...]
    """What has begun, and is no part of it."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """That there is no plan: why, and what was tried for one. ``goes_on``: who retries the task goes on from that."""

    error: BaseException
    tried: Tried
    goes_on: bool = False


class Splitting:
    """The tasks that this incarnation is splitting. They are rows; losing this object loses nothing.

    ``on_closed`` is told when a task has ended as soon as its plan was whole. ``replans``: how often what a model
    planned may grow.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        parser: PlannerPort,
        judge: Judge,
        *,
        on_room: Callable[[], None],
        on_closed: Callable[[], None] = lambda: None,
        replans: int = 0,
    ) -> None:
        self._engine, self._blobs = engine, blobs
        self._backlog, self._parser = backlog, parser
        self._judge, self._replans, self._on_closed = judge, replans, on_closed
        # What waits for a model keeps no other prompt from being split, up to a point.
        self._jobs = Jobs(at_once=AT_ONCE, waiting_max=WAITING_MAX, on_room=on_room)
        self._suspected = asyncio.Lock()
        self._users: dict[UUID, UUID] = {}

    async def turn(self, incarnation: UUID) -> None:
        """Take as many tasks as there is room for, once tools and nodes are known."""
        if not self._judge.is_ready:
            return
        await self._drop_ended(incarnation)
        room = self._jobs.room
        if room <= 0:
            return
        dead = await incarnations.dead_with_leases(self._engine)
        busy = self._jobs.busy
        begun = await growth.claim_growths(
            self._engine, incarnation=incarnation, dead=dead, limit=room, busy=busy, partial=True
        )
        room -= len(begun)
        new = await task_moves.claim_tasks(
            self._engine, incarnation=incarnation, dead=dead, limit=room, busy=busy, full=self._full()
        )
        taken = [*(each.to_split() for each in begun), *new]
        for task in taken:
            self._users[task.task_id] = task.user_id
            self._jobs.start(task.task_id, self._split(task, incarnation))

    async def _drop_ended(self, incarnation: UUID) -> None:
        """Stop planning what was cancelled, or is overdue, meanwhile: a model's answer may take minutes."""
        if not self._judge.with_models or not self._jobs.busy:
            return
        self._jobs.drop(await task_moves.moved_on(self._engine, self._jobs.busy, incarnation=incarnation))

    def _full(self) -> list[UUID]:
        """The users of whom enough prompts wait for a model or a quota."""
        self._users = {task_id: self._users[task_id] for task_id in self._jobs.busy}
        counts = Counter(self._users[task_id] for task_id in self._jobs.waiting)
        return [user_id for user_id, count in counts.items() if count >= WAITING_OF_USER_MAX]

    async def close(self) -> None:
        """Stop; what was being split is taken over by the next incarnation."""
        await self._jobs.close()

    @property
    def count(self) -> int:
        """How many tasks are being split."""
        return len(self._jobs.busy)

    async def _split(self, task: TaskToSplit, incarnation: UUID) -> None:
        broken: list[BaseException] = []
        away = Away()
        beginning = Beginning(self._engine, self._blobs, self._backlog, self._judge, task, incarnation)
        made: _Made | _Failed | None = None
        tries = Tries(self._engine, task.task_id, incarnation, task.kept)
        while True:
            if len(broken) >= BROKEN_MAX:
                made = _Failed(broken[-1], tries.tried)
            try:
                # What was with the parser when it broke goes alone from then on: the one that breaks it shall not
                # take the others with it.
                if made is None:
                    async with self._suspected if broken else nullcontext():
                        made = await self._plan(task, beginning, tries)
                # What came of it is kept, be it a plan or none: only to write it down is tried again.
                # What is stored goes to the queue, though by then it is split no longer.
                self._jobs.settle(task.task_id)
                if isinstance(made, _Failed):
                    await self._fail(task, incarnation, made, tries)
                else:
                    await self._store(task, made, incarnation, beginning)
                return
            except Transient as error:
                _log.warning("split.again", extra={"task_id": str(task.task_id), "error": error.message})
                # What is paid for is gone on from. A parser that broke says nothing of it.
                await tries.heard(error)
                if error.code.startswith(WAITED_FOR):
                    pause_s = away.pause_s(error, asyncio.get_running_loop().time())
                    if pause_s is None:
                        made = _Failed(error, tries.tried, goes_on=True)
                        continue
                    await self._wait(task, error, pause_s, is_told=away.is_to_be_told)
                    continue
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
            except ENDS:
                raise
            # A panic of native code is no Exception.
            except BaseException as error:  # noqa: BLE001 - a plan that breaks us must end its own task, and no other
                _log.exception("split.failed", extra={"task_id": str(task.task_id)})
                broken.append(error)
            await asyncio.sleep(AGAIN_S)

    async def _wait(self, task: TaskToSplit, error: Transient, pause_s: float, *, is_told: bool) -> None:
        """Wait for a model or a quota. Others are split meanwhile. ``is_told``: its log says so."""
        if is_told:
            said = f"not planned yet: {error.message}; tried again in {pause_s:.0f} s"
            line = LogLine(at=datetime.now(UTC), task_id=str(task.task_id), message=said)
            await append_if_taken(self._engine, [line])
        await self._jobs.pause(task.task_id, pause_s)

    async def _plan(self, task: TaskToSplit, beginning: Beginning, tries: Tries) -> _Made | _Failed:
        """What the parser and the rules make of it."""
        await self._backlog.add((), tasks=[str(task.task_id)])
        planned: Planned | None = None
        try:
            request = self._judge.request(
                task_id=task.task_id, user_id=task.user_id, key_id=task.key_id, prompt=task.prompt,
                context=task.context, options=task.options, p50_s=await self._p50_s(), begun=beginning.begun,
            )  # fmt: skip
            request = replace(request, tried=tries.tried, begun=beginning.usable)
            planned, begun = await beginning.planned(self._parser, request), beginning.begun
            whole = joined(planned.plan, begun, beginning.lost)
            planned = replace(planned, joiner=whole.renamed.get(planned.joiner, planned.joiner))
            plan = held_back(whole.plan, begun) if begun and planned.over_budget else whole.plan
            verified = await asyncio.to_thread(self._judge.verify, plan, task.options, done=beginning.ids)
        except (Transient, Stale):
            raise
        except RayloomError as error:
            tried = tries.tried if planned is None else Tried(notes=planned.notes, calls=planned.calls)
            return _Failed(error, error.tried or tried, goes_on=isinstance(error, Refused))
        hold = "over budget: " + "; ".join(planned.over_budget) if planned.over_budget else ""
        notes = (*planned.notes, *whole.notes, *((f"{hold}: the rest waits for approval",) if begun and hold else ()))
        # They are with the plan, too: a model is not asked again for a line of the log.
        await tries.tell(notes, planned.calls, planned.source)
        # What its author laid out is not second-guessed; what a model made may be.
        replans = self._replans if planned.source == "model" else 0
        return _Made(verified, planned.meta(), hold, replans, whole.dropped)

    async def _p50_s(self) -> dict[str, float]:
        """What the tools took lately; nothing where nobody estimates."""
        if not self._judge.with_models:
            return {}
        stats = await tool_stats(self._engine)
        return {name: each.p50_ms / 1000 for name, each in stats.items() if each.p50_ms is not None}

    async def _store(self, task: TaskToSplit, made: _Made, incarnation: UUID, beginning: Beginning) -> None:
        if beginning.begun:
            # What waits for approval now are its first subtasks; nor does it grow then.
            replans = 0 if made.hold else made.replans
            finished = await beginning.finish(made.plan, meta=made.meta, replans=replans, dropped=made.dropped)
            if finished.closed:
                self._on_closed()
            return
        queued = await accept_plan(
            self._engine,
            self._blobs,
            task.task_id,
            made.plan,
            meta=made.meta,
            incarnation=incarnation,
            hold=made.hold,
            replans=made.replans,
        )
        await self._backlog.add(queued, tasks=[str(task.task_id)])

    async def _fail(self, task: TaskToSplit, incarnation: UUID, failed: _Failed, tries: Tries) -> None:
        """End a task that there is no plan for. Its record tells all the same what was tried for one."""
        tried, info = failed.tried, ErrorInfo.from_exception(failed.error)
        kept = Kept(tried=tried, told=tried).meta() if failed.goes_on else {}
        if isinstance(failed.error, InvalidPlan):
            info = ErrorInfo(
                code="PLAN_REFUSED", error_class="user", message=f"the plan of this prompt is refused: {info.message}",
                retryable=False,
            )  # fmt: skip
        # Another may have taken the task over, and be running it by now: then what we found is of no interest.
        await task_moves.end_task(
            self._engine, task.task_id, status="FAILED", error=info, reason=info.message, splitter=incarnation,
            meta=tried.meta() | kept, lines=tries.lines(tried.notes, tried.calls),
        )  # fmt: skip
        await self._backlog.add((), tasks=[str(task.task_id)])


@dataclass(slots=True)
class Away:
    """Since when a task's models are away, and how often they were asked."""

    since: float | None = None
    count: int = 0

    @property
    def is_to_be_told(self) -> bool:
        """Whether the log says so this time: the first time, and ever less often."""
        return self.count.bit_count() == 1

    def pause_s(self, error: Transient, now: float) -> float | None:
        """How long to wait before they are asked again; None where that has been long enough."""
        self.since = now if self.since is None else self.since
        if now - self.since > AWAY_MAX_S and not error.code.startswith("QUOTA_"):
            return None
        self.count += 1
        pause_s: float = min(AGAIN_MAX_S, AGAIN_S * 2.0 ** min(self.count, 10))
        pause_s = max(pause_s, min(error.retry_after_s or 0.0, AWAY_MAX_S))
        return min(pause_s, QUOTA_AGAIN_S) if error.code == QUOTA_EXCEEDED else pause_s
