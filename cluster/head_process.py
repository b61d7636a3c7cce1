"""The driver process of Ray, seen from `rayloom up`: started, asked, watched and ended."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from rayloom.cluster import processes
from rayloom.cluster.checks import ClusterAbsent, StartRefused
from rayloom.cluster.embedded.keeper import Tell
from rayloom.cluster.head import Order
from rayloom.cluster.ray_watch import RayWatch

PROGRAM: tuple[str, ...] = (
    "-P",
    "-c",
    "import sys; from rayloom.cluster.head import main; sys.exit(main(sys.argv[1:]))",
)
"""Arguments of Python. ``-P``: the user's folder may hold a file with the name of one of our modules."""
STOP_S: Final = 45.0
"""How long the driver may take to stop Serve, the singletons and Ray in order."""
ERRAND_S: Final = 30.0
_LINE_BYTES: Final = 16 * 1024 * 1024
_LAST_WORDS_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Ray and Serve, started: addresses by name, for people; and the key of the command line."""

    urls: Mapping[str, str]
    api_key: str


class HeadProcess:
    """One driver and its Ray. Start once, stop once.

    ``services``: the processes of PostgreSQL and Redis. ``quiet``: nothing of the driver may reach stdout.
    """

    def __init__(self, order: Order, *, tell: Tell, services: Callable[[], Collection[int]], quiet: bool) -> None:
        self._order, self._tell, self._services, self._quiet = order, tell, services, quiet
        self._process: subprocess.Popen[bytes] | None = None
        self._started: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._gone = ""
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}

    @property
    def pid(self) -> int | None:
        """Its process, once it was started."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> Started:
        """Start it, and wait until Ray and Serve run. Raises StartRefused. When cancelled, it stops what it started."""
        ours = self._begin()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES)
        self._listening = asyncio.create_task(self._listen(reader))
        self._send(order=base64.b64encode(pickle.dumps(self._order)).decode())
        try:
            return await asyncio.shield(self._started)
        except asyncio.CancelledError:
            await self.stop()
            raise

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            # By the main thread, which lives as long as `up`: the kernel ends the driver with the thread that made it.
            self._process = subprocess.Popen(
                [sys.executable, *PROGRAM, str(theirs.fileno()), str(os.getpid()), sys.argv[0]],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if self._quiet else None,
                start_new_session=True,
            )
        return ours

    async def until_failed(self) -> str:
        """Watch it and its Ray, and tell what ends and comes back; return why Ray has failed, for a sentence."""
        assert self._process is not None
        watch = RayWatch(self._process.pid, tell=self._tell, errand=self._errand, services=self._services)
        watching = asyncio.create_task(watch.until_failed())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([watching, ended], return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                # The driver ends with its raylet, and should not be blamed for that.
                await asyncio.wait([watching], timeout=_LAST_WORDS_S)
            if not watching.done():
                return self._gone or self._last_words()
            return f"{self._last_words()}; {watching.result()}" if self._was_killed() else watching.result()
        finally:
            watching.cancel()
            ended.cancel()
            await asyncio.wait([watching, ended])

    async def stop(self) -> None:
        """End Serve, the singletons and Ray in order, or at once where that takes too long."""
        if self._process is None:
            return
        self._send(stop=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._ended.wait()
        await self.destroy()

    async def destroy(self) -> None:
        """End the driver at once. What it started may live on for a moment: see `RayKeeper`."""
        if self._process is None:
            return
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        if self._listening is not None:
            await asyncio.wait([self._listening])
        if self._writer is not None:
            self._writer.close()

    async def _errand(self, **what: Any) -> Any:
        """What the driver answers; None when it can't, or does not in time."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._send(id=number, **what)
        try:
            async with asyncio.timeout(ERRAND_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._answers[number]

    def _send(self, **message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                self._hear(json.loads(line))
        self._ended.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)
        if not self._started.done():
            assert self._process is not None
            await asyncio.to_thread(self._process.wait)
            words = f"{self._last_words()} while it started: see logs/up.log there"
            self._started.set_exception(ClusterAbsent(self._gone) if self._gone else StartRefused(words))
        # Where nobody waits for it any more.
        self._started.exception()

    def _hear(self, message: dict[str, Any]) -> None:
        if "log" in message:
            log = message["log"]
            logging.getLogger(log["name"]).log(log["level"], "%s", log["message"])
        elif "started" in message:
            self._started.set_result(Started(**message["started"]))
        elif "refused" in message:
            kind = ClusterAbsent if message["kind"] == ClusterAbsent.__name__ else StartRefused
            self._started.set_exception(kind(message["refused"]))
        elif "gone" in message:
            self._gone = message["gone"]
        elif (answer := self._answers.get(message["id"])) is not None and not answer.done():
            answer.set_result(message["answer"])

    def _was_killed(self) -> bool:
        """Whether it ended by a signal from outside. Ray aborts a driver that has lost it."""
        assert self._process is not None
        code = self._process.poll()
        return code is not None and code < 0 and code != -signal.SIGABRT

    def _last_words(self) -> str:
        assert self._process is not None
        # The socket closes a moment before the process is a zombie.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        code = self._process.returncode
        number = -code if code is not None and code < 0 else None
        how = processes.named(number) or f" with exit code {code}"
        if number == signal.SIGABRT:
            how += " (Ray aborts a driver that has lost it)"
        return f"the driver of Ray (process {self._process.pid}) ended{how}"
