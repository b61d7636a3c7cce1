"""A stdio server as a child process of ours: started clean, spoken to over its pipes, ended with all that it started.

Like `sandbox.supervisor` it uses pidfds and the loop's readers and writers only, and no child watcher: it works in the
event loop of any thread and of any kind. (The SDK's own transport adds variables of our environment to a server's, and
can't run one as somebody else or hand it descriptors, as bubblewrap needs.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from rayloom.dag.errors import Transient
from rayloom.tools.mcp.memory import MemoryWatch
from rayloom.tools.mcp.pipes import LineReader, LineTooLong, Writer
from rayloom.tools.sandbox import processes
from rayloom.tools.sandbox.supervisor import Identity, PidFd

_log = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
STOP_S: Final = 2.0
"""How long a server may take to end by itself, first when its stdin is closed, then when it is asked to."""
LAST_WORDS_S: Final = 0.5
REAP_S: Final = 0.2
KILL_ROUNDS: Final = 10
"""So often we look for what was started meanwhile."""
PIDS: Final = 256
"""How many processes and threads a confined server may have."""
_GUARD: Final = str(Path(__file__).with_name("guard.py"))

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a server is started. ``env`` is all that it finds in its environment.

    ``memory_mb``: what it may hold with all that it starts, over which it is ended; None for as much as there is.
    """

    command: Sequence[str]
    executable: str
    env: Mapping[str, str] = field(repr=False)
    cwd: str = "/"
    pass_fds: tuple[int, ...] = ()
    identity: Identity | None = None
    memory_mb: int | None = None
    close: Callable[[], None] = lambda: None


def trusted(command: Sequence[str], env: Mapping[str, str]) -> Launch:
    """A command outside the sandbox, with the few variables that the SDK lets through and those that it was given."""
    return Launch(
        command=[sys.executable, "-I", "-S", _GUARD, str(os.getpid()), *command],
        executable=sys.executable,
        env={**get_default_environment(), **env},
    )


@asynccontextmanager
async def stdio(
    launch: Launch, *, on_stderr: Callable[[str], None], on_end: Callable[[str], None]
) -> AsyncIterator[Streams]:
    """Run a server and speak with it. Raises Transient (``MCP_START_FAILED``).

    ``on_end`` is called when it ends, with the reason where we ended it.
    """
    with ExitStack() as stack:
        process = _start(launch)
        stack.callback(_reap, process)
        pidfd = stack.enter_context(closing(PidFd(process.pid)))
        outgoing = stack.enter_context(closing(Writer(_own(process.stdin))))
        incoming = stack.enter_context(closing(LineReader(_own(process.stdout), limit=MAX_LINE_BYTES)))
        told = stack.enter_context(closing(LineReader(_own(process.stderr), limit=MAX_LINE_BYTES)))
        to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        from_session, to_server = anyio.create_memory_object_stream[SessionMessage](0)
        for end in (to_session, from_server, from_session, to_server):
            stack.callback(end.close)
        memory = None if launch.memory_mb is None else MemoryWatch(process.pid, memory_mb=launch.memory_mb, pids=PIDS)
        watching = None if memory is None else asyncio.create_task(_hold(process, memory))

        def ended() -> None:
            on_end("" if memory is None else memory.reason())

        reading = asyncio.create_task(_read(incoming, to_session, ended))
        writing = asyncio.create_task(_write(outgoing, to_server))
        listening = asyncio.create_task(_listen(told, on_stderr))
        # No await before this block: a cancellation between would leave the tasks behind.
        try:
            yield from_server, from_session
        finally:
            # What is still to be written goes out; then the server sees the end of its input.
            from_session.close()
            try:
                await asyncio.wait({writing}, timeout=LAST_WORDS_S)
                await _stopped(reading, writing)
                outgoing.close()
                await _ended(process, pidfd, watching)
                await asyncio.wait({listening}, timeout=LAST_WORDS_S)
            finally:
                for task in (reading, writing, listening, watching):
                    if task is not None:
                        task.cancel()
                await _killed(process, pidfd)
                if memory is not None:
                    await memory.close()


async def _stopped(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _own(pipe: IO[bytes] | None) -> int:
    """A descriptor of our own in the place of a file's."""
    assert pipe is not None
    with pipe:
        return os.dup(pipe.fileno())


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(launch.command),
            executable=launch.executable,
            env=dict(launch.env),
            cwd=launch.cwd,
            pass_fds=launch.pass_fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            user=launch.identity.uid if launch.identity else None,
            group=launch.identity.gid if launch.identity else None,
            extra_groups=[] if launch.identity else None,
        )
    except OSError as error:
        raise Transient("MCP_START_FAILED", f"can't start {launch.executable}: {error.strerror}") from error
    finally:
        launch.close()


async def _read(
    incoming: LineReader,
    session: MemoryObjectSendStream[SessionMessage | Exception],
    on_end: Callable[[], None],
) -> None:
    async with session:
        try:
            while line := await incoming.line():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    # Many a server prints to its stdout by mistake.
                    _log.info("mcp.not_a_message", extra={"chars": len(line)})
                    continue
                await session.send(SessionMessage(message))
        except LineTooLong:
            _log.warning("mcp.line_too_long", extra={"limit": MAX_LINE_BYTES})
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, ConnectionError):
            _log.debug("mcp.session_closed")
        finally:
            on_end()


async def _write(outgoing: Writer, session: MemoryObjectReceiveStream[SessionMessage]) -> None:
    async with session:
        try:
            async for message in session:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await outgoing.write(text.encode() + b"\n")
        except BrokenPipeError:
            _log.debug("mcp.pipe_closed")


async def _listen(told: LineReader, on_line: Callable[[str], None]) -> None:
    while True:
        try:
            line = await told.line()
        except LineTooLong:
            continue
        if not line:
            return
        on_line(line.decode("utf-8", "replace").rstrip())


async def _hold(process: subprocess.Popen[bytes], memory: MemoryWatch) -> None:
    await memory.over()
    _log.warning("mcp.memory: %s", memory.reason())
    _signal(process, signal.SIGKILL)


async def _ended(process: subprocess.Popen[bytes], pidfd: PidFd, watching: asyncio.Task[None] | None) -> None:
    """As the protocol has it: its input is closed; then it is asked to end; then it has to."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            _signal(process, number)
        if await _is_over(pidfd):
            break
    if watching is not None:
        # What it looks at by its number may be somebody else from now on.
        watching.cancel()
    process.poll()


async def _killed(process: subprocess.Popen[bytes], pidfd: PidFd) -> None:
    if process.poll() is None:
        _signal(process, signal.SIGKILL)
        if not await _is_over(pidfd):
            # It waits for a disk, or the like. Python looks for it again when it starts another one.
            _log.error("mcp.not_ended: process %d", process.pid)
        process.poll()


async def _is_over(pidfd: PidFd) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_S):
            await pidfd.ended()
            return True
    return False


def _reap(process: subprocess.Popen[bytes]) -> None:
    """What is left to do where nobody may wait any more: after an error, or a second cancellation."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    if process.poll() is None:
        _signal(process, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(REAP_S)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if number == signal.SIGKILL:
        # The signal of a group leaves out who has one of its own, and a guard that is dead ends nobody any more.
        killed = {process.pid}
        for _ in range(KILL_ROUNDS):
            left = set(processes.tree(process.pid)) - killed
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            killed |= left
            if not left:
                break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
