"""Keeps Ray, the singletons and Serve alive for `rayloom up`: starts them again after a failure, up to a bound."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from rayloom.cluster import processes, reach
from rayloom.cluster.checks import ClusterAbsent, StartRefused
from rayloom.cluster.embedded.keeper import Tell
from rayloom.cluster.head import Order
from rayloom.cluster.head_process import HeadProcess, Started

_log = logging.getLogger(__name__)

WINDOW_S: Final = 300.0
DATABASE_S: Final = 60.0
"""How long PostgreSQL is waited for, which may have died together with Ray."""
PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0)
"""Between two looks for a given cluster that is away."""
CONNECT_S: Final = 5.0
GONE_S: Final = 20.0
REAP_S: Final = 5.0


class RayKeeper:
    """See the module. ``services``: the processes of PostgreSQL and Redis, which are children of `up`, too.

    ``serving`` hears after each start, ``restarting`` when Ray has failed. ``quiet``: nothing may reach stdout.
    """

    def __init__(
        self,
        order: Order,
        *,
        tell: Tell,
        services: Callable[[], Collection[int]],
        serving: Callable[[Started], None],
        restarting: Callable[[], None],
        quiet: bool,
    ) -> None:
        self._order, self._tell, self._quiet = order, tell, quiet
        self._services, self._serving, self._restarting = services, serving, restarting
        self._head: HeadProcess | None = None
        self._failures: deque[float] = deque()
        self._most = order.settings.ray_failures

    async def start(self) -> None:
        """Start everything for the first time. Raises StartRefused; then nothing is left running."""
        # What Ray has started stays below us when Ray is gone, so that it can be found and ended.
        processes.adopt_orphans()
        await self._start()

    async def keep(self) -> None:
        """Watch, and start again what has failed. Raises StartRefused after too many failures in `WINDOW_S`."""
        reaping = asyncio.create_task(self._reap())
        try:
            while True:
                assert self._head is not None
                reason = await self._head.until_failed()
                failed_at = time.monotonic()
                self._restarting()
                await self._end_all()
                await self._start_again(reason, failed_at)
                self._tell(f"serving again, {time.monotonic() - failed_at:.1f} s after the failure")
        finally:
            reaping.cancel()

    async def stop(self) -> None:
        """Stop Serve, the singletons and Ray in order; nothing that they started is left when this returns."""
        if self._head is not None:
            await self._head.stop()
        await self._end_all()

    async def _start(self) -> None:
        self._head = HeadProcess(self._order, tell=self._tell, services=self._services, quiet=self._quiet)
        try:
            started = await self._head.start()
        except BaseException:
            await self._end_all()
            raise
        self._serving(started)

    async def _start_again(self, reason: str, failed_at: float) -> None:
        waited = 0
        self._note(reason, failed_at)
        while True:
            try:
                await self._until_database_answers()
                await _refuse_absent(self._order.settings.ray_address)
                await self._start()
                return
            except ClusterAbsent as absent:
                if not waited:
                    self._tell(f"{absent}; waiting for it")
                waited += 1
                await asyncio.sleep(PAUSES_S[min(waited, len(PAUSES_S)) - 1])
            except StartRefused as refused:
                waited = 0
                self._note(str(refused), time.monotonic())

    def _note(self, reason: str, now: float) -> None:
        """Count a failure, and tell it. Raises StartRefused when there have been too many."""
        self._failures.append(now)
        while self._failures[0] < now - WINDOW_S:
            self._failures.popleft()
        count, minutes = len(self._failures), WINDOW_S / 60
        if count >= self._most:
            raise StartRefused(
                f"Ray failed {count} times in {minutes:.0f} minutes, the last time because {reason}: look for the "
                f"cause in {self._order.settings.home / 'logs' / 'up.log'} and in Ray's own logs, then start again"
            )
        what = "the singletons and Serve" if self._order.settings.ray_address else "Ray, the singletons and Serve"
        self._tell(f"{reason}; starting {what} again (failure {count} of {self._most} in {minutes:.0f} minutes)")

    async def _until_database_answers(self) -> None:
        until = time.monotonic() + DATABASE_S
        while True:
            try:
                await reach.database(self._order.database)
                return
            except StartRefused:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)

    async def _end_all(self) -> None:
        """End the driver and everything that it and its Ray have started, sandboxes and MCP servers too."""
        if self._head is not None:
            await self._head.destroy()
        until = time.monotonic() + GONE_S
        while left := processes.descendants(os.getpid(), but=self._services()):
            for each in left:
                if each.state == "Z":
                    if each.parent == os.getpid():
                        processes.reap(each)
                else:
                    processes.kill(each)
            if time.monotonic() > until:
                names = [f"{each.pid} ({processes.title(each.pid)[:80]})" for each in left]
                _log.warning("ray.left: processes of Ray can't be ended: %s", ", ".join(names))
                return
            await asyncio.sleep(0.05)

    async def _reap(self) -> None:
        """Reap what was adopted and has ended. Our own children are waited for in moments, so they don't show twice."""
        before: set[processes.Process] = set()
        while True:
            await asyncio.sleep(REAP_S)
            ours = {self._head.pid if self._head is not None else None, *self._services()}
            ended = {
                found
                for pid in processes.children(os.getpid())
                if pid not in ours and (found := processes.look(pid)) is not None and found.state == "Z"
            }
            for each in ended & before:
                processes.reap(each)
            before = ended


async def _refuse_absent(address: str) -> None:
    """Raise ClusterAbsent where nothing listens at ``address``. Ray itself would try for minutes, in silence."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # a local Ray, or an address that Ray finds by itself
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError as error:
        raise ClusterAbsent(
            f"no Ray cluster answers at RAYLOOM_RAY_ADDRESS={address} ({type(error).__name__})"
        ) from None
    writer.close()
