"""Watches the processes of a local Ray for `rayloom up`, by the kernel and not by asking Ray.

Parts of five kinds: without some, Ray ends; some the driver starts again; some Ray starts again; the workers, whose
attempts the scheduler retries; and the helpers of PostgreSQL, which starts all of them again when one ends. A part that
is not back within `BACK_S` counts as a failure of Ray.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from rayloom.cluster import processes
from rayloom.cluster.embedded.keeper import Tell

Care = Literal["fatal", "driver", "ray", "worker", "postgres"]
Errand = Callable[..., Awaitable[Any]]

EVERY_S: Final = 1.0
SETTLE_S: Final = 0.3
"""After the first end of a fatal part: others end with it, and are named in the same line."""
BACK_S: Final = 120.0
TRIES: Final = 5
"""How often Ray is asked why a worker ended, once in `EVERY_S`."""
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Role:
    """What a process of Ray is. ``part``: the name that Ray's node has for it, where the driver starts it again."""

    name: str
    care: Care
    part: str = ""


_BY_FILE: Final[Mapping[str, Role]] = {
    "/raylet/raylet ": Role("raylet", "fatal"),
    "/gcs/gcs_server ": Role("GCS", "fatal"),
    "/dashboard/dashboard.py ": Role("dashboard", "driver", "dashboard"),
    "/log_monitor.py ": Role("log monitor", "driver", "log_monitor"),
    "/monitor.py ": Role("autoscaler monitor", "driver", "monitor"),
    " from multiprocessing.forkserver import ": Role("fork server of the dashboard", "driver", "dashboard"),
    " from multiprocessing.resource_tracker import ": Role("resource tracker of the dashboard", "driver", "dashboard"),
    "/dashboard/agent.py ": Role("dashboard agent", "fatal"),
    "/runtime_env/agent/main.py ": Role("runtime env agent", "fatal"),
}
_BY_TITLE: Final[Mapping[str, Role]] = {
    "ray::DashboardAgent": Role("dashboard agent", "fatal"),
    "ray::RuntimeEnvAgent": Role("runtime env agent", "fatal"),
    "ray-dashboard-": Role("dashboard module", "ray"),
    "postgres: checkpointer": Role("checkpointer", "postgres"),
    "postgres: background writer": Role("background writer", "postgres"),
    "postgres: walwriter": Role("walwriter", "postgres"),
    "postgres: autovacuum launcher": Role("autovacuum launcher", "postgres"),
    "postgres: logical replication launcher": Role("logical replication launcher", "postgres"),
    "postgres: ": Role("session", "postgres"),
    "ray::ServeController": Role("Serve controller", "ray"),
    "ray::ProxyActor": Role("Serve proxy", "ray"),
    "ray::ServeReplica:rayloom:Api": Role("API replica", "ray"),
    "ray::ServeReplica:rayloom:Parser": Role("parser replica", "ray"),
    "ray::ServeReplica:": Role("Serve replica", "ray"),
    "ray::_SchedulerActor": Role("scheduler", "ray"),
    "ray::_ToolRegistryActor": Role("tool registry", "ray"),
    "ray::_TokenControllerActor": Role("token controller", "ray"),
    "ray::_McpHostActor": Role("MCP host", "ray"),
}
_WORKER: Final = Role("worker", "worker")
_PARENTS: Final = ("raylet", "dashboard", "fork server of the dashboard")
"""Whose children are parts, too."""


def role_of(title: str) -> Role:
    """The role of a process of Ray, by its command line."""
    for start, role in _BY_TITLE.items():
        # A worker that runs a tool shows its name, which may begin like that of an agent.
        if (
            title.split(" ", 1)[0] == start
            if role.care == "fatal" and start.startswith("ray::")
            else title.startswith(start)
        ):
            return role
    for file, role in _BY_FILE.items():
        if file in title:
            return role
    return _WORKER


