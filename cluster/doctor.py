"""`rayloom doctor`: everything that a start needs, looked at without starting anything."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from rayloom.cluster import checks, reach
from rayloom.cluster.checks import Check, StartRefused
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.output import Output
from rayloom.cluster.embedded.binaries import PgBinaries, RedisBinary
from rayloom.cluster.embedded.identity import ServiceError, choose
from rayloom.cluster.embedded.services import data_version
from rayloom.cluster.home import Home
from rayloom.cluster.local_model import chosen as local_model
from rayloom.cluster.settings import Settings, SettingsError, load_settings

RAY_VERSION = "2.60.0"
_MODULES = (
    "asyncpg", "fastapi", "httpx2", "networkx", "obstore", "orjson", "pydantic", "redis", "sqlalchemy", "starlette",
)  # fmt: skip


def run_doctor(*, as_json: bool = False) -> int:
    """Show all checks; exit code 1 when one of them fails."""
    found = list(diagnose())
    output = Output(as_json=as_json)
    failed = any(check.level == "fail" for check in found)
    if as_json:
        output.json({"ok": not failed, "checks": [asdict(check) for check in found]})
    else:
        output.table(("", "check", "found", "what to do"), [(c.level, c.name, c.detail, c.advice) for c in found])
    return ExitCode.ERROR if failed else ExitCode.OK


def diagnose(folder: Path | None = None) -> Iterator[Check]:
    """Every check, one after the other; without valid settings only those that need none."""
    yield checks.python_version()
    yield modules()
    yield ray_version()
    yield checks.memory()
    yield checks.shared_memory()
    yield checks.file_handles()
    try:
        settings = load_settings(folder or Path.cwd())
    except SettingsError as error:
        for line in error.lines:
            yield Check(name="settings", level="fail", detail=line, advice="correct it where it is set")
        return
    yield checks.ok("settings", "valid")
    home = Home(settings.home)
    yield home_folder(home)
    yield checks.disk_space(home.path)
    yield checks.api_key(settings)
    yield checks.ray_auth(settings)
    yield local_model.check(settings)
    yield checks.models(local_model.as_served(settings))
    yield instance(home)
    if home.owner() is None:
        yield checks.port(settings)
        yield checks.dashboard_port(settings)
    else:
        yield checks.ok("port", f"{settings.api_url} is ours")
    yield _judged("postgresql", lambda: postgresql(settings, home))
    if settings.database.replica_url is not None:
        yield replica(settings)
    yield _judged("redis", lambda: redis(settings))
    yield _judged("blob-store", lambda: blob_store(settings))
    yield checks.sandbox(settings)


def modules() -> Check:
    """Whether what we are built on can be imported."""
    broken = []
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            broken.append(f"{name} ({error})")
    if not broken:
        return checks.ok("packages", f"{len(_MODULES)} importable")
    advice = "install the locked dependencies again: `make install`"
    return Check(name="packages", level="fail", detail=f"can't import {', '.join(broken)}", advice=advice)


def ray_version() -> Check:
    """Whether Ray is there, in the one version that all nodes and clients share."""
    advice = f"pip install 'ray[default,serve]=={RAY_VERSION}'"
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Check(name="ray", level="fail", detail="not installed", advice=advice)
    if version != RAY_VERSION:
        return Check(name="ray", level="fail", detail=f"{version}, and we are built for {RAY_VERSION}", advice=advice)
    return checks.ok("ray", version)


def home_folder(home: Home) -> Check:
    """Whether RAYLOOM_HOME can be used, and by nobody else."""
    name, path = "home", home.path
    if not path.exists():
        parent = next(place for place in path.parents if place.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return checks.ok(name, f"{path} will be made")
        advice = "set RAYLOOM_HOME to a folder of your own"
        return Check(name=name, level="fail", detail=f"{path} can't be made in {parent}", advice=advice)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK) or path.stat().st_uid != os.geteuid():
        advice = "set RAYLOOM_HOME to a folder of your own"
        return Check(name=name, level="fail", detail=f"{path} is another user's", advice=advice)
    if home.open_to_others():
        return Check(name=name, level="warn", detail=f"{path} is open to other users", advice=f"chmod 700 {path}")
    return checks.ok(name, str(path))


def instance(home: Home) -> Check:
    """What runs in the home."""
    pid = home.owner()
    if pid is None:
        return checks.ok("instance", "nothing runs")
    told = home.read_run()
    state, where = (told.state, f" at {told.url}") if told else ("starting", "")
    return checks.ok("instance", f"process {pid or 'unknown'} is {state}{where}")


def postgresql(settings: Settings, home: Home) -> str:
    """Where the database comes from. Raises ServiceError or StartRefused."""
    if settings.database.dsn_given:
        asyncio.run(reach.database(settings.database))
        return "RAYLOOM_DATABASE_URL answers"
    binaries = PgBinaries.find(major=data_version(home))
    folder = next(place for place in (home.path, *home.path.parents) if place.exists())
    identity = choose(program=[binaries.program("initdb"), "--version"], folder=folder)
    return f"PostgreSQL {binaries.major} in {binaries.folder}, run as {identity.way}"


def replica(settings: Settings) -> Check:
    """Whether there is a replica to read from; without it nothing fails."""

    def look() -> str:
        asyncio.run(reach.replica(settings.database))
        return "RAYLOOM_DATABASE_REPLICA_URL answers"

    found = _judged("replica", look)
    if found.level == "ok":
        return found
    return replace(found, level="warn", advice=f"{found.advice}; until then the primary takes its reads")


def redis(settings: Settings) -> str:
    """Where Redis comes from. Raises ServiceError or StartRefused."""
    if settings.redis.dsn_given:
        asyncio.run(reach.cache(settings.redis))
        return "RAYLOOM_REDIS_URL answers"
    return str(RedisBinary.find().path)


def blob_store(settings: Settings) -> str:
    """Where large contents are kept. Raises StartRefused."""
    asyncio.run(reach.blob_store(settings.blobs))
    return f"{settings.blobs.place} can be written and read" if settings.blobs.place else "in PostgreSQL"


def _judged(name: str, look: Callable[[], str]) -> Check:
    try:
        return checks.ok(name, look())
    except (ServiceError, StartRefused) as error:
        detail, _, advice = str(error).partition(": ")
        return Check(name=name, level="fail", detail=detail, advice=advice)
