"""A child process under watch: started, limited, watched, and gone when we leave, whatever happens.

It uses pidfds and the running event loop's readers only: no child watcher, no signal handler, no thread, so that it
works in the event loop of any thread and of any kind.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox import processes
from rayloom.tools.sandbox.capture import Capture
from rayloom.tools.sandbox.cgroup import ControlGroup
from rayloom.tools.sandbox.sandbox import LineSink
from rayloom.tools.settings import SandboxLimits

SAMPLE_S: Final = 0.025
GRACE_S: Final = 0.25
"""A program that is over within so long never waits behind others; whatever goes on longer comes last from then on."""
STEP_BACK_AGAIN_S: Final = 1.0
LAST_WORDS_S: Final = 2.0
_NO_ROOM: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})

Verdict = Literal["exited", "timed_out", "memory", "processes", "flood", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom a child runs as, when not as ourselves."""

    uid: int
    gid: int


def cant_start(what: str, error: OSError) -> Refused | Transient:
    """The error of a program that can't be started: transient where the machine only has no room for it now."""
    if error.errno in _NO_ROOM:
        return Transient("SANDBOX_START_FAILED", f"the machine has no room for a sandbox now: {error.strerror}")
    return Refused("SANDBOX_UNAVAILABLE", f"can't start {what}: {error}")


class PidFd:
    """A process held by descriptor, so that a reused pid can't be taken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL; nothing when it is already gone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until the process ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._fd)

    def close(self) -> None:
        """Let go of the descriptor; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Child:
    """One child process: its output captured, its tree watched.

    ``root`` is the process whose death ends all the others; the child itself until ``adopt`` names another one.
    ``steps_back``: it comes last in the row for CPUs once it has run for a while.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        executable: str,
        env: Mapping[str, str],
        limits: SandboxLimits,
        on_line: LineSink,
        cwd: str = "/",
        pass_fds: Sequence[int] = (),
        identity: Identity | None = None,
        handshake: bool = False,
        steps_back: bool = True,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            executable=executable,
            env=dict(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=[] if identity else None,
        )
        self._limits = limits
        self._steps_back = steps_back
        self._pidfd = PidFd(self._process.pid)
        self._closed = False
        self._root: PidFd | None = None
        self._cgroup: ControlGroup | None = None
        self._folders: Sequence[int] = ()
        self._files_before = 0
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        keep_bytes = limits.output_kb * 1024
        self.stdout = Capture(
            os.dup(self._process.stdout.fileno()),
            keep_bytes=keep_bytes,
            on_line=lambda line: on_line("stdout", line),
            handshake=handshake,
        )
        self.stderr = Capture(
            os.dup(self._process.stderr.fileno()), keep_bytes=keep_bytes, on_line=lambda line: on_line("stderr", line)
        )
        self._process.stdout.close()
        self._process.stderr.close()

    @property
    def pid(self) -> int:
        """The pid of the child itself."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code as a shell says it (128 + signal); None while it runs."""
        code = self._process.returncode
        return 128 - code if code is not None and code < 0 else code

    def adopt(self, pid: int, cgroup: ControlGroup | None) -> None:
        """Watch and kill the tree from this process on; ``cgroup`` holds it, if any."""
        self._root = PidFd(pid)
        self._cgroup = cgroup

    def count_files(self, folders: Sequence[int]) -> None:
        """What is written in memory from now on counts as memory, where no control group counts it.

        ``folders``: where that is, by descriptors that stay open until ``close``.
        """
        self._folders, self._files_before = folders, processes.files_bytes(folders)

    async def started(self) -> bool:
        """Wait for the sign of life; False when the child ended without one."""
        alive = asyncio.ensure_future(self.stdout.ready.wait())
        ended = asyncio.ensure_future(self._pidfd.ended())
        try:
            await asyncio.wait({alive, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alive.cancel()
            ended.cancel()
            await asyncio.gather(alive, ended, return_exceptions=True)
        return self.stdout.ready.is_set()

    def release(self) -> None:
        """Let the child go on: one newline, then the end of its standard input."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
        self._process.stdin.close()

    async def watch(self) -> Verdict:
        """Wait for the end, or for a limit that is overrun; the caller kills."""
        deadline = time.monotonic() + self._limits.wall_s
        step_back_at = time.monotonic() + GRACE_S if self._steps_back else math.inf
        ended = asyncio.ensure_future(self._pidfd.ended())
        try:
            while True:
                left = deadline - time.monotonic()
                await asyncio.wait({ended}, timeout=max(min(left, SAMPLE_S), 0))
                if (overrun := self._overrun()) is not None:
                    return overrun
                if ended.done():
                    return "exited"
                if time.monotonic() >= deadline:
                    return "timed_out"
                if time.monotonic() >= step_back_at:
                    # Fifteen endless loops must not keep waiting who wants them to stop. What is forked meanwhile, and
                    # new sessions, are met the next time.
                    processes.step_back(self._root.pid if self._root else self.pid)
                    step_back_at = time.monotonic() + STEP_BACK_AGAIN_S
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def close(self, also: Callable[[], None] | None = None) -> None:
        """Kill what still runs, wait until all of it is gone, read the last output.

        Safe against cancellation, and may be called twice.
        """
        if self._closed:
            return
        self._closed = True
        self._kill()
        # Shielded: a second cancellation must not leave a half-dead tree behind.
        await asyncio.shield(asyncio.ensure_future(self._close(also)))

    def _overrun(self) -> Verdict | None:
        if self.stdout.flooded or self.stderr.flooded:
            return "flood"
        if self._cgroup is not None:
            return "memory" if self._cgroup.oom_kills() else None
        pids = processes.tree(self._root.pid if self._root else self.pid)
        enough = self._limits.memory_mb * processes.MIB
        files = max(processes.files_bytes(self._folders) - self._files_before, 0)
        if processes.memory_bytes(pids, enough=enough, files=files) > enough:
            return "memory"
        # One of them is the sandbox's own init.
        return "processes" if processes.thread_count(pids) > self._limits.pids + 1 else None

    def _kill(self) -> None:
        if self._root is not None:
            self._root.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._pidfd.kill()

    async def _close(self, also: Callable[[], None] | None) -> None:
        try:
            if self._root is not None:
                await self._root.ended()
            await self._pidfd.ended()
            self._process.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.stdout.closed.wait()
                    await self.stderr.closed.wait()
        finally:
            self.stdout.close()
            self.stderr.close()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._pidfd.close()
            if self._root is not None:
                self._root.close()
            if also is not None:
                also()
            if self._cgroup is not None:
                await self._cgroup.remove()