@dataclass(slots=True)
class _Part:
    process: processes.Process
    role: Role
    title: str
    by_raylet: bool
    """Whether the raylet started it, so that Ray knows why it ended."""
    handle: int
    signal: int | None = None
    ended_at: float = 0.0
    tries: int = 0

    def __str__(self) -> str:
        return f"the {self.role.name} (process {self.process.pid})"


class RayWatch:
    """The watch over one Ray, from its start to its failure. ``head``: the driver; ``errand`` asks it.

    ``services``: the processes of PostgreSQL and Redis, which have keepers of their own; their children are watched.
    """

    def __init__(self, head: int, *, tell: Tell, errand: Errand, services: Callable[[], Collection[int]]) -> None:
        self._head, self._tell, self._errand, self._services = head, tell, errand, services
        self._parts: dict[int, _Part] = {}
        self._late: list[_Part] = []
        self._asked: list[_Part] = []
        self._missing: list[_Part] = []
        self._stir = asyncio.Event()

    async def until_failed(self) -> str:
        """Watch, and tell what ended and what is back; return why Ray has failed, for a sentence."""
        try:
            for _ in _PARENTS:
                # Each look goes one generation deeper.
                self._look()
            while True:
                # Not `wait_for`, which in Python 3.11 loses a cancellation when what it waits for is there already.
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._stir.wait()
                self._stir.clear()
                if reason := await self._turn():
                    return reason
        finally:
            for part in self._parts.values():
                self._let_go(part)

    async def _turn(self) -> str:
        ended, self._late = self._late + self._look(), []
        if any(part.role.care == "fatal" for part in ended):
            await asyncio.sleep(SETTLE_S)
            ended += self._look()
            return "; ".join(
                f"{part} ended{processes.named(part.signal)}" for part in ended if part.role.care == "fatal"
            )
        for part in ended:
            if part.role.care == "ray":
                if part.by_raylet:
                    self._asked.append(part)
                elif not any(each.role.part == "dashboard" for each in ended):
                    self._miss(part, "")
            elif part.role.care == "worker":
                self._asked.append(part)
        for name in {part.role.part for part in ended if part.role.care == "driver"}:
            if reason := await self._have_restarted([part for part in ended if part.role.part == name]):
                return reason
        self._tell_of_postgres([part for part in ended if part.role.care == "postgres"])
        await self._ask()
        return self._welcome_back()

    def _look(self) -> list[_Part]:
        """Take in the processes that there are now; the parts that have ended since."""
        living: dict[int, tuple[processes.Process, bool]] = {}
        zombies: dict[int, int | None] = {}
        parents = {pid: part.role.name for pid, part in self._parts.items() if part.role.name in _PARENTS}
        for parent in (self._head, *parents, *self._services()):
            for pid in processes.children(parent):
                found = processes.look(pid)
                if found is None:
                    continue
                if found.state == "Z":
                    zombies[pid] = processes.exit_signal(pid)
                else:
                    living[pid] = found, parents.get(parent) == "raylet"
        ended = []
        for pid, part in list(self._parts.items()):
            if pid not in living or living[pid][0].born != part.process.born:
                part.signal, part.ended_at = zombies.get(pid), time.monotonic()
                self._let_go(self._parts.pop(pid))
                ended.append(part)
        for pid, (found, by_raylet) in living.items():
            title = processes.title(pid)
            if pid in self._parts:
                # A worker becomes an actor, and takes the name of each Ray task.
                if title:
                    self._parts[pid].title, self._parts[pid].role = title, role_of(title)
            elif title:
                self._take(found, title, by_raylet)
        return ended

    def _take(self, found: processes.Process, title: str, by_raylet: bool) -> None:
        role = role_of(title)
        try:
            handle = os.pidfd_open(found.pid)
        except OSError:
            return
        self._parts[found.pid] = _Part(found, role, title, by_raylet, handle)
        asyncio.get_running_loop().add_reader(handle, self._on_end, handle)

    def _on_end(self, handle: int) -> None:
        # It stays readable until it is closed.
        asyncio.get_running_loop().remove_reader(handle)
        self._stir.set()

    def _let_go(self, part: _Part) -> None:
        asyncio.get_running_loop().remove_reader(part.handle)
        os.close(part.handle)

    async def _have_restarted(self, ended: list[_Part]) -> str:
        part, name = ended[0], ended[0].role.part
        what = name.replace("_", " ")
        self._tell(f"{part} ended{processes.named(part.signal)}, starting the {what} of Ray again")
        if name == "dashboard":
            # Its modules would stay, and the new one has modules of its own.
            for pid, each in list(self._parts.items()):
                if each.role.name == "dashboard module":
                    processes.kill(each.process)
                    self._let_go(self._parts.pop(pid))
        if not await self._errand(restart=name):
            return f"{part} ended and the {what} does not start again"
        took_s = time.monotonic() - part.ended_at
        # What belongs to it has ended with it, and needs no words; what else ended meanwhile does.
        self._late += [each for each in self._look() if each.role.part != name and each.role.name != "dashboard module"]
        self._stir.set()
        self._tell(f"the {what} of Ray is back after {took_s:.1f} s")
        return ""

    def _tell_of_postgres(self, ended: list[_Part]) -> None:
        """PostgreSQL ends all its processes when one of them dies. Sessions alone come and go."""
        helpers = [part.role.name for part in ended if part.role.name != "session"]
        if helpers and any(part.process.parent in self._services() for part in ended):
            self._tell(f"the {', '.join(sorted(helpers))} of PostgreSQL ended; it recovers and starts them again")

    async def _ask(self) -> None:
        """Ask Ray which of its workers ended by accident: it ends many itself, and that is worth no line."""
        if not self._asked:
            return
        answer = await self._errand(ends=[part.process.pid for part in self._asked])
        workers = []
        for part in list(self._asked):
            part.tries += 1
            if answer and str(part.process.pid) in answer:
                self._asked.remove(part)
                if part.role.care == "ray":
                    self._miss(part, answer[str(part.process.pid)])
                else:
                    workers.append(part)
            elif part.tries >= TRIES:
                self._asked.remove(part)
        if workers:
            self._tell(_of_workers(workers))

    def _miss(self, part: _Part, why: str) -> None:
        # Ray's prose behind the kind lists every cause that there could be.
        ended = processes.named(part.signal) or (f" ({why.partition(':')[0]})" if why else "")
        self._tell(f"{part} ended{ended}, Ray starts it again")
        self._missing.append(part)

    def _welcome_back(self) -> str:
        """Tell which of the missing parts are back; why Ray has failed, when one has been missing for too long."""
        for part in list(self._missing):
            new = [each for each in self._parts.values() if each.role == part.role and _follows(each, part)]
            away_s = time.monotonic() - part.ended_at
            if new:
                self._missing.remove(part)
                self._tell(f"the {part.role.name} is back after {away_s:.1f} s (process {new[0].process.pid})")
            elif away_s > BACK_S:
                return f"{part} ended and was not back after {BACK_S:.0f} s"
        return ""


def _follows(new: _Part, old: _Part) -> bool:
    # A dashboard module is called ray-dashboard-JobHead-0, and -1 when it was started again.
    if old.role.name == "dashboard module" and new.title.split("-")[:3] != old.title.split("-")[:3]:
        return False
    return new.process.born > old.process.born


def _of_workers(workers: Iterable[_Part]) -> str:
    parts = list(workers)
    shown = ", ".join(f"process {part.process.pid} ({_short(part.title)})" for part in parts[:_SHOWN])
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    what = "a worker of Ray ended" if len(parts) == 1 else f"{len(parts)} workers of Ray ended"
    return f"{what} by accident, the scheduler retries the attempts: {shown}{more}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:117] + "..."
