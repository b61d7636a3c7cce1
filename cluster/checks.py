"""What must hold on a machine before rayloom starts; each check says what to do about it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayloom.cluster.home import Home, HomeError
from rayloom.cluster.settings import Settings
from rayloom.dag.errors import Refused, Transient
from rayloom.db.keys import MAX_KEY_CHARS
from rayloom.tools.models.presence import absence
from rayloom.tools.sandbox.select import sandbox_for

Level = Literal["ok", "warn", "fail"]
PYTHONS = ((3, 11), (3, 12), (3, 13))
GIB = 1024**3
LEAST_DISK_BYTES = GIB
LEAST_KEY_CHARS = 8
GOOD_KEY_CHARS = 32


class StartRefused(Exception):
    """rayloom can't start here and now; the message is one line that says what to do."""


class ClusterAbsent(StartRefused):
    """The Ray cluster that was given does not answer; it may come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; ``advice`` says what to do where ``level`` is not ok."""

    name: str
    level: Level
    detail: str
    advice: str = ""


def ok(name: str, detail: str) -> Check:
    """A check that holds."""
    return Check(name=name, level="ok", detail=detail)


def python_version() -> Check:
    """Whether this Python is one that we and Ray run on."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in PYTHONS:
        return ok("python", version)
    advice = "install Python 3.11, 3.12 or 3.13, and make the virtual environment with that"
    return Check(name="python", level="fail", detail=f"Python {version} is not supported", advice=advice)


def disk_space(folder: Path) -> Check:
    """Whether there is room for data in ``folder``, or where it will be made."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / GIB:.1f} GiB free for {folder}"
    if free >= LEAST_DISK_BYTES:
        return ok("disk", detail)
    advice = f"free at least {LEAST_DISK_BYTES // GIB} GiB there, or set RAYLOOM_HOME to another disk"
    return Check(name="disk", level="fail", detail=f"only {detail}", advice=advice)


def port(settings: Settings) -> Check:
    """Whether the HTTP address can be listened on."""
    where = f"{settings.host}:{settings.port}"
    if settings.ray_address:
        return ok("port", f"{where} on the nodes of the Ray cluster")
    fault = _listen_fault(settings.host, settings.port)
    if fault is None:
        return ok("port", f"{where} is free")
    if fault == errno.EADDRINUSE:
        detail, advice = (
            f"port {settings.port} on {settings.host} is taken",
            "stop what listens there, or set RAYLOOM_PORT",
        )
    elif fault == errno.EACCES:
        detail, advice = f"this user may not listen on port {settings.port}", "set RAYLOOM_PORT to 1024 or more"
    else:
        detail = f"{settings.host} is not an address of this machine"
        advice = "set RAYLOOM_HOST to 127.0.0.1, or to 0.0.0.0 for all addresses"
    return Check(name="port", level="fail", detail=detail, advice=advice)


def dashboard_port(settings: Settings) -> Check:
    """Whether the dashboard of a Ray of ours can be listened on; Ray would not start without."""
    where = f"127.0.0.1:{settings.ray_dashboard_port}"
    if settings.ray_address or _listen_fault("127.0.0.1", settings.ray_dashboard_port) is None:
        return ok("dashboard-port", f"{where} is free" if not settings.ray_address else "that of the Ray cluster")
    detail = f"Ray's dashboard can't listen on {where}, which another Ray may have taken"
    advice = "stop that one with `ray stop`, or set RAYLOOM_RAY_DASHBOARD_PORT"
    return Check(name="dashboard-port", level="fail", detail=detail, advice=advice)


def api_key(settings: Settings) -> Check:
    """Whether the first key, where somebody chose it, can open the door and keep others out."""
    given = settings.api_key.get_secret_value()
    name, key = "RAYLOOM_API_KEY", given
    if not given:
        home = Home(settings.home)
        name = str(home.path / "api_key")
        try:
            key = home.read_secret("api_key") or ""
        except HomeError as error:
            return Check(name="api-key", level="fail", detail=str(error), advice="remove it, and a new one is made")
        if not key:
            return ok("api-key", f"{name} will be made")
    advice = f"choose {GOOD_KEY_CHARS} random characters or more, or leave it out and let one be made"
    if not all("!" <= char <= "~" for char in key):
        detail = f"{name} holds a space or what is not ASCII, which no request can carry"
        return Check(name="api-key", level="fail", detail=detail, advice=advice)
    if not LEAST_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        detail = f"{name} has {len(key)} characters, and {LEAST_KEY_CHARS} to {MAX_KEY_CHARS} are taken"
        return Check(name="api-key", level="fail", detail=detail, advice=advice)
    if len(key) < GOOD_KEY_CHARS:
        detail = f"{name} has only {len(key)} characters and may be guessed"
        return Check(name="api-key", level="warn", detail=detail, advice=advice)
    return ok("api-key", f"{name}, {len(key)} characters")


