"""From queued to handed over: what has room, best first, within its user's limits, claimed in one statement."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from uuid import UUID

from rayloom.actors.backlog import KNOWN_SHAPES, Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.flight import Flight, never_started, turning, unreadable, unschedulable
from rayloom.actors.passing import Passing
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import Transient
from rayloom.dag.ports import AdmissionPort, Ask, Finished, Waiting
from rayloom.dag.resources import ResourceShape
from rayloom.dag.window import Window
from rayloom.db import attempts, incarnations, leases
from rayloom.db.attempts import Claimed
from rayloom.db.engine import Line
from rayloom.db.queue import Queued

_log = logging.getLogger(__name__)

ASK_AGAIN_S = 0.5
GIVE_UP_S = 60.0
"""How long nothing could run a shape before what waits with it fails."""


class Dispatch:
    """The starting of attempts."""

    def __init__(
        self,
        line: Line,
        backlog: Backlog,
        commits: Commits,
        flight: Flight,
        tokens: AdmissionPort,
        passing: Passing,
        settings: EngineSettings,
    ) -> None:
        self._line, self._backlog, self._commits, self._flight = line, backlog, commits, flight
        self._tokens, self._passing, self._settings = tokens, passing, settings
        self.window = Window()
        self.incarnation: UUID | None = None
        self._known: frozenset[str] = frozenset()
        self._hopeless_since: dict[ResourceShape, float] = {}
        self._given_up: frozenset[ResourceShape] = frozenset()
        self._deep = False

    async def turn(self) -> tuple[Claimed, ...]:
        """Start what there is room for, at most one batch.

        Raises Transient, with nothing lost, when something is away.
        """
        if self.incarnation is None:
            return ()
        try:
            return await self._turn()
        finally:
            # One that has ended meanwhile is heard when that is written down.
            self._passing.settle(lambda id_: id_ in self._flight.attempts or id_ in self._commits)

    async def _turn(self) -> tuple[Claimed, ...]:
        popped = await self._backlog.pop(self._room())
        # Each shape has its room; what is claimed in one statement is bounded over all of them.
        items, back = popped[: self._settings.batch_max], list(popped[self._settings.batch_max :])
        if any(shape not in self._known for shape in self._backlog.waiting):
            self._backlog.dirty = True
        if self._given_up:
            items = await self._without_hopeless(items, back)
        through = await self._through(items, back)
        taken: list[tuple[Queued, bool]] = []
        parked = len(through) < len(items)
        for item in through:
            if item.sub_task_id in self._flight.attempts:
                # An echo of the sweep: its lease is ours already. Redis has lost it by now, PostgreSQL shows it again.
                self._backlog.dirty |= not self._backlog.redis_away
                continue
            if self._backlog.parked.joins(item):
                parked = True
                continue
            running = self.window.take(self._backlog.shape(item.shape))
            if running is None:
                back.append(item)
            else:
                taken.append((item, running))
        # What is behind them may well start. As long as none of it is found, look at more than there is room for.
        self._backlog.dirty |= parked
        self._deep = parked and not taken
        if back:
            await self._backlog.put_back(back)
        if not taken and not self._commits.finished:
            return ()
        return await self._start(taken)

    async def _through(self, items: tuple[Queued, ...], back: Sequence[Queued]) -> list[Queued]:
        """Without those whose tools' breakers are not closed. Raises Transient, with nothing lost."""
        try:
            return await self._passing.through(items)
        except BaseException:
            for item in (*items, *back):
                if item.sub_task_id not in self._backlog.halted:
                    self._backlog.hold(item, ASK_AGAIN_S)
            raise

    async def _without_hopeless(self, items: tuple[Queued, ...], back: Sequence[Queued]) -> tuple[Queued, ...]:
        """Fail those of a shape that was given up; answers the others. Raises Transient, with nothing lost."""
        # Another look at the cluster may change it meanwhile.
        given_up = self._given_up
        hopeless = [item for item in items if self._backlog.shape(item.shape) in given_up]
        if hopeless:
            try:
                await self._give_up(hopeless)
            except BaseException:
                for item in (*items, *back):
                    self._backlog.hold(item, ASK_AGAIN_S)
                raise
        return tuple(item for item in items if self._backlog.shape(item.shape) not in given_up)

    async def _give_up(self, items: Sequence[Queued]) -> None:
        """Fail what no node can run, instead of waiting for ever: its plan was accepted when there were other nodes."""
        assert self.incarnation is not None
        asked = [(item.sub_task_id, False) for item in items]
        claimed = await attempts.claim(self._line, asked, incarnation=self.incarnation)
        for one in claimed:
            shape = self._backlog.shape(one.shape)
            _log.warning("attempt.unschedulable", extra={"sub_task_id": one.sub_task_id, "shape": one.shape})
            self._commits.add(never_started(one, shape), unschedulable(shape))
        if attempts.may_have_left(claimed):
            won = {one.sub_task_id for one in claimed}
            await self._backlog.add([item for item in items if item.sub_task_id not in won])

    def note_hopeless(self) -> None:
        """Give a shape up once no node could have run it for some time: the cluster may just be coming up.

        To be called whenever the cluster was looked at. What Ray holds of such a shape would stay there for ever: it is
        stopped, and fails.
        """
        now, window = monotonic(), self.window
        shapes = (
            {self._backlog.shape(key) for key in self._backlog.waiting} | window.demand.keys() | window.running.keys()
        )
        # Those noted before may be on their way from one place to another.
        if len(self._hopeless_since) < KNOWN_SHAPES:
            shapes |= self._hopeless_since.keys()
        self._hopeless_since = {
            shape: self._hopeless_since.get(shape, now) for shape in shapes if window.is_hopeless(shape)
        }
        self._given_up = frozenset(shape for shape, since in self._hopeless_since.items() if now - since > GIVE_UP_S)
        if self._given_up:
            for flying in self._flight:
                if flying.shape in self._given_up:
                    flying.hopeless = True
                    self._flight.stop(flying.claimed.sub_task_id)

    def waiting(self, sub_task_id: str, user_id: str, shape_key: str) -> Waiting:
        """What is known of a queued subtask, and of why it was not started yet."""
        shape, window = self._backlog.shape(shape_key), self.window
        limit, limit_in_s = self._backlog.parked.limit_of(sub_task_id, user_id) or (None, None)
        since = self._hopeless_since.get(shape)
        return Waiting(
            handed_over=sub_task_id in self._flight.attempts,
            limit=limit,
            limit_in_s=limit_in_s,
            is_held=self._backlog.is_held(sub_task_id),
            nodes=len(window.nodes),
            room=window.room(shape),
            fits=not window.is_hopeless(shape),
            gives_up_in_s=None if since is None else max(GIVE_UP_S - (monotonic() - since), 0.0),
        )

    def _room(self) -> dict[str, int]:
        self._known = frozenset(self._backlog.waiting)
        return {key: self._most(key) for key in self._known}

    def _most(self, key: str) -> int:
        """How many of a shape to look at."""
        most, shape = self._settings.batch_max, self._backlog.shape(key)
        capacity = self.window.capacity(shape)
        if shape in self._given_up or (self._deep and capacity):
            return most
        return min(capacity, most)

    async def _start(self, taken: Sequence[tuple[Queued, bool]]) -> tuple[Claimed, ...]:
        admitted = await self._admit(taken)
        claimed: tuple[Claimed, ...] = ()
        # While the controller was asked, this life may have come to its end.
        incarnation = self.incarnation
        try:
            if admitted and incarnation is not None:
                asked = [(item.sub_task_id, running) for item, running in admitted]
                claimed = await attempts.claim(self._line, asked, incarnation=incarnation)
        except BaseException:
            for item, _ in admitted:
                self._forget(item)
                self._backlog.hold(item, ASK_AGAIN_S)
            raise
        won = {one.sub_task_id for one in claimed}
        missing = [item for item, _ in admitted if item.sub_task_id not in won]
        for item in missing:
            # Somebody was faster, or it was cancelled: it is not ours to start.
            self._forget(item)
        if missing and (won or await self._lives()):
            # They may have hidden others.
            self._backlog.dirty = True
        surplus = self._surplus(claimed)
        for one in claimed:
            shape = self._backlog.shape(one.shape)
            if one.sub_task_id in surplus:
                continue
            if fallback := self._passing.turns_to(one.sub_task_id):
                self.window.give_back(shape)
                self._commits.add(never_started(one, shape, turns=True), turning(one.tool, fallback))
            elif one.unreadable:
                self.window.give_back(shape)
                self._commits.add(never_started(one, shape), unreadable(one.unreadable))
            else:
                stand_in, is_probe = self._passing.stand_in(one.sub_task_id), self._passing.is_probe(one.sub_task_id)
                version = self._passing.tools.version
                self._flight.start(one, shape, registry_version=version, stand_in=stand_in, is_probe=is_probe)
        # While Ray has more than it can run, ends may be told in larger lots.
        self._flight.lane.can_spare(sum(self.window.running.values()))
        if missing and attempts.may_have_left(claimed):
            # Their inputs may have been too much for one claim.
            await self._backlog.add(missing)
        if surplus and incarnation is not None:
            items = [item for item, _ in admitted if item.sub_task_id in surplus]
            await self._unclaim(items, tuple(surplus.items()), incarnation)
        return claimed

    async def _lives(self) -> bool:
        """Whether it is worth while to go on, when nothing at all was won: a life that was ended wins nothing more."""
        return self.incarnation is not None and await incarnations.lives(self._line, self.incarnation)

    async def _unclaim(self, items: Sequence[Queued], claims: Sequence[tuple[str, int]], incarnation: UUID) -> None:
        """Take claims back as if they had not been made. Raises Transient; what is claimed still the reaper finds."""
        for item in items:
            self._forget(item)
        # Before it is done: what the reaper sees from now on may be another claim of the same number.
        self._flight.unclaimed.update(claims)
        try:
            free = await leases.unclaim(self._line, claims, incarnation=incarnation)
        except BaseException:
            # Not told again: if the first was heard late, after another claim, it would take back that one.
            for item in items:
                self._backlog.hold(item, ASK_AGAIN_S)
            raise
        await self._backlog.add(free)

    def _surplus(self, claimed: Sequence[Claimed]) -> dict[str, int]:
        """What is not to be started yet after all, with its attempt: slow ones would keep more urgent ones waiting."""
        demand: dict[str, list[Claimed]] = {}
        for one in claimed:
            if not one.running:
                demand.setdefault(one.shape, []).append(one)
        return {
            ones[index].sub_task_id: ones[index].attempt
            for key, ones in demand.items()
            for index in self.window.surplus(self._backlog.shape(key), [one.use for one in ones])
        }

    async def _admit(self, taken: Sequence[tuple[Queued, bool]]) -> list[tuple[Queued, bool]]:
        """Ask the token controller for the whole batch in one call, and tell it what has finished since."""
        finished, self._commits.finished = self._commits.finished, []
        try:
            answers = await self._tokens.admit(
                [Ask(sub_task_id=item.sub_task_id, user_id=item.user_id) for item, _ in taken], finished
            )
        except BaseException as error:
            # Without the controller nobody knows the limits: nothing starts until it is back.
            self._commits.finished = finished + self._commits.finished
            for item, _ in taken:
                self.window.give_back(self._backlog.shape(item.shape))
                self._backlog.hold(item, ASK_AGAIN_S)
            if not isinstance(error, Transient):
                raise
            return []
        held = {answer.sub_task_id: answer for answer in answers}
        for item, _ in taken:
            answer = held.get(item.sub_task_id)
            if answer is not None:
                self.window.give_back(self._backlog.shape(item.shape))
                self._backlog.parked.add(item, answer)
        # Their room is for whoever is behind them.
        self._backlog.dirty |= bool(held)
        if self._backlog.parked:
            waits = {item.user_id for item, _ in taken if item.sub_task_id in held}
            for user_id in {item.user_id for item, _ in taken}.union(one.user_id for one in finished) - waits:
                self._backlog.parked.hasten(user_id)
        return [(item, running) for item, running in taken if item.sub_task_id not in held]

    def _forget(self, item: Queued) -> None:
        """It was given room and counted against its user's limits, and does not start."""
        self.window.give_back(self._backlog.shape(item.shape))
        self._commits.finished.append(Finished(sub_task_id=item.sub_task_id, user_id=item.user_id, started=False))
