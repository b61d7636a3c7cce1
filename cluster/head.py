"""The process that starts Ray, the singletons and Serve for `rayloom up`, and stays their driver.

Ray aborts the process of a driver that has lost it, and can't be started anew in the same process. So `up` starts this
one, and another one when Ray has failed. Both talk over a socket, in lines of JSON: see `HeadProcess`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from sqlalchemy.exc import DBAPIError

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.embedded.identity import ServiceError
from rayloom.cluster.home import HomeError
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.processes import die_with
from rayloom.cluster.settings import Settings
from rayloom.dag.errors import RayloomError
from rayloom.db.settings import DatabaseSettings, RedisSettings

_log = logging.getLogger(__name__)

LOOK_S: Final = 5.0
"""How often a cluster that is not ours is asked whether it is there, and how long it may take to answer."""
LOOKS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to start; the arguments of `bringup.start`."""

    settings: Settings
    database: DatabaseSettings
    redis: RedisSettings
    exclusive: bool
    llama: LlamaSettings | None


class _Link(logging.Handler):
    """The socket to `up`. Safe to share between threads. What this process logs goes through it, too."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__()
        self._link = link
        self._lines = link.makefile("r", encoding="utf-8")
        self._telling = threading.RLock()

    def tell(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._telling:
            try:
                self._link.sendall(line)
            except OSError:
                os._exit(1)  # `up` has ended: the kernel is about to end this process, too

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(log={"level": record.levelno, "name": record.name, "message": record.getMessage()})

    def heard(self) -> dict[str, Any] | None:
        """The next line; None when `up` has ended. It waits."""
        line = self._lines.readline()
        return json.loads(line) if line else None


class _Head:
    def __init__(self, link: _Link) -> None:
        self._link = link
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> int:
        first = self._link.heard()
        if first is None:
            return 1
        order: Order = pickle.loads(base64.b64decode(first["order"]))
        threading.Thread(target=self._listen, name="up", daemon=True).start()
        # Ray takes seconds to import: not before it is known what to start.
        from rayloom.cluster import bringup

        starting = asyncio.ensure_future(
            bringup.start(order.settings, order.database, order.redis, exclusive=order.exclusive, llama=order.llama)
        )
        stopping = asyncio.create_task(self._stop.wait())
        gone = asyncio.create_task(_until_gone() if order.settings.ray_address else asyncio.Event().wait())
        await asyncio.wait([starting, stopping, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self._end_without_cluster(order.settings.ray_address)
        if not starting.done():
            starting.cancel()
        try:
            running = await starting
        except asyncio.CancelledError:
            return 0
        except Exception as error:  # noqa: BLE001 - `up` decides about it, and tells people
            self._link.tell(**_refusal(error))
            return 1
        self._link.tell(started={"urls": dict(running.urls), "api_key": running.api_key})
        await asyncio.wait([stopping, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self._end_without_cluster(order.settings.ray_address)
        await running.stop()
        return 0

    def _end_without_cluster(self, address: str) -> NoReturn:
        """End this process at once: threads of it may wait for the cluster for ever."""
        self._link.tell(gone=f"the Ray cluster at RAYLOOM_RAY_ADDRESS={address} is gone")
        os._exit(1)

    def _listen(self) -> None:
        while True:
            heard = self._link.heard()
            if heard is None:
                os._exit(1)
            elif "stop" in heard:
                self._loop.call_soon_threadsafe(self._stop.set)
            else:
                self._loop.call_soon_threadsafe(self._answer, heard)

    def _answer(self, heard: dict[str, Any]) -> None:
        """Do one errand in this thread: what Ray's node starts here dies with the thread that started it."""
        from rayloom.cluster import ray_parts

        try:
            if "restart" in heard:
                ray_parts.restart(heard["restart"])
                answer: object = True
            else:
                answer = ray_parts.unexpected_ends(heard["ends"])
        except Exception as error:  # noqa: BLE001 - Ray raises what it likes; `up` decides about it
            _log.info("head.errand_failed: %s: %s: %s", heard, type(error).__name__, error)
            answer = None
        self._link.tell(answer=answer, id=heard["id"])


async def _until_gone() -> None:
    """Return when the given cluster, once joined, has not answered for a while, or is another one at its address.

    A local cluster is watched process by process.
    """
    silent = 0
    while silent < LOOKS:
        await asyncio.sleep(LOOK_S)
        # Imported by `bringup` only: Ray reads its settings when it is imported.
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            continue
        try:
            await asyncio.wait_for(asyncio.to_thread(ray.nodes), LOOK_S)
            silent = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, Ray has not answered
            silent += 1
            _log.info("head.no_answer: %s: %s", type(error).__name__, error)


def _refusal(error: Exception) -> dict[str, Any]:
    if isinstance(error, StartRefused | ServiceError | HomeError):
        return {"refused": str(error), "kind": type(error).__name__}
    if isinstance(error, RayloomError):
        return {"refused": error.message, "kind": type(error).__name__}
    _log.error("head.failed: %s", "".join(traceback.format_exception(error)))
    if isinstance(error, DBAPIError):
        return {"refused": f"the database failed during the start: {_first_line(error)}", "kind": "StartRefused"}
    return {"refused": f"Ray and Serve did not start: {_first_line(error)}", "kind": "bug"}


def _first_line(error: Exception) -> str:
    """Give the type of an error and the first line of its message, cut at 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def main(arguments: list[str]) -> int:
    """Start what `up` orders over the socket of this number. It ends the process, unless `up` has ended already."""
    descriptor, parent, sys.argv[0] = int(arguments[0]), int(arguments[1]), arguments[2]
    if not die_with(parent):
        return 1
    # Ctrl-C at the terminal is for `up`, which then says what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = _Link(socket.socket(fileno=descriptor))
    logging.getLogger("rayloom").addHandler(link)
    _log.setLevel(logging.INFO)

    async def run() -> int:
        return await _Head(link).run()

    code = asyncio.run(run())
    # Not by Python's own way out: Ray has threads that may keep it, and a closed terminal is no reason for an error.
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