def models(settings: Settings) -> Check:
    """Whether the models answer, by a look that costs nothing; for no longer than some seconds."""
    chosen = settings.models.models
    if not chosen:
        return ok("models", "none; prompts are split by their outline")

    async def look() -> list[str | None]:
        return await asyncio.gather(*(absence(each) for each in chosen))

    absent = [why for why in asyncio.run(look()) if why is not None]
    if not absent:
        return ok("models", ", ".join(f"{each.name}: {each.shown}" for each in chosen))
    advice = "what needs them fails until they are there; see docs/models.md"
    return Check(name="models", level="warn", detail="; ".join(absent), advice=advice)


def faults(settings: Settings) -> Check:
    """Whether this one is to break now and then by itself."""
    if settings.faults:
        return Check(
            name="faults",
            level="warn",
            detail=f"RAYLOOM_FAULTS={settings.faults} breaks connections and loses outcomes at random",
            advice="it is for tests; leave it empty",
        )
    return ok("faults", "none are injected")


def ray_auth(settings: Settings) -> Check:
    """Check that only this user can use the ports of the Ray that `up` starts."""
    if settings.ray_address:
        return ok("ray-auth", "that of the Ray cluster")
    if settings.ray_auth == "token":
        return ok("ray-auth", "Ray asks for a token")
    return Check(
        name="ray-auth",
        level="warn",
        detail="RAYLOOM_RAY_AUTH=disabled lets every user of this machine run commands as you, through Ray",
        advice="unset it, so that Ray asks for a token",
    )


def ports_are_free(settings: Settings) -> bool:
    """Whether nobody listens where we and a Ray of ours would."""
    return port(settings).level == dashboard_port(settings).level == "ok"


def refuse_to_start(settings: Settings) -> None:
    """Raise StartRefused for the first thing that makes a start pointless."""
    for check in (
        python_version(),
        disk_space(settings.home),
        port(settings),
        dashboard_port(settings),
        api_key(settings),
    ):
        if check.level == "fail":
            raise StartRefused(f"{check.detail}: {check.advice}")


def warnings(settings: Settings) -> list[str]:
    """What somebody who starts this should know, one line each."""
    found = (api_key(settings), ray_auth(settings), faults(settings))
    return [f"{check.detail}: {check.advice}" for check in found if check.level == "warn"]


def _listen_fault(host: str, number: int) -> int | None:
    """The errno of a server that would try to listen there, or None if it could."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections that are only closing down are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno
    return None


def shared_memory() -> Check:
    """Whether Ray's object store has memory to share."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check(name="shared-memory", level="warn", detail="there is no /dev/shm", advice="mount one of 1 GiB")
    detail = f"/dev/shm has {size / GIB:.1f} GiB"
    if size >= GIB:
        return ok("shared-memory", detail)
    advice = "Ray will use slower files in /tmp; start the container with --shm-size=2g"
    return Check(name="shared-memory", level="warn", detail=detail, advice=advice)


def memory() -> Check:
    """Whether there is memory enough for PostgreSQL, Redis and a local Ray."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{total / GIB:.1f} GiB"
    if total >= 4 * GIB:
        return ok("memory", detail)
    advice = "rayloom wants 4 GiB; with less, Ray kills workers under load"
    return Check(name="memory", level="warn", detail=detail, advice=advice)


def file_handles() -> Check:
    """Whether a process may open enough files and connections."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files (at most {hard})"
    if soft >= 4096 or soft == resource.RLIM_INFINITY:
        return ok("file-handles", detail)
    return Check(name="file-handles", level="warn", detail=detail, advice="raise it with `ulimit -n 65536`")


def sandbox(settings: Settings, *, tries: bool = False) -> Check:
    """Whether foreign code can be confined, by the sandbox that is meant. It makes no image.

    ``tries``: a program may be run for that also where it costs money.
    """
    meant = (settings.sandbox, settings.docker, settings.e2b)
    try:
        report = asyncio.run(sandbox_for(*meant, builds=False, tries=tries).probe())
    except (Refused, Transient) as error:
        advice = "python.run and shell.run are refused without it; `rayloom doctor` runs this check again"
        return Check(name="sandbox", level="warn", detail=error.message, advice=advice)
    notes = "; ".join((f"{report.backend} {report.version}", f"memory limit: {report.memory_limit}", *report.notes))
    if report.isolated:
        return ok("sandbox", notes)
    advice = "foreign code can do whatever you can: use it only where all of it is yours"
    return Check(name="sandbox", level="warn", detail=notes, advice=advice)
