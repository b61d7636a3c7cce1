"""A tree of processes, seen through /proc: who belongs to it, what it uses, and the limits put on it."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from rayloom.tools.settings import SandboxLimits

MIB: Final = 1024 * 1024
OPEN_FILES: Final = 1_024
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def tree(root: int) -> list[int]:
    """The pids of a process and of all its descendants; what ends meanwhile is left out."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    waiting.extend(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()))
    return found


def thread_count(pids: list[int]) -> int:
    """How many threads the processes have together."""
    count = 0
    for pid in pids:
        with suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def memory_bytes(pids: list[int], *, enough: int) -> int:
    """The memory that the processes hold together, file pages left out.

    The first sum counts pages that forks share several times; only when it passes ``enough`` is it counted exactly.
    """
    rough = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
            rough += (int(resident) - int(shared)) * _PAGE_BYTES
    if rough <= enough:
        return rough
    exact = 0
    for pid in pids:
        with suppress(OSError):
            match = re.search(r"^Pss_Anon:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            if match is None:
                return rough
            exact += int(match[1]) * 1024
    return exact or rough


def counts_processes_per_namespace() -> bool:
    """Whether RLIMIT_NPROC counts within a user namespace (Linux 5.14), not all that the user runs anywhere."""
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return match is not None and (int(match[1]), int(match[2])) >= (5, 14)


def limits_script(limits: SandboxLimits, *, address_space: bool, processes: bool) -> str:
    """POSIX shell commands that put resource limits on the shell and on all it starts; nobody inside can raise them.

    They are set from within, since setting them on another process is a right that even root may lack in a container.
    ``address_space`` is a backstop behind the sampling of memory, well above the limit, since programs reserve more
    than they use.
    """
    commands = [
        "ulimit -c 0 || exit 125",
        f"ulimit -f {limits.disk_mb * 2_048} || exit 125",  # in blocks of 512 bytes
        f"ulimit -n {OPEN_FILES} 2>/dev/null || :",  # the machine's own limit may be lower
        "ulimit -l 64 2>/dev/null || :",
        # When the machine runs out of memory, foreign code goes first.
        "echo 1000 >/proc/self/oom_score_adj 2>/dev/null || :",
    ]
    if address_space:
        commands.append(f"ulimit -v {(4 * limits.memory_mb + 1_024) * 1_024} || exit 125")
    if processes:
        # One more than asked: the sandbox's own init. The option has two names among shells.
        commands.append(f"ulimit -u {limits.pids + 1} 2>/dev/null || ulimit -p {limits.pids + 1} || exit 125")
    return "; ".join(commands)
