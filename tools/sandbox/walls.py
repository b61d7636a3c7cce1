"""The walls of bubblewrap that every sandbox of ours stands behind: the arguments of bwrap, in the order that it wants.

Namespaces of its own, no network but its own loopback, a read-only root of the system's folders, no capabilities, no
further user namespaces, the system-call filter, memory file systems of limited size, an empty environment but for what
it is given.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Final

from rayloom.tools.sandbox import seccomp
from rayloom.tools.sandbox.host import Host
from rayloom.tools.sandbox.processes import MIB

UID: Final = 65534
MEMORY_FOLDERS: Final = ("/workspace", "/tmp", "/dev/shm")
"""The memory file systems of a sandbox."""


class Walls:
    """The arguments of bwrap for one sandbox, as they are put together. ``fds``: the descriptors that they name.

    ``home``: of the only account inside; ``shm_mb`` and ``disk_mb``: how large /dev/shm, and each of /tmp and
    /workspace, may become. Descriptors are closed with ``stack``.
    """

    def __init__(self, host: Host, stack: ExitStack, *, home: str, disk_mb: int, shm_mb: int) -> None:
        self._stack = stack
        self.fds: list[int] = []
        self._words = [
            *("--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
            *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
            *("--uid", str(UID), "--gid", str(UID), "--hostname", "sandbox"),
            *host.root,
            # bwrap's init runs as the program does: who may write its memory can make it outlive us.
            *("--proc", "/proc", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1", "--dev", "/dev"),
        ]
        for size_mb, place in zip((disk_mb, disk_mb, shm_mb), MEMORY_FOLDERS, strict=True):
            self._words += ["--size", str(size_mb * MIB), "--tmpfs", place]
        self._words += ["--remount-ro", "/dev"]
        self.put("/etc/passwd", f"sandbox:x:{UID}:{UID}:sandbox:{home}:/bin/sh\n".encode())
        self.put("/etc/group", f"sandbox:x:{UID}:\n".encode())
        self.put("/etc/hosts", b"127.0.0.1 localhost sandbox\n::1 localhost\n")

    def put(self, place: str, data: bytes, mode: str = "0444") -> None:
        """A file inside."""
        self._words += ["--perms", mode, "--file", self.handed(data), place]

    def show(self, folder: str, place: str) -> None:
        """A folder of the host, read-only."""
        self._words += ["--ro-bind", folder, place]

    def add(self, *words: str) -> None:
        """Arguments of bwrap as they are."""
        self._words += words

    def handed(self, data: bytes) -> str:
        """The number of a descriptor that bwrap is handed, to read these data from."""
        fd = os.memfd_create("rayloom", os.MFD_CLOEXEC)
        self._stack.callback(os.close, fd)
        with suppress(BrokenPipeError), os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        self.fds.append(fd)
        return str(fd)

    def closed(self, environment: Mapping[str, str]) -> list[str]:
        """All arguments: with the environment, and nothing that can be changed any more. Called once, at the end."""
        for name, value in environment.items():
            self._words += ["--setenv", name, value]
        self._words += ["--chdir", "/workspace", "--remount-ro", "/"]
        if (rules := seccomp.deny_list(platform.machine())) is not None:
            self._words += ["--seccomp", self.handed(rules)]
        return self._words
