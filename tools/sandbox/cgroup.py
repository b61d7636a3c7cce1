"""A control group for one run: memory and processes of the whole tree, capped by the kernel, where we may make one."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rayloom.tools.settings import SandboxLimits

MOUNT: Final = Path("/sys/fs/cgroup")
MIB: Final = 1024 * 1024
REMOVAL_TRIES: Final = 50
_PREFIX: Final = "rayloom-"
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """The directories of one run: one in version 2 of control groups, one a controller in version 1."""

    memory: Path
    pids: Path

    @classmethod
    def create(cls, limits: SandboxLimits) -> ControlGroup | None:
        """A group with its limits set, or None where this process may not make one."""
        if (MOUNT / "cgroup.controllers").exists():
            parents = _parents_v2()
            names = {"memory.max": limits.memory_mb * MIB, "memory.swap.max": 0, "memory.oom.group": 1}
        else:
            parents = _parents_v1()
            names = {
                "memory.limit_in_bytes": limits.memory_mb * MIB,
                "memory.memsw.limit_in_bytes": limits.memory_mb * MIB,
            }
        if parents is None:
            return None
        name = f"{_PREFIX}{os.getpid()}-{next(_serial)}"
        group = cls(*(parent / name for parent in parents))
        try:
            for directory in group._directories():
                directory.mkdir()
            # One more than asked: the sandbox's own init.
            (group.pids / "pids.max").write_text(str(limits.pids + 1))
            for file, value in names.items():
                # Swap and group kills depend on how the kernel was built; the first name is the limit itself.
                if (group.memory / file).exists() or file in ("memory.max", "memory.limit_in_bytes"):
                    (group.memory / file).write_text(str(value))
        except OSError:
            group.discard()
            return None
        return group

    def add(self, pid: int) -> None:
        """Put a process into the group; its children follow. Raises OSError."""
        for directory in self._directories():
            (directory / "cgroup.procs").write_text(str(pid))

    def oom_kills(self) -> int:
        """How many processes of the group the kernel killed for memory."""
        for file in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                match = re.search(r"^oom_kill (\d+)", (self.memory / file).read_text(), re.MULTILINE)
                if match:
                    return int(match[1])
        return 0

    def discard(self) -> bool:
        """Remove the group if it is empty; whether it is gone."""
        for directory in self._directories():
            with suppress(OSError):
                directory.rmdir()
        return not any(directory.exists() for directory in self._directories())

    async def remove(self) -> None:
        """Remove the group once its last process is gone from it."""
        for _ in range(REMOVAL_TRIES):
            if self.discard():
                return
            await asyncio.sleep(0.01)

    def _directories(self) -> tuple[Path, ...]:
        return (self.memory,) if self.memory == self.pids else (self.memory, self.pids)


def sweep() -> None:
    """Remove the empty groups of processes of ours that died without doing it."""
    parents = _parents_v2() if (MOUNT / "cgroup.controllers").exists() else _parents_v1()
    for parent in set(parents or ()):
        for directory in parent.glob(f"{_PREFIX}*"):
            match = re.fullmatch(rf"{_PREFIX}(\d+)-\d+", directory.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                with suppress(OSError):
                    directory.rmdir()


def _own_paths() -> dict[str, str]:
    paths = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path
    return paths


def _parents_v2() -> tuple[Path, Path] | None:
    """The nearest group above ours that hands its controllers down; one with processes of its own can't."""
    path = Path(_own_paths().get("", "/"))
    for candidate in (path, *path.parents):
        directory = MOUNT / str(candidate).lstrip("/")
        with suppress(OSError):
            handed_down = (directory / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(handed_down) and os.access(directory / "cgroup.procs", os.W_OK):
                return directory, directory
    return None


def _parents_v1() -> tuple[Path, Path] | None:
    own, found = _own_paths(), []
    for controller in ("memory", "pids"):
        # Inside a container our path may be named as the host sees it; then the mount itself is our group.
        for directory in (MOUNT / controller / own.get(controller, "/").lstrip("/"), MOUNT / controller):
            if (directory / "cgroup.procs").exists() and os.access(directory, os.W_OK):
                found.append(directory)
                break
    return (found[0], found[1]) if len(found) == 2 else None
