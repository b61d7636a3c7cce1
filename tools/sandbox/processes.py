"""A tree of processes, seen through /proc: who belongs to it, what it uses, and the limits put on it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from rayloom.tools.settings import SandboxLimits

MIB: Final = 1024 * 1024
OPEN_FILES: Final = 1_024
NICENESS: Final = 19
"""Of what runs in a sandbox for long: the last in the row for CPUs."""


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


def memory_bytes(pids: list[int], *, enough: int, files: int = 0) -> int:
    """The memory that the processes hold together, their own and shared, pages of files on disk left out.

    The first sum counts pages that forks share several times; only when it passes ``enough`` is it counted exactly.
    ``files``: what their files in memory take, in bytes. As they may have mapped these, whichever is more counts, these
    or all that they share: never too much, but too little where they share other memory as well.
    """
    rough = {pid: _sizes(pid, "status", ("RssAnon", "RssShmem")) for pid in pids}
    held = _together(rough.values(), files)
    if held <= enough:
        return held
    exact = (_sizes(pid, "smaps_rollup", ("Pss_Anon", "Pss_Shmem")) for pid in pids)
    return _together((each if any(each) else rough[pid] for pid, each in zip(pids, exact, strict=True)), files)


def _together(sizes: Iterable[tuple[int, int]], files: int) -> int:
    """``sizes``: what each holds of its own, and shared."""
    each = list(sizes)
    return sum(own for own, _ in each) + max(sum(shared for _, shared in each), files)


def files_bytes(folders: Sequence[int]) -> int:
    """What file systems in memory take, by descriptors of folders in them, in bytes."""
    found = [os.fstatvfs(folder) for folder in folders]
    return sum((status.f_blocks - status.f_bfree) * status.f_frsize for status in found)


def _sizes(pid: int, file: str, names: tuple[str, str]) -> tuple[int, int]:
    """The two named sizes in a file of a process, in bytes; 0 when it has ended meanwhile."""
    wanted = re.compile(rf"^({'|'.join(names)}):\s+(\d+) kB", re.MULTILINE)
    sizes = dict(wanted.findall(_read(f"/proc/{pid}/{file}")))
    if not sizes:
        # The thread that a process is named after may end before the others, which hold the memory then.
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                sizes = sizes or dict(wanted.findall(_read(f"/proc/{pid}/task/{thread}/{file}")))
    own, shared = (int(sizes.get(name, 0)) * 1024 for name in names)
    return own, shared


def _read(path: str) -> str:
    # A program may give itself any name, which need be no text.
    try:
        return Path(path).read_text("latin-1")
    except OSError:
        return ""


def counts_processes_per_namespace() -> bool:
    """Whether RLIMIT_NPROC counts within a user namespace (Linux 5.14), not all that the user runs anywhere."""
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return match is not None and (int(match[1]), int(match[2])) >= (5, 14)


def resource_limits(disk_mb: int) -> dict[str, int]:
    """The limits of the system, by the names of the module ``resource``, that every program has elsewhere than here."""
    return {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": disk_mb * MIB,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_MEMLOCK": 65_536,
    }


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


def step_back(root: int) -> None:
    """Let a process and all that it has started come last in the row for CPUs.

    Each thread has its own niceness. With ``sched_autogroup_enabled`` (see sched(7)) it ranks them only within their
    session, of which a program may make more; then each session has a niceness, too. Best effort: root in a container
    may lack the right to do this to another user's process, which then is no worse off than we are, and without a right
    of its own Linux takes such a wish for a session ten times a second at most.
    """
    for pid in tree(root):
        with suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
        group = Path(f"/proc/{pid}/autogroup")
        if not _read(str(group)).rstrip().endswith(f" {NICENESS}"):
            with suppress(OSError):
                group.write_text(str(NICENESS))
