"""`rayloom up`: starts everything in the foreground, keeps it running, and stops it in the right order.

Services first, then Ray and Serve, then the demonstration. The first Ctrl-C stops cleanly, the second at once. A
supervisor that is killed takes its servers with it: the kernel tells them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol, TypeVar

import typer

from rayloom.cluster import reach
from rayloom.cluster.checks import StartRefused, ports_are_free, python_version, refuse_to_start, warnings
from rayloom.cluster.cli.output import Output
from rayloom.cluster.embedded.identity import ServiceError
from rayloom.cluster.embedded.services import EmbeddedServices
from rayloom.cluster.home import Home, HomeError, RunningInstance
from rayloom.cluster.instance import run_down, run_status
from rayloom.cluster.logbook import open_logbook
from rayloom.cluster.settings import Settings, load_settings
from rayloom.dag.errors import RayloomError
from rayloom.db.settings import DatabaseSettings, RedisSettings

__all__ = ["Running", "run_down", "run_status", "run_up"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["starting", "serving", "stopping"]
INTERRUPTED = 130
ORPHANS_S = 20


class Running(Protocol):
    """Ray and Serve, started."""

    @property
    def urls(self) -> Mapping[str, str]:
        """Addresses by name, for people."""

    @property
    def api_key(self) -> str:
        """The key that the command line and the demonstration use."""

    async def stop(self) -> None:
        """Drain Serve, then end Ray if we started it."""


def run_up(*, demo: bool | None = None, host: str | None = None, port: int | None = None, as_json: bool = False) -> int:
    """Serve until SIGINT or SIGTERM; gives the exit code. ``demo`` None: as the settings say.

    ``as_json``: one JSON document on stdout as soon as it serves; what is told to people goes to stderr.

    What a person must mend is told in one line on stderr, with exit code 1. Raises SettingsError and HomeError, which
    are such lines already.
    """
    version = python_version()
    if version.level == "fail":
        typer.echo(f"rayloom: {version.detail}: {version.advice}", err=True)
        return 1
    settings = load_settings(Path.cwd(), host=host, port=port)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_Supervisor(settings, settings.demo if demo is None else demo, as_json).run())
    except (StartRefused, ServiceError) as error:
        typer.echo(f"rayloom: {error}", err=True)
        return 1


class _Stopped(Exception):
    """Somebody asked us to stop while we were starting."""


class _Supervisor:
    def __init__(self, settings: Settings, demo: bool, as_json: bool) -> None:
        self._settings = settings
        self._demo = demo
        self._as_json = as_json
        self._home = Home(settings.home)
        self._services = EmbeddedServices(settings, self._home, self._say)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._urls: Mapping[str, str] = {}

    async def run(self) -> int:
        self._home.acquire()
        self._stop = asyncio.Event()
        self._interrupts = _Interrupts(asyncio.get_running_loop(), self._stop)
        self._interrupts.install()
        logbook = open_logbook(self._home.logs)
        try:
            if self._home.was_killed():
                await self._unless_stopped(self._until_orphans_are_gone())
            refuse_to_start(self._settings)
            for line in warnings(self._settings):
                _log.warning(line)
            return await self._serve()
        except _Stopped:
            return 0
        finally:
            if self._services.are_running:
                self._say("stopping the services")
            await asyncio.to_thread(self._services.stop)
            logbook.close()
            self._home.release()
            self._interrupts.release()

    async def _until_orphans_are_gone(self) -> None:
        """After a kill -9 of the last owner, Ray's processes need seconds to notice, and hold our ports so long."""
        for _ in range(ORPHANS_S):
            if ports_are_free(self._settings):
                return
            await asyncio.sleep(1)

    async def _serve(self) -> int:
        self._tell("starting")
        self._make_secrets()
        database, redis = await self._start_services()
        exclusive = not self._settings.database.dsn_given
        self._say("starting Ray and Serve")
        # Ray takes seconds to import: not before it is known that we may start.
        from rayloom.cluster import bringup

        starting: asyncio.Future[Running] = asyncio.ensure_future(
            bringup.start(self._settings, database, redis, exclusive=exclusive)
        )
        try:
            running = await self._unless_stopped(starting)
        except _Stopped:
            if not starting.cancelled() and starting.exception() is None:
                await starting.result().stop()  # it was done before it heard that it should not be
            raise
        try:
            # Ray has put its own in their place.
            self._interrupts.install()
            self._urls = dict(running.urls)
            self._tell("serving")
            self._welcome(running)
            if self._demo:
                self._begin_demonstration(running)
            else:
                self._say("serving until Ctrl-C")
            await self._stop.wait()
        finally:
            self._say("stopping (Ctrl-C again: at once)")
            # A disk may be full, and that must not keep us from stopping in order.
            with suppress(HomeError):
                self._tell("stopping")
            await running.stop()
        return 0

    async def _start_services(self) -> tuple[DatabaseSettings, RedisSettings]:
        if not (self._settings.database.dsn_given and self._settings.redis.dsn_given):
            self._say(f"starting services in {self._home.path}")
        starting = asyncio.create_task(asyncio.to_thread(self._services.start))
        try:
            database, redis = await self._unless_stopped(asyncio.shield(starting))
        except _Stopped:
            await asyncio.to_thread(self._services.stop)
            await asyncio.wait([starting])
            starting.exception()
            raise
        if self._settings.database.dsn_given:
            await self._unless_stopped(reach.database(database))
        if self._settings.redis.dsn_given:
            await self._unless_stopped(reach.cache(redis))
        await self._unless_stopped(reach.blob_store(self._settings.blobs))
        return database, redis

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """The result of ``work``; it is cancelled, and _Stopped raised, when somebody wants us to stop first."""
        working, stopping = asyncio.ensure_future(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait([working])
        raise _Stopped

    def _make_secrets(self) -> None:
        if not self._settings.api_key.get_secret_value():
            self._home.secret("api_key")
        if not self._settings.secret_key.get_secret_value():
            self._home.secret("secret_key")

    def _welcome(self, running: Running) -> None:
        given = bool(self._settings.api_key.get_secret_value())
        if self._as_json:
            told = self._told("serving")
            # Whoever gave the key has it.
            Output(as_json=True).json(
                {**asdict(told), "home": str(self._home.path), "api_key": None if given else running.api_key}
            )
            return
        width = max((len(name) for name in running.urls), default=0)
        for name, url in running.urls.items():
            self._say(f"  {name.ljust(width)}  {url}")
        if given:
            self._say(f"  {'key'.ljust(width)}  the one in RAYLOOM_API_KEY")
        else:
            self._say(f"  {'key'.ljust(width)}  {running.api_key}  (kept in {self._home.path / 'api_key'})")

    def _begin_demonstration(self, running: Running) -> None:
        # A thread that nobody waits for: Ctrl-C in the middle of it must not hang.
        threading.Thread(target=self._demonstrate, args=(running.api_key,), name="demonstration", daemon=True).start()

    def _demonstrate(self, api_key: str) -> None:
        from rich.console import Console

        from rayloom.cluster import demo

        try:
            ended_well = demo.run(self._settings.near_url, api_key, Console(highlight=False, stderr=self._as_json)) == 0
            reason = "see above"
        except RayloomError as error:
            ended_well, reason = False, error.message
        if self._stop.is_set():
            return
        if not ended_well:
            typer.echo(f"rayloom: the demonstration did not end well ({reason}); serving all the same", err=True)
        self._say("serving until Ctrl-C")

    def _say(self, line: str) -> None:
        """Tell people; that they can't be told, on a full disk or a closed terminal, is no reason to do otherwise."""
        try:
            typer.echo(line, err=self._as_json)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                # Nobody will ever hear us there; what is kept for them would make the end of the process an error.
                with Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), (sys.stderr if self._as_json else sys.stdout).fileno())

    def _tell(self, state: State) -> None:
        self._home.write_run(self._told(state))

    def _told(self, state: State) -> RunningInstance:
        return RunningInstance(
            pid=os.getpid(),
            started_at=self._started_at,
            state=state,
            url=self._settings.api_url,
            urls=dict(self._urls),
            ray_address=self._settings.ray_address or "local",
            services=self._services.told(),
        )


class _Interrupts:
    """SIGINT, SIGTERM and a closed terminal: the first asks to stop, the second ends the process, and its servers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        self._loop = loop
        self._stop = stop
        self._asked = False
        # The kernel may give a signal to any thread; Python calls the handler in this one, which may sleep in its loop.
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        loop.add_reader(self._woken, self._woken.recv, 4096)

    def install(self) -> None:
        """Take the signals, also from a library that has taken them since."""
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # Not under `nohup`.
            signal.signal(signal.SIGHUP, self._on_signal)

    def release(self) -> None:
        """Give the signals back to Python."""
        signal.set_wakeup_fd(-1)
        self._loop.remove_reader(self._woken)
        self._woken.close()
        self._wakes.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            os._exit(INTERRUPTED)
        self._asked = True
        self._loop.call_soon_threadsafe(self._stop.set)
