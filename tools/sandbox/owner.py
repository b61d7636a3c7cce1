"""Whose a container is: labels that tell, even after its owner's death, that nobody will come for it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

SANDBOX: Final = "rayloom.sandbox"
PLACE: Final = "rayloom.place"
PROCESS: Final = "rayloom.process"
EXPIRES: Final = "rayloom.expires_at"
LEASE_S: Final = 3 * 3_600
"""Longer than a container waits and runs together: past it, whoever made it is gone or has forgotten it."""


def labels() -> dict[str, str]:
    """The labels of a container that this process makes now."""
    return {
        SANDBOX: "1",
        PLACE: _place(),
        PROCESS: f"{os.getpid()}:{_born(os.getpid())}",
        EXPIRES: str(int(time.time()) + LEASE_S),
    }


def is_orphan(found: Mapping[str, str]) -> bool:
    """Whether a container with these labels has nobody any more; where that can't be seen, its lease tells."""
    try:
        if found.get(PLACE) != _place():
            return time.time() > int(found.get(EXPIRES, "0"))
        pid, _, born = found.get(PROCESS, "").partition(":")
        return _born(int(pid)) != born
    except ValueError:
        return True


@cache
def _place() -> str:
    """This host as far as a pid means something: its name, its boot, and its namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/?"


def _born(pid: int) -> str:
    """When a process began, in ticks since the boot: with it, a pid means one process only. Empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
