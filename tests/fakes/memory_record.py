"""The record of subtasks in memory, as far as claims and outcomes go; put in place of the statements by ``install``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from rayloom.dag.decision import Past
from rayloom.dag.errors import Transient
from rayloom.dag.resources import ResourceShape
from rayloom.dag.tool_scope import ALL_TOOLS, ToolScope
from rayloom.db import attempts, engine, history, incarnations, leases
from rayloom.db.attempts import Claimed, Committed, Ending
from rayloom.db.leases import NextCall
from rayloom.db.queue import Queued

SHAPE = '{"cpus":1.0,"custom":{},"gpus":0.0,"labels":{},"memory_bytes":0}'


@dataclass
class MemoryRecord:
    """``queued``: what may be claimed. ``moved_on``: the statuses of subtasks whose outcomes come too late.

    ``counted``: how often what is queued was counted; ``read``: how many rows of it. ``away``: nothing answers.
    ``unstorable``: outputs that it refuses. ``over``: the life that claims was ended. ``inputs``: those that are not
    empty; ``unreadable``: subtasks whose inputs it can't give. ``tools``: those that are not ``t``; ``fallbacks``: the
    tools of those that have not been turned to; ``scopes``: what tasks may use, where it is not all; ``asked_scopes``:
    of whom that was asked. ``past``: how earlier attempts ended; ``reshaped``: who was given another shape.
    """

    queued: dict[str, Queued] = field(default_factory=dict)
    attempt: dict[str, int] = field(default_factory=dict)
    running: dict[str, bool] = field(default_factory=dict)
    endings: list[Ending] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    known: dict[str, Queued] = field(default_factory=dict)
    unstorable: set[str] = field(default_factory=set)
    moved_on: dict[str, str] = field(default_factory=dict)
    counted: int = 0
    read: int = 0
    asked_scopes: list[str] = field(default_factory=list)
    away: bool = False
    over: bool = False
    read_only: bool = False
    deadly: set[str] = field(default_factory=set)
    inputs: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    tools: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, ToolScope] = field(default_factory=dict)
    past: dict[str, Past] = field(default_factory=dict)
    reshaped: dict[tuple[str, int], ResourceShape] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> MemoryRecord:
        """From now on the statements of the engine come here."""
        monkeypatch.setattr(attempts, "claim", self.claim)
        monkeypatch.setattr(attempts, "complete", self.complete)
        monkeypatch.setattr(attempts, "statuses", self.statuses)
        monkeypatch.setattr(engine, "takes_writes", self.takes_writes)
        monkeypatch.setattr(incarnations, "lives", self.lives)
        monkeypatch.setattr(leases, "release", self.release)
        monkeypatch.setattr(leases, "unclaim", self.unclaim)
        monkeypatch.setattr(leases, "queued_page", self.queued_page)
        monkeypatch.setattr(leases, "queued_counts", self.queued_counts)
        monkeypatch.setattr(leases, "calls_of", self.calls_of)
        monkeypatch.setattr(leases, "scopes_of", self.scopes_of)
        monkeypatch.setattr(history, "past", self.past_of)
        monkeypatch.setattr(history, "reshape", self.reshape)
        return self

    def add(self, *ids: str, user_id: str = "ann", shape: str = SHAPE) -> list[Queued]:
        """These have become QUEUED, in this order."""
        items = [Queued(id_, user_id, shape, float(len(self.attempt) + n)) for n, id_ in enumerate(ids)]
        self.queued |= {item.sub_task_id: item for item in items}
        self.known |= self.queued
        self.attempt |= dict.fromkeys(ids, 0)
        return items

    async def claim(self, _engine: Any, items: Sequence[tuple[str, bool]], *, incarnation: UUID) -> tuple[Claimed, ...]:
        """See `attempts.claim`."""
        self._answer()
        won: list[Claimed] = []
        if self.over:
            return ()
        for id_, running in items:
            if id_ not in self.queued or attempts.may_have_left(won):
                continue
            item = self.queued.pop(id_)
            self.attempt[id_] += 1
            self.running[id_] = running
            won.append(
                Claimed(
                    sub_task_id=id_,
                    task_id="task",
                    user_id=item.user_id,
                    key=id_,
                    tool=self.tools.get(id_, "t"),
                    task_type="TOOL",
                    attempt=self.attempt[id_],
                    retry_count=0,
                    max_retries=3,
                    timeout_s=60.0,
                    input=self.inputs.get(id_, "{}"),
                    referred=(),
                    shape=item.shape,
                    score=item.score,
                    running=running,
                    unreadable="it is too long" if id_ in self.unreadable else "",
                )
            )
        return tuple(won)

    async def lives(self, _source: Any, _incarnation: UUID) -> bool:
        """See `incarnations.lives`."""
        self._answer()
        return not self.over

    async def complete(self, _engine: Any, endings: Sequence[Ending]) -> Committed:
        """See `attempts.complete`."""
        self._answer()
        self.batches.append(len(endings))
        if self.read_only or any((one.outcome.output or "") in self.deadly for one in endings):
            raise Transient("DATABASE_UNAVAILABLE", "the database did not answer")
        refused = [one for one in endings if (one.outcome.output or "") in self.unstorable]
        taken = [one for one in endings if one not in refused]
        self.endings += taken
        accepted = {
            one.sub_task_id
            for one in taken
            if (self.running.get(one.sub_task_id) or one.outcome.is_from_worker or one.outcome.verdict == "failed")
            and one.sub_task_id not in self.moved_on
        }
        turned = [one.sub_task_id for one in taken if one.use_fallback and one.sub_task_id in self.fallbacks]
        self.tools |= {id_: self.fallbacks.pop(id_) for id_ in turned}
        again = {id_: self.known[id_] for id_ in turned}
        self.queued |= again
        waits = [one.retry_in_s for one in taken if one.retry_in_s is not None]
        return Committed(
            accepted=frozenset(accepted), queued=tuple(again.values()), touched=frozenset({"task"} if taken else ()),
            retry_in_s=min(waits, default=None), refused=tuple((one, "it can't be stored") for one in refused),
        )  # fmt: skip

    async def statuses(self, _engine: Any, ids: Sequence[str]) -> dict[str, str]:
        """See `attempts.statuses`; of those that have moved on."""
        self._answer()
        return {id_: self.moved_on[id_] for id_ in ids if id_ in self.moved_on}

    async def takes_writes(self, _source: Any) -> bool:
        """See `engine.takes_writes`."""
        return not (self.away or self.read_only)

    async def release(self, _engine: Any, given: Sequence[tuple[str, int]]) -> tuple[Queued, ...]:
        """See `leases.release`."""
        self._answer()
        self.released += [id_ for id_, _ in given]
        free = {id_: self.known.get(id_, Queued(id_, "ann", SHAPE, 0.0)) for id_, _ in given}
        self.queued |= free
        return tuple(free.values())

    async def unclaim(
        self, _engine: Any, claims: Sequence[tuple[str, int]], *, incarnation: UUID
    ) -> tuple[Queued, ...]:
        """See `leases.unclaim`."""
        self._answer()
        taken = [id_ for id_, attempt in claims if id_ not in self.queued and self.attempt[id_] == attempt]
        self.attempt |= {id_: self.attempt[id_] - 1 for id_ in taken}
        self.queued |= (free := {id_: self.known[id_] for id_ in taken})
        return tuple(free.values())

    async def queued_page(
        self,
        _engine: Any,
        *,
        after: Any,
        limit: int,
        shapes: Sequence[str] | None = None,
        but_of: Sequence[str] = (),
        but_with: Collection[NextCall] = (),
    ) -> tuple[Queued, ...]:
        """See `leases.queued_page`."""
        self._answer()
        seen = float("-inf") if after is None else after[0]
        found = [
            each
            for each in self.queued.values()
            if each.score > seen
            and (shapes is None or each.shape in shapes)
            and each.user_id not in but_of
            and self._next(each.sub_task_id) not in but_with
        ]
        page = tuple(sorted(found, key=lambda item: item.score)[:limit])
        self.read += len(page)
        return page

    async def queued_counts(self, _engine: Any) -> dict[str, int]:
        """See `leases.queued_counts`."""
        self._answer()
        self.counted += 1
        return dict(Counter(item.shape for item in self.queued.values()))

    async def calls_of(self, _source: Any, ids: Sequence[str]) -> dict[str, NextCall]:
        """See `leases.calls_of`."""
        self._answer()
        return {id_: self._next(id_) for id_ in ids if id_ in self.queued}

    async def scopes_of(self, _source: Any, ids: Sequence[str]) -> dict[str, ToolScope]:
        """See `leases.scopes_of`."""
        self._answer()
        self.asked_scopes += ids
        return {id_: self.scopes.get(id_, ALL_TOOLS) for id_ in ids}

    async def past_of(self, _source: Any, ids: Sequence[str]) -> dict[str, Past]:
        """See `history.past`."""
        self._answer()
        return {id_: self.past[id_] for id_ in ids if id_ in self.past}

    async def reshape(self, _source: Any, shapes: Mapping[tuple[str, int], ResourceShape]) -> int:
        """See `history.reshape`."""
        self._answer()
        self.reshaped |= shapes
        return len(shapes)

    def _next(self, id_: str) -> NextCall:
        return NextCall(self.tools.get(id_, "t"), self.fallbacks.get(id_, ""))

    def _answer(self) -> None:
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "the database did not answer")
