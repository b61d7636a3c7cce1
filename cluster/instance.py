"""The rayloom that runs in a home, seen from another process: `rayloom down` and `rayloom status`."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

import httpx2

from rayloom.cluster import checks
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.output import Output, complain
from rayloom.cluster.home import Home
from rayloom.cluster.local_model.chosen import as_served
from rayloom.cluster.settings import Settings
from rayloom.cluster.settings_of_up import home_here, settings_of_up

DOWN_TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 5.0


def run_down(*, as_json: bool = False) -> int:
    """Ask the owner of this home to stop, and wait up to 60 s for it; gives the exit code."""
    home = Home(home_here())
    output = Output(as_json=as_json)
    pid = home.owner()
    if pid is None:
        return _down(output, home, None, f"no rayloom runs in {home.path}")
    if not pid:
        complain(f"somebody owns {home.path} and has not said who: try again in a second")
        return ExitCode.ERROR
    try:
        # A handle on this very process: its number can't come to mean another one while we wait.
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return _down(output, home, None, f"process {pid} has just ended")
    try:
        if home.owner() != pid:
            return _down(output, home, None, f"process {pid} has just ended")
        if not home.is_held_by(pid):
            complain(f"{home.path} is in use, but not by process {pid}, which it names: stop it where it was started")
            return ExitCode.ERROR
        signal.pidfd_send_signal(process, signal.SIGTERM)
        ended, _, _ = select.select([process], [], [], DOWN_TIMEOUT_S)
    except PermissionError:
        complain(f"process {pid} belongs to another user: stop it as that user")
        return ExitCode.ERROR
    finally:
        os.close(process)
    if ended:
        return _down(output, home, pid, f"stopped process {pid}")
    complain(f"process {pid} still runs after {DOWN_TIMEOUT_S:.0f} s; `kill -9 {pid}` ends it, and nothing is lost")
    return ExitCode.ERROR


def _down(output: Output, home: Home, stopped: int | None, said: str) -> int:
    """Nothing runs in ``home`` any more: say so, and which process was stopped for it."""
    if output.as_json:
        output.json({"home": str(home.path), "running": False, "stopped_pid": stopped})
    else:
        output.line(said)
    return ExitCode.OK


def run_status(*, as_json: bool = False) -> int:
    """Show what runs in this home and how it is; exit code 0 when all of it is ready, 1 otherwise, degraded too."""
    home = home_here()
    status = read_status(settings_of_up(home if _serves_us(home) else None))
    output = Output(as_json=as_json)
    if as_json:
        output.json(status)
    else:
        output.fields(list(_flat(status)))
    return ExitCode.OK if status["serve"]["state"] == "ready" else ExitCode.ERROR


def _serves_us(home: Path) -> bool:
    """Whether an `up` of this user runs in it. Else no folder may name it: its files say where keys of models go."""
    lock = home / "lock"
    # A repository may hold a link to the lock of another home.
    return (
        Home(home).owner() is not None
        and not lock.is_symlink()
        and lock.stat().st_uid == home.stat().st_uid == os.geteuid()
    )


def read_status(settings: Settings) -> dict[str, Any]:
    """What `status` shows; without any secret. ``running``: whether somebody owns this home."""
    home = Home(settings.home)
    pid, told = home.owner(), home.read_run()
    url = settings.url or (told.url if told else settings.api_url)
    ready, confined, models = _ready(url), checks.sandbox(settings), checks.models(as_served(settings))
    return {
        "running": pid is not None,
        "state": told.state if told else ("starting" if pid is not None else "down"),
        "pid": pid or None,
        "home": str(home.path),
        "url": url,
        "urls": told.urls if told else {},
        "started_at": told.started_at if told else None,
        "folder": (told.folder or None) if told else None,
        "services": told.services if told else {},
        "ray": {
            "address": (told.ray_address if told else None) or settings.ray_address or "local",
            "dashboard": told.urls.get("ray") if told else None,
            "auth": (told.ray_auth or None) if told else None,
        },
        "serve": ready,
        "sandbox": {"setting": settings.sandbox, "state": confined.level, "detail": confined.detail},
        "models": {"state": models.level, "detail": models.detail},
    }


def _ready(url: str) -> dict[str, Any]:
    try:
        answer = httpx2.get(f"{url}/readyz", timeout=_READY_TIMEOUT_S, trust_env=False)
        said = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        return {"state": "down", "detail": f"{url} does not answer ({type(error).__name__})"}
    if not isinstance(said, dict) or "status" not in said:
        return {"state": "down", "detail": f"{url} answers, but it is not rayloom"}
    state = str(said["status"]) if answer.status_code == 200 else "not ready"
    return {"state": state, "detail": said}


def _flat(status: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in status.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            pairs.append((f"{prefix}{name}", value))
    return pairs
