"""How much memory a new process could have: what the machine says, and what the cgroup says that we are in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rayloom.cluster.local_model.catalogue import LocalModel

MB: Final = 1_000_000
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is free, or would be made free; None where that can't be read."""
    found = (_of_machine(proc), _of_cgroup(cgroups, _V2), _of_cgroup(cgroups / "memory", _V1))
    return min((each for each in found if each is not None), default=None)


def shortage(model: LocalModel) -> str | None:
    """What to say where the model would not fit beside what runs; None where it would."""
    free = available_bytes()
    if free is None or free >= model.memory_bytes:
        return None
    return (
        f"the local model `{model.name}` takes {model.memory_bytes // MB} MB of memory, and {free // MB} MB are free: "
        "end something else, or choose a smaller model"
    )


def _of_machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    values = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(value[1]) * 1024 for value in values), None)


def _of_cgroup(folder: Path, names: tuple[str, str, str]) -> int | None:
    limit_name, used_name, cache_name = names
    try:
        limit, used = (folder / limit_name).read_text().strip(), int((folder / used_name).read_text())
        stat = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None  # "max"
    # What files have there and nobody uses is given back first.
    cache = next((int(line.split()[1]) for line in stat if line.startswith(f"{cache_name} ")), 0)
    return max(int(limit) - used + cache, 1)
