"""Running tasks whose plans grow: ask the parser what to add, verify it with what is there, and store it, or let it be.

What a task has come to may ask for more (its joiner says so), or be in its way (a subtask is BLOCKED). What is done is
never done again: what is added may use it. A plan is asked for so often as its task has replans.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.jobs import ENDS, Jobs
from rayloom.actors.judge import Judge
from rayloom.actors.splitting import AGAIN_S, BROKEN_MAX, WAITED_FOR, WAITING_MAX, Away
from rayloom.actors.tries import Tries, planning_lines
from rayloom.dag.decision import BUDGET_EXCEEDED
from rayloom.dag.errors import ErrorInfo, RayloomError, Stale, Transient
from rayloom.dag.plan import subtasks_of
from rayloom.dag.planned import Planned
from rayloom.dag.planning.written import ids_of
from rayloom.dag.ports import PARSER_BROKE
from rayloom.dag.replan import PlannerPort, Reached, ReplanRequest
from rayloom.dag.tried import Tried, calls_meta
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db import growth, incarnations, retries, task_moves
from rayloom.db.attempts import Committed
from rayloom.db.blobs import BlobStore
from rayloom.db.growth import GrowingTask, Grown
from rayloom.db.log_lines import append_if_taken

_log = logging.getLogger(__name__)

AT_ONCE = 4
OUTPUT_CHARS = 2_000
"""So much of each output the parser is shown."""


@dataclass(frozen=True, slots=True)
class _More:
    """What the parser wants to add, and to which subtasks it is the answer; nothing where ``verified`` is None."""

    planned: Planned
    verified: VerifiedPlan | None
    blocked: frozenset[str]


@dataclass(slots=True)
class _GivenUp:
    """That nothing is added, and why. ``is_told``: the log tells so."""

    error: BaseException
    is_told: bool = False


class Growing:
    """The tasks whose growth this incarnation sees to. ``on_closed`` is told when one has ended by it."""

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        parser: PlannerPort,
        judge: Judge,
        *,
        on_room: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._engine, self._blobs, self._backlog, self._parser = engine, blobs, backlog, parser
        self._judge, self._on_closed = judge, on_closed
        self._jobs = Jobs(at_once=AT_ONCE, waiting_max=WAITING_MAX, on_room=on_room)

    async def turn(self, incarnation: UUID) -> None:
        """Take as many tasks as there is room for, once tools and nodes are known."""
        if not self._judge.is_ready:
            return
        if self._jobs.busy:
            # Ended meanwhile, by somebody or by their deadline: a model's answer may take minutes.
            self._jobs.drop(await task_moves.moved_on(self._engine, self._jobs.busy, incarnation=incarnation))
        room = self._jobs.room
        if room <= 0:
            return
        dead = await incarnations.dead_with_leases(self._engine)
        taken = await growth.claim_growths(
            self._engine, incarnation=incarnation, dead=dead, limit=room, busy=self._jobs.busy
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
        broken, away = 0, Away()
        more: _More | _GivenUp | None = None
        tries = Tries(self._engine, task.task_id, incarnation, task.kept)
        while True:
            pause_s, is_over = AGAIN_S, False
            try:
                # What came of it is kept, be it something or nothing: only to write it down is tried again.
                if more is None:
                    more = await self._asked(task, tries.tried)
                self._jobs.settle(task.task_id)
                if isinstance(more, _GivenUp):
                    await self._give_up(task, incarnation, more, tries)
                else:
                    await self._store(task, more, incarnation, tries)
                return
            except Stale:
                # It was ended, or another sees to it.
                return
            except Transient as error:
                _log.warning("growth.again", extra={"task_id": str(task.task_id), "error": error.message})
                broken += error.code == PARSER_BROKE
                await tries.heard(error)
                if error.code.startswith(WAITED_FOR):
                    wanted_s = away.pause_s(error, asyncio.get_running_loop().time())
                    is_over, pause_s = wanted_s is None, AGAIN_S if wanted_s is None else wanted_s
                if more is None and not is_over and away.is_to_be_told:
                    note = f"not planned on yet: {error.message}; tried again in {pause_s:.0f} s"
                    await append_if_taken(self._engine, planning_lines(task.task_id, (note,), ()))
                failure: BaseException = error
            except ENDS:
                raise
            # A panic of native code is no Exception.
            except BaseException as error:  # noqa: BLE001 - what breaks us must end this growth, and nothing else
                if not isinstance(error, RayloomError):
                    _log.exception("growth.failed", extra={"task_id": str(task.task_id)})
                is_over, failure = True, error
            if not isinstance(more, _GivenUp) and (is_over or broken >= BROKEN_MAX):
                more = _GivenUp(failure)
                continue
            await self._jobs.pause(task.task_id, pause_s)

    async def _asked(self, task: GrowingTask, tried: Tried) -> _More:
        """What the parser says, verified with what there is."""
        subtasks = await growth.subtasks_so_far(self._engine, task.task_id, output_chars=OUTPUT_CHARS)
        reached = tuple(_reached(each) for each in subtasks)
        request = self._judge.request(
            task_id=task.task_id, user_id=task.user_id, key_id=task.api_key_id, prompt=task.prompt,
            context=task.context, options=task.options, p50_s={},
        )  # fmt: skip
        blocked = tuple(each for each in reached if each.status == "BLOCKED" and not each.is_done)
        joiner = str(task.meta.get("joiner") or "")
        planned = await self._parser.replan(
            ReplanRequest(
                request=replace(request, tried=tried), plan=task.plan, reached=reached, joiner=joiner,
                reason=_reason(blocked, next((each for each in reached if each.key == joiner), None)),
            )
        )  # fmt: skip
        done = frozenset(each.key for each in reached if each.is_done)
        verified = await asyncio.to_thread(self._verify, planned, task, done)
        return _More(planned, verified, frozenset(each.key for each in blocked))

    async def _store(self, task: GrowingTask, more: _More, incarnation: UUID, tries: Tries) -> None:
        planned, verified = more.planned, more.verified
        known = ids_of(subtasks_of(task.plan))
        committed: Committed | None = None
        if verified is not None:
            try:
                committed = await growth.extend_plan(
                    self._engine, self._blobs, task.task_id, verified, known=known, incarnation=incarnation,
                    meta=_meta(task, planned, added=[each.spec.id for each in verified.subtasks[len(known) :]]),
                    is_last=True, goes_around=True, while_blocked=more.blocked,
                )  # fmt: skip
            except Stale as error:
                if error.code != growth.NOT_BLOCKED:
                    raise
        # What is committed by then is not committed again: nothing of what follows may be left out for a line.
        await tries.tell(planned.notes, planned.calls, planned.source)
        if committed is None:
            await self._stop(task, incarnation)
        else:
            await self._tell_others(committed)

    def _verify(self, planned: Planned, task: GrowingTask, done: frozenset[str]) -> VerifiedPlan | None:
        """What is there with what is added; None where nothing is. Raises InvalidPlan."""
        added: Json = planned.plan.get("subtasks")
        if not added or not isinstance(added, list):
            return None
        before = subtasks_of(task.plan)
        whole: JsonObject = {"subtasks": [*before, *added]}
        known = frozenset(ids_of(before))
        return self._judge.verify(whole, task.options, done=known, unusable=known - done)

    async def _give_up(self, task: GrowingTask, incarnation: UUID, given_up: _GivenUp, tries: Tries) -> None:
        error = given_up.error
        tried = (error.tried if isinstance(error, RayloomError) else None) or tries.tried
        if not given_up.is_told:
            why = error.message if isinstance(error, RayloomError) else type(error).__name__
            await tries.tell(tried.notes, tried.calls)
            line = planning_lines(task.task_id, (f"no other plan could be made: {why}",), (), level="WARNING")
            await append_if_taken(self._engine, line)
            given_up.is_told = True
        if isinstance(error, RayloomError) and error.code == BUDGET_EXCEEDED:
            # With a higher one it goes on from here.
            await tries.keep(tried)
            info = ErrorInfo.from_exception(error)
            await self._tell_others(await retries.refuse_growth(self._engine, task.task_id, incarnation, info))
        else:
            await self._stop(task, incarnation)

    async def _stop(self, task: GrowingTask, incarnation: UUID) -> None:
        await self._tell_others(await growth.end_growth(self._engine, task.task_id, incarnation, spent=True))

    async def _tell_others(self, committed: Committed) -> None:
        await self._backlog.add(committed.queued, tasks=committed.touched)
        if committed.closed:
            self._on_closed()


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


def _reason(blocked: Sequence[Reached], joiner: Reached | None) -> str:
    if not blocked:
        return f"the answer needs more: {joiner.output}" if joiner is not None else "the answer needs more"
    return "BLOCKED: " + "; ".join(f"{each.key} ({each.error})" for each in blocked[:10])


def _meta(task: GrowingTask, planned: Planned, *, added: list[str]) -> JsonObject:
    """What is written down of a growth: one more version of the plan."""
    versions: Json = task.meta.get("versions")
    earlier: list[Json] = list(versions) if isinstance(versions, list) else []
    this: JsonObject = {"source": planned.source, "added": list[Json](added), "notes": list[Json](planned.notes)}
    return {"versions": [*earlier, this | calls_meta(planned.calls)], "joiner": planned.joiner or None}
