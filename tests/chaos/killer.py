"""The seeded killer: at random moments SIGKILL, SIGSTOP for a while, or FLUSHALL, to one part after another."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import redis

from tests.chaos.record import Upset
from tests.chaos.rig import Rig
from tests.integration.processes import Process

GAP_S: Final = (0.5, 4.0)
STOPPED_S: Final = (0.5, 6.0)
GIVE_UP_S: Final = 30.0
"""How long a victim that is being started again is waited for."""

VICTIMS: Final[Mapping[str, tuple[str, int]]] = {
    "worker": ("ray::", 4),  # one that runs an attempt
    "scheduler": ("ray::_SchedulerActor", 3),
    "registry": ("ray::_ToolRegistryActor", 1),
    "tokens": ("ray::_TokenControllerActor", 2),
    "api": ("ray::ServeReplica:rayloom:Api", 2),
    "parser": ("ray::ServeReplica:rayloom:Parser", 1),
    "proxy": ("ray::ProxyActor", 1),
    "serve": ("ray::ServeController", 1),
    "node": ("raylet/raylet", 1),
    "postgres": ("bin/postgres -D", 2),
    "redis": ("redis-server", 2),
}
"""Each by its name: what stands in its command line, and how often it is chosen among the others."""
HEAD: Final[Mapping[str, tuple[str, int]]] = {
    "driver": ("rayloom.cluster.head", 1),
    "raylet": ("raylet/raylet", 1),
    "gcs": ("gcs/gcs_server", 1),
    "dashboard agent": ("ray::DashboardAgent", 1),
    "runtime env agent": ("ray::RuntimeEnvAgent", 1),
    "dashboard": ("dashboard/dashboard.py", 1),
    "dashboard module": ("ray-dashboard-", 1),
    "log monitor": ("log_monitor.py", 1),
    "autoscaler monitor": ("autoscaler/_private/monitor.py", 1),
    "mcp": ("ray::_McpHostActor", 1),
}
"""The same for the head of a local Ray, which `rayloom up` starts again."""
FATAL: Final = ("raylet", "gcs", "dashboard agent", "runtime env agent")
"""Without these all of Ray ends. Of several nodes the head is not ours: the rig starts it again, and `up` waits."""
FLUSH: Final = "flushall"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """Something that was done. ``at_s``: seconds since the killing began; ``at``: the same since the epoch."""

    at_s: float
    at: float
    what: str
    victim: str
    pid: int = 0
    lasted_s: float = 0.0

    def __str__(self) -> str:
        lasted = f" for {self.lasted_s:.1f} s" if self.lasted_s else ""
        return f"{self.at_s:7.2f} s  {self.what} {self.victim} {self.pid or ''}{lasted}"


class Killer:
    """See the module. What it does depends on the seed alone; when it is felt, on the machine."""

    def __init__(self, rig: Rig, seed: int, *, tell: Callable[[str], None]) -> None:
        self._rig, self._chance, self._tell = rig, random.Random(f"{seed}/killer"), tell
        # Nothing starts the other parts of a head of several nodes again, and nothing of ours needs them.
        head = {name: HEAD[name] for name in ("driver", "mcp", *FATAL)} if rig.has_nodes else HEAD
        self._victims = {**VICTIMS, **head}
        self._over = threading.Event()
        self._stopped: list[Process] = []
        self._began_at = time.monotonic()
        self.blows: list[Blow] = []
        self._thread = threading.Thread(target=self._work, name="killer")

    @property
    def upsets(self) -> list[Upset]:
        """Each blow to the token controller, or to the node that it may run on."""
        return [
            Upset(began_at=blow.at - blow.lasted_s, ended_at=blow.at)
            for blow in self.blows
            if blow.victim in ("tokens", "node") or blow.victim in HEAD
        ]

    def start(self) -> None:
        """Begin."""
        self._began_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """No more of it; what was stopped goes on."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(self._chance.uniform(*GAP_S)):
            names = [*self._victims, FLUSH]
            weights = [*(weight for _, weight in self._victims.values()), 2]
            name = self._chance.choices(names, weights)[0]
            stops, stopped_s = self._chance.random() < 0.3, self._chance.uniform(*STOPPED_S)
            which = self._chance.random()
            if name == FLUSH:
                self._flush()
            elif (victim := self._find(name, which)) is not None:
                if stops:
                    self._pause(name, victim, stopped_s)
                else:
                    self._kill(name, victim)

    def _find(self, name: str, which: float) -> Process | None:
        title, _ = self._victims[name]
        found = sorted(self._rig.processes(title), key=lambda each: each.born)
        if name == "worker":
            found = [each for each in found if each.is_at_work]
        elif name == "node":
            # The first is the head's, which has a name of its own here.
            found = found[1:]
        elif name in FATAL:
            found = found[:1]
        return found[int(which * len(found))] if found else None

    def _kill(self, name: str, victim: Process) -> None:
        if self._signal(victim, signal.SIGKILL):
            self._note("SIGKILL", name, victim.pid)
            if name == "node":
                self._rig.add_node()
            elif name in FATAL and self._rig.has_nodes:
                self._rig.restart_nodes()

    def _pause(self, name: str, victim: Process, stopped_s: float) -> None:
        if not self._signal(victim, signal.SIGSTOP):
            return
        began_at = time.monotonic()
        self._over.wait(stopped_s)
        self._signal(victim, signal.SIGCONT)
        self._note("SIGSTOP", name, victim.pid, lasted_s=time.monotonic() - began_at)

    def _flush(self) -> None:
        with suppress(redis.RedisError), redis.Redis.from_url(self._rig.instance.redis_url, socket_timeout=2) as client:
            client.flushall()
            self._note("FLUSHALL", "redis", 0)

    def _signal(self, victim: Process, number: int) -> bool:
        with suppress(ProcessLookupError):
            if victim.is_alive:
                os.kill(victim.pid, number)
                return True
        return False

    def _note(self, what: str, name: str, pid: int, *, lasted_s: float = 0.0) -> None:
        at_s = time.monotonic() - self._began_at
        blow = Blow(at_s=at_s, at=time.time(), what=what, victim=name, pid=pid, lasted_s=lasted_s)
        self.blows.append(blow)
        self._tell(str(blow))
