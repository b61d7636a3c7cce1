"""`rayloom up`: starts everything in the foreground, keeps it running, and stops it in the right order.

Services first, then Ray and Serve, then the demonstration. Services and Ray are started again when they fail, Ray not
for ever. The first Ctrl-C stops cleanly, the second at once. A supervisor that is killed takes its servers with it: the
kernel tells them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import typer

from rayloom.cluster import reach
from rayloom.cluster.checks import StartRefused, ports_are_free, python_version, refuse_to_start, sandbox, warnings
from rayloom.cluster.cli.output import Output
from rayloom.cluster.embedded.identity import ServiceError
from rayloom.cluster.embedded.services import EmbeddedServices
from rayloom.cluster.head import Order
from rayloom.cluster.head_process import Started
from rayloom.cluster.home import Home, HomeError, RunningInstance, State
from rayloom.cluster.instance import run_down, run_status
from rayloom.cluster.interrupts import Interrupts
from rayloom.cluster.local_model.chosen import agree, asked_by_all, put_here
from rayloom.cluster.local_model.look import Loading
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.logbook import open_logbook
from rayloom.cluster.ray_access import token_file
from rayloom.cluster.ray_keeper import RayKeeper
from rayloom.cluster.settings import Settings, load_settings
from rayloom.dag.errors import RayloomError
from rayloom.db.settings import DatabaseSettings, RedisSettings

__all__ = ["run_down", "run_status", "run_up"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
ORPHANS_S = 20


def run_up(given: Mapping[str, object], *, demo: bool | None = None, as_json: bool = False) -> int:
    """Serve until SIGINT or SIGTERM; gives the exit code. ``demo`` None: as the settings say.

    ``given``: settings that go before all others, as for `load_settings`.

    ``as_json``: one JSON document on stdout as soon as it serves; what is told to people goes to stderr.

    What a person must mend is told in one line on stderr, with exit code 1. Raises SettingsError and HomeError, which
    are such lines already.
    """
    version = python_version()
    if version.level == "fail":
        typer.echo(f"rayloom: {version.detail}: {version.advice}", err=True)
        return 1
    settings = load_settings(Path.cwd(), environ=None, **given)
    try:
        agree(settings, partial(typer.echo, err=as_json))
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
        self._folder = str(Path.cwd())
        self._services = EmbeddedServices(settings, self._home, self._say)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._urls: Mapping[str, str] = {}
        self._llama: LlamaSettings | None = None

    async def run(self) -> int:
        _log.setLevel(logging.INFO)
        self._home.acquire()
        self._stop = asyncio.Event()
        self._interrupts = Interrupts(asyncio.get_running_loop(), self._stop)
        self._interrupts.install()
        logbook = open_logbook(self._home.logs)
        try:
            if self._home.was_killed():
                await self._unless_stopped(self._until_orphans_are_gone())
            refuse_to_start(self._settings)
            for line in warnings(self._settings):
                _log.warning(line)
            self._llama = await self._unless_stopped(put_here(self._settings, self._home, self._say))
            if self._llama is not None:
                self._settings = asked_by_all(self._settings, self._llama.installed.model, self._llama.key)
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
        if not self._settings.ray_address:
            self._demo &= await self._unless_stopped(asyncio.to_thread(self._has_sandbox))
        self._say("starting Ray and Serve")
        order = Order(
            settings=self._settings,
            database=database,
            redis=redis,
            exclusive=not self._settings.database.dsn_given,
            llama=self._llama,
        )
        loading = Loading(self._settings, self._llama, self._say)
        self._ray = RayKeeper(
            order,
            tell=self._warn,
            services=lambda: self._services.pids,
            serving=partial(self._serving, loading),
            restarting=partial(self._restarting, loading),
            quiet=self._as_json,
        )
        await self._unless_stopped(self._ray.start())
        try:
            if not self._demo:
                self._say("serving until Ctrl-C")
            with suppress(_Stopped):
                await self._unless_stopped(self._ray.keep())
        finally:
            loading.stop()
            self._say("stopping (Ctrl-C again: at once)" if self._stop.is_set() else "stopping")
            # A disk may be full, and that must not keep us from stopping in order.
            with suppress(HomeError):
                self._tell("stopping")
            await self._ray.stop()
        return 0

    def _serving(self, loading: Loading, started: Started) -> None:
        """Ray and Serve run, for the first time or again."""
        loading.begin()
        if self._urls:
            # A disk that is full now must not end what runs.
            with suppress(HomeError):
                self._tell("serving")
            return
        self._urls = dict(started.urls)
        self._tell("serving")
        self._welcome(started)
        if self._demo:
            self._begin_demonstration(started)

    def _restarting(self, loading: Loading) -> None:
        loading.stop()
        with suppress(HomeError):
            self._tell("restarting Ray")

    def _warn(self, line: str) -> None:
        """Tell people what happened to Ray, and keep it in the logbook."""
        self._say(line)
        _log.info(line)

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

    def _has_sandbox(self) -> bool:
        """Whether foreign code can run here. If not, say why, and that the demonstration is left out."""
        found = sandbox(self._settings)
        if found.level != "ok":
            _log.warning(f"{found.detail}: {found.advice}")
        runs = found.level == "ok" or self._settings.sandbox == "unsafe-local"
        if self._demo and not runs:
            self._say("the demonstration is left out: it runs programs in a sandbox")
        return runs

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

    def _welcome(self, running: Started) -> None:
        given = bool(self._settings.api_key.get_secret_value())
        if self._as_json:
            told = self._told("serving")
            # Never the key itself: what reads this document may write it to a log.
            kept_at = None if given else str(self._home.path / "api_key")
            Output(as_json=True).json({**asdict(told), "home": str(self._home.path), "api_key_path": kept_at})
            return
        width = max((len(name) for name in running.urls), default=0)
        for name, url in running.urls.items():
            self._say(f"  {name.ljust(width)}  {url}")
        if "ray" in running.urls and not self._settings.ray_address and self._settings.ray_auth == "token":
            self._say(f"  {''.ljust(width)}  (asks for the token in {token_file(self._home)}; shells: `rayloom env`)")
        if given:
            self._say(f"  {'key'.ljust(width)}  the one in RAYLOOM_API_KEY")
        elif sys.stdout.isatty():
            self._say(f"  {'key'.ljust(width)}  {running.api_key}  (kept in {self._home.path / 'api_key'})")
        else:
            # A service manager or a pipe keeps this output, where others may read it.
            self._say(f"  {'key'.ljust(width)}  in {self._home.path / 'api_key'}")

    def _begin_demonstration(self, running: Started) -> None:
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
            folder=self._folder,
            ray_address=self._settings.ray_address or "local",
            ray_auth="" if self._settings.ray_address else self._settings.ray_auth,
            services=self._services.told() | ({"local_model": self._settings.local_model} if self._llama else {}),
        )
