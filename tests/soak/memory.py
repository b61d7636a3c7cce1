"""The memory of the processes of an instance, by role, and how far it grew."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.integration.processes import Process

MB: Final = 1024 * 1024
BOUND_MB: Final = 100.0
"""How much any process may have grown after ``SUBTASKS``."""
SUBTASKS: Final = 200_000
BASE: Final = 20_000
"""What a run has done when the memory is taken that later memory is compared with."""
NOISE_MB: Final = 50.0
"""No bound is smaller: caches fill, and files are shared by fewer or more processes."""

_ROLES: Final = (
    (r"gcs_server", "Ray GCS"),
    (r"/raylet/raylet ", "raylet"),
    (r"/dashboard/dashboard\.py", "Ray dashboard"),
    (r"ray::DashboardAgent|/dashboard/agent\.py", "Ray dashboard agent"),
    (r"ray::RuntimeEnvAgent|/runtime_env/agent/main\.py", "Ray runtime env agent"),
    (r"/log_monitor\.py", "Ray log monitor"),
    (r"/autoscaler/.*monitor\.py", "Ray autoscaler monitor"),
    (r"rayloom\.cluster\.head", "rayloom head"),
    (r"main\(\) up$|bin/rayloom up", "rayloom up"),
    (r"resource_tracker|forkserver", "Python multiprocessing"),
    (r"^postgres: .*\d+\.\d+\.\d+\.\d+\(\d+\)", "PostgreSQL connection"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How much memory a process had: bytes of its own, and its share of files that others have mapped, too.

    Shared memory is left out: PostgreSQL's buffers and Ray's object store have a fixed size, and fill.
    """

    process: Process
    role: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The memory of every process at one moment: ``at_s`` seconds after the start, with ``done`` subtasks ended."""

    at_s: float
    done: int
    uses: tuple[Use, ...]

    def largest(self) -> dict[str, int]:
        """The largest process of each role, in bytes."""
        sizes: dict[str, int] = {}
        for use in self.uses:
            sizes[use.role] = max(use.size, sizes.get(use.role, 0))
        return sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What the largest process of a role had at the base and at the end, in bytes."""

    role: str
    base: int
    end: int

    @property
    def grown_mb(self) -> float:
        """How much more it has."""
        return (self.end - self.base) / MB


def role_of(title: str) -> str:
    """What a process is there for, by its command line; processes that replace one another have the same."""
    for pattern, role in _ROLES:
        if re.search(pattern, title):
            return role
    if title.startswith("postgres: "):
        return "PostgreSQL " + re.sub(r"\s*\d.*$", "", title.removeprefix("postgres: ")).strip()
    if title.startswith("ray::"):
        return _role_in_ray(title.removeprefix("ray::"))
    return Path(title.split(" ", 1)[0]).name


def _role_in_ray(name: str) -> str:
    if name.startswith("ServeReplica:"):
        return "Serve replica " + name.split(":")[-1].split(".")[0].split("(")[0]
    # Actors show their class; workers the name of the task that they run, or IDLE.
    actor = re.match(r"_?([A-Z]\w*[a-z]\w*)", name)
    return f"actor {actor[1]}" if actor else "Ray worker"


def measure(processes: Iterable[Process]) -> tuple[Use, ...]:
    """How much memory each of them has now; without those that have just ended."""
    uses = [Use(process=process, role=role_of(process.title), size=_size(process.pid)) for process in processes]
    return tuple(use for use in uses if use.size)


def _size(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_File:"))) * 1024
    return 0


def base_of(subtasks: int) -> int:
    """After how many of so many subtasks the memory is taken that later memory is compared with."""
    return min(BASE, subtasks // 2)


def bound_mb(subtasks: int) -> float:
    """How much any process may grow from the base of so many subtasks to their end."""
    share = (subtasks - base_of(subtasks)) / (SUBTASKS - BASE)
    return max(NOISE_MB, BOUND_MB * min(share, 1.0))


def growths(base: Sample, end: Sample) -> list[Growth]:
    """How far the largest process of each role has grown, those that grew most first.

    By role, as processes are replaced, and a worker that has run nothing yet is small.
    """
    before = base.largest()
    found = [Growth(role=role, base=before.get(role, 0), end=size) for role, size in end.largest().items()]
    return sorted(found, key=lambda each: each.grown_mb, reverse=True)


def table(found: Sequence[Growth]) -> str:
    """The growths as a table in Markdown."""
    rows = [f"| {each.role} | {each.base / MB:.0f} | {each.end / MB:.0f} | {each.grown_mb:+.0f} |" for each in found]
    return "\n".join(["| largest process | at the base, MB | at the end, MB | grown |", "|---|---|---|---|", *rows])
