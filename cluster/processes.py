"""Processes of this machine as ``/proc`` shows them, and the ties between a parent and what it started."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_EXIT_CODE: Final = 49
"""Position in ``/proc/PID/stat`` behind the name. Linux shows it for a zombie, to its own user."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was seen. ``born`` tells it from a later one with the same number."""

    pid: int
    parent: int
    state: str
    born: int


def look(pid: int) -> Process | None:
    """Read one process; None when it is gone. A zombie still shows, with state Z."""
    fields = _fields(pid)
    return None if fields is None else Process(pid, int(fields[1]), fields[0], int(fields[19]))


def _fields(pid: int) -> list[str] | None:
    """Everything in ``/proc/PID/stat`` behind the name, which may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def title(pid: int) -> str:
    """The command line, as the process may have set it; empty for a zombie and for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def exit_signal(pid: int) -> int | None:
    """The signal that ended a process that its parent has not waited for yet; None where it can't be known."""
    fields = _fields(pid)
    if fields is None or fields[0] != "Z" or len(fields) <= _EXIT_CODE:
        return None
    return (int(fields[_EXIT_CODE]) & 0x7F) or None


def named(number: int | None) -> str:
    """Say by which signal a process ended, for a sentence; empty where that is unknown."""
    if number is None:
        return ""
    with suppress(ValueError):
        return f" by {signal.Signals(number).name}"
    return f" by signal {number}"


def children(pid: int) -> list[int]:
    """The children of all threads of a process."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread may end meanwhile.
        with suppress(OSError):
            found += [int(child) for child in listed.read_text().split()]
    return found


def descendants(pid: int, *, but: Collection[int] = ()) -> list[Process]:
    """Everything below a process, zombies too, without the trees that begin at ``but``."""
    by_parent: dict[int, list[Process]] = defaultdict(list)
    for each in _all():
        by_parent[each.parent].append(each)
    found: list[Process] = []
    below = [pid]
    while below:
        for each in by_parent[below.pop()]:
            if each.pid not in but:
                found.append(each)
                below.append(each.pid)
    return found


def _all() -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := look(int(entry))) is not None:
            yield found


def die_with(parent: int) -> bool:
    """Have the kernel end this process when the thread that started it ends. False: ``parent`` has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Become the parent of each descendant whose own parent ends, instead of process 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def kill(process: Process) -> None:
    """`kill -9` of this very process, if it still is there."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        now = look(process.pid)
        if now is not None and now.born == process.born:
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)


def reap(process: Process) -> None:
    """Take the exit status of an ended child, so that the kernel forgets it."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
