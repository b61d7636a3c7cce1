"""Which reads go to the replica: those that need not be the primary's, as long as it shows all that they must see.

Such a read first asks the primary how far it has written, and then the replica whether it has got so far; it waits a
moment for that, and else turns to the primary. So it sees all that was committed when it was asked for, whoever wrote
it, through whichever process, with no memory that could be lost and no clock. Whatever goes wrong on the replica, the
primary answers instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import Transient
from rayloom.db.engine import Timeouts
from rayloom.db.reader import ReadSource
from rayloom.db.replica_watch import FAILURES, ReplicaState, ReplicaWatch, cause_of, told_of, within
from rayloom.db.standby import Behind, NoStandby, StandbyRead, written_position

PATIENCE_S: Final = 0.1
"""So long a replica that is about to be there is waited for."""
REPLICA_TIMEOUTS: Final = Timeouts(connect_s=2.0, command_s=10.0, pool_s=1.0)
CLOSE_TIMEOUT_S: Final = 5.0

T = TypeVar("T")


class ReadSplit:
    """The reads of one process. Without a ``replica`` all go to the primary.

    ``counts``: reads by where they were answered, and why there: ``("replica", "")``, or ``("primary", reason)``, the
    reason being ``none`` (no replica is set), ``unused``, ``behind`` or ``failed``.
    """

    def __init__(self, primary: AsyncEngine, replica: AsyncEngine | None, *, max_lag_s: float) -> None:
        self._primary, self._replica, self._max_lag_s = primary, replica, max_lag_s
        self._watch: ReplicaWatch | None = None
        self._given_up: set[asyncio.Task[Any]] = set()
        self.counts: Counter[tuple[str, str]] = Counter()

    def start(self) -> None:
        """Begin to watch the replica; before that it is not used."""
        if self._replica is not None and self._watch is None:
            self._watch = ReplicaWatch(self._primary, self._replica, max_lag_s=self._max_lag_s)
            self._watch.start()

    async def stop(self) -> None:
        """Give every connection to the replica back."""
        if self._watch is not None:
            await self._watch.stop()
        if self._given_up:
            await asyncio.wait(self._given_up, timeout=CLOSE_TIMEOUT_S)
        if self._replica is not None:
            await within(CLOSE_TIMEOUT_S, self._replica.dispose())

    @property
    def state(self) -> ReplicaState | None:
        """How the replica is; None where there is none."""
        return None if self._watch is None else self._watch.state

    async def current(self, query: Callable[[ReadSource], Awaitable[T]]) -> T:
        """What ``query`` gives, with all in it that was committed when this was called; it may be asked twice.

        Raises what ``query`` raises on the primary, and Transient when the primary is away.
        """
        watch, replica = self._watch, self._replica
        if replica is None:
            return await self._by_primary(query, "none")
        if watch is None or not watch.is_used:
            return await self._by_primary(query, "unused")
        position = await written_position(self._primary)
        if position is None:
            return await self._by_primary(query, "unused")
        # One that was late a moment ago is asked, but not waited for.
        patience_s = PATIENCE_S if (watch.state.lag_s or 0.0) <= PATIENCE_S else 0.0
        source = StandbyRead(engine=replica, position=position, patience_s=patience_s)
        attempt = asyncio.ensure_future(query(source))
        either: set[asyncio.Future[Any]] = {attempt, watch.lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not attempt.done():
                self._give_up(attempt)
        if not attempt.done():
            return await self._by_primary(query, "failed")
        error = attempt.exception()
        if error is None:
            watch.succeeded()
            self.counts["replica", ""] += 1
            return attempt.result()
        if isinstance(error, Behind):
            return await self._by_primary(query, "behind")
        return await self._after_failure(query, watch, error)

    async def _after_failure(
        self, query: Callable[[ReadSource], Awaitable[T]], watch: ReplicaWatch, error: BaseException
    ) -> T:
        if isinstance(error, Transient):
            if not _concerns_one_read(error):
                watch.failed(told_of(error))
            return await self._by_primary(query, "failed")
        if isinstance(error, NoStandby):
            watch.failed("is no standby")
            return await self._by_primary(query, "failed")
        if not isinstance(error, FAILURES):
            raise error
        answer = await self._by_primary(query, "failed")
        # The same statement went well on the primary: it is the replica that is not as it should be.
        watch.failed(f"failed a read: {type(error).__name__}")
        return answer

    async def _by_primary(self, query: Callable[[ReadSource], Awaitable[T]], why: str) -> T:
        self.counts["primary", why] += 1
        return await query(self._primary)

    def _give_up(self, attempt: asyncio.Task[Any]) -> None:
        """Wait no longer. A connection to a silent server takes its time to close, and nobody should wait for that."""
        self._given_up.add(attempt)
        attempt.add_done_callback(self._forget)
        attempt.cancel()

    def _forget(self, attempt: asyncio.Task[Any]) -> None:
        self._given_up.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # nobody else asks


# A statement that stood in the way of the replay, or that took too long there.
_ONE_READ_STATES: Final = ("40", "57014")


def _concerns_one_read(error: Transient) -> bool:
    """Whether a failure says nothing of the next read: it may be tried on the replica again."""
    cause = cause_of(error)
    if isinstance(cause, PoolTimeout):
        return True  # all of its connections are in use
    return isinstance(cause, asyncpg.PostgresError) and (cause.sqlstate or "").startswith(_ONE_READ_STATES)
