"""Watches the replica, about once a second, and says whether it may be read from: one warning when it may no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import Transient
from rayloom.db.engine import DRIVER_ERRORS, Line, driver
from rayloom.db.replay_lag import Lag, ReplayLag

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
LOOK_TIMEOUT_S: Final = 2.0
HOLD_S: Final = 5.0
HOLD_MAX_S: Final = 60.0
RETURN_AT: Final = 0.5
"""A replica that was too late comes back when it is below this share of the limit: it does not come and go."""
FAILURES: Final = (Transient, SQLAlchemyError, *DRIVER_ERRORS, OSError)
"""What a server that is away, or not as it should be, raises."""

# A copy has the system identifier of its original, and the same number for each database.
_WHICH: Final = (
    "(SELECT system_identifier FROM pg_control_system()) AS system, "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) AS database"
)
_PRIMARY: Final = (
    "SELECT CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8 END AS written, "
    + _WHICH
)
_REPLICA: Final = (
    "SELECT pg_is_in_recovery() AS is_standby, (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8 AS replayed, " + _WHICH
)
# That the tables are there, and that this role may read them.
_READABLE: Final = (
    "SELECT users.id, users.name FROM tasks, sub_tasks, execution_logs, task_events, log_lines, schedulers, "
    "dead_letters, model_calls, limit_alerts, users LIMIT 0"
)

_UNSEEN: Final = "was not looked at yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """How the replica was at the last look. ``fault`` says why it is not read from; None: it is."""

    fault: str | None
    lag_s: float | None = None
    lag_bytes: int | None = None


class ReplicaWatch:
    """The watch of one process. ``lost`` is done as soon as the replica is not to be read from."""

    def __init__(self, primary: AsyncEngine, replica: AsyncEngine, *, max_lag_s: float) -> None:
        self._replica = replica
        self._primary_line, self._replica_line = Line(primary), Line(replica)
        self._max_lag_s = max_lag_s
        self._lag = ReplayLag()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._held_until = 0.0
        self._is_stale = False
        self.state = ReplicaState(fault=_UNSEEN)
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost.set_result(None)

    @property
    def is_used(self) -> bool:
        """Whether the replica may be read from."""
        return self.state.fault is None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Watch no more, and give the connections back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for line in (self._primary_line, self._replica_line):
            await within(LOOK_TIMEOUT_S, line.drop())

    def failed(self, fault: str) -> None:
        """A read failed: use the replica no more, until a later look finds it well; later each time."""
        if not self.is_used:
            return
        self._held_until = monotonic() + min(HOLD_MAX_S, HOLD_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        self._is_stale = True
        self._judge(ReplicaState(fault=fault, lag_s=self.state.lag_s, lag_bytes=self.state.lag_bytes))

    def succeeded(self) -> None:
        """A read went well."""
        self._failures = 0

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                # Whatever it is: who watches no more must not trust what it saw last.
                log.exception("replica.watch_failed")
                self._lose("could not be watched")
            await asyncio.sleep(EVERY_S)

    async def _look(self) -> None:
        was_stale = self._is_stale
        if was_stale:
            # It may have been made before the fault. Only a new connection tells whether one can be had.
            await within(LOOK_TIMEOUT_S, self._replica_line.drop())
        look = asyncio.create_task(self._ask_replica())
        try:
            done, _ = await asyncio.wait({look}, timeout=LOOK_TIMEOUT_S)
            if not done:
                # Said at once: a silent server may take its time until it can even be given up.
                self._lose("was silent")
            await asyncio.wait({look})
        finally:
            look.cancel()
            await asyncio.wait({look}, timeout=LOOK_TIMEOUT_S)
        error = look.exception()
        if error is not None:
            self._lose(told_of(error))
            return
        if not done:
            return
        if was_stale:
            # It lives: what else stood before the fault can be closed, and is not used any more.
            await within(LOOK_TIMEOUT_S, self._replica.dispose())
            self._is_stale = False
        await self._compare(look.result())

    async def _ask_replica(self) -> asyncpg.Record:
        async with driver(self._replica_line) as connection:
            row = await connection.fetchrow(_REPLICA, timeout=LOOK_TIMEOUT_S)
            await connection.execute(_READABLE, timeout=LOOK_TIMEOUT_S)
        assert row is not None
        return row

    async def _compare(self, replica: asyncpg.Record) -> None:
        # The primary is asked afterwards: no replica of its own can be ahead then.
        try:
            async with driver(self._primary_line) as connection:
                primary = await connection.fetchrow(_PRIMARY, timeout=LOOK_TIMEOUT_S)
        except FAILURES:
            return  # without it nothing is read at all
        if primary is None or primary["written"] is None:
            return
        now = monotonic()
        self._lag.note(now, primary["written"])
        fault = _unfit(primary, replica)
        if fault is not None:
            self._judge(ReplicaState(fault=fault))
            return
        lag = self._lag.of(now, replica["replayed"])
        fault = self._late(lag)
        if fault is None and now < self._held_until:
            fault = self.state.fault or "failed a moment ago"
        self._judge(ReplicaState(fault=fault, lag_s=lag.lag_s, lag_bytes=lag.lag_bytes))

    def _late(self, lag: Lag) -> str | None:
        if lag.lag_s is None:
            return "has not caught up yet"
        if lag.lag_s > self._max_lag_s * (1 if self.is_used else RETURN_AT):
            return f"is {lag.lag_s:.0f} s behind"
        return None

    def _lose(self, fault: str) -> None:
        self._is_stale = True
        self._judge(ReplicaState(fault=fault))

    def _judge(self, state: ReplicaState) -> None:
        was_used, is_first = self.is_used, self.state.fault == _UNSEEN
        self.state = state
        if state.fault is None and not was_used:
            self.lost = asyncio.get_running_loop().create_future()
            log.info("replica.used")
        elif state.fault is not None and (was_used or is_first):
            if was_used:
                self.lost.set_result(None)
            log.warning("replica.not_used: it %s; the primary takes its reads", state.fault)


def _unfit(primary: asyncpg.Record, replica: asyncpg.Record) -> str | None:
    """Why a server is no replica of this primary."""
    if not replica["is_standby"]:
        return "is no standby"
    if (primary["system"], primary["database"]) != (replica["system"], replica["database"]):
        return "is a copy of another database"
    if replica["replayed"] is None:
        return "does not say how far it is"
    if replica["replayed"] > primary["written"]:
        return "is ahead of the primary, so of another history"
    return None


def cause_of(error: BaseException) -> BaseException:
    """What the driver itself said."""
    if isinstance(error, Transient):
        error = error.__cause__ or error
    if isinstance(error, DBAPIError):
        error = error.orig or error
        error = error.__cause__ or error
    return error


def told_of(error: BaseException) -> str:
    """A failure in words. Messages may hold addresses; the kind of error says enough."""
    return f"did not answer: {type(cause_of(error)).__name__}"


async def within(timeout_s: float, closing: Coroutine[Any, Any, object]) -> None:
    """Close something that may be silent; it is not waited for longer, and whatever fails then has failed before."""
    task = asyncio.create_task(closing)
    await asyncio.wait({task}, timeout=timeout_s)
    if task.done():
        with suppress(*FAILURES):
            task.result()
    else:
        task.cancel()
