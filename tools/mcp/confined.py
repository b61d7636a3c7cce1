"""A stdio server in a bubblewrap sandbox of its own, for as long as its session lasts.

The same walls as around a program that a task brings (`sandbox.bubblewrap`): namespaces of its own, no network but its
own loopback, a read-only root of the system's folders, no capabilities, the system-call filter, memory file systems of
limited size for /workspace and /tmp, an empty environment but for what it was given. It sees its own program with its
libraries, and the folders that it was registered with as ``readable``. What differs: it has no clock, and runs
as long as it is registered; its files are gone when it ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from rayloom.dag.errors import Refused, UserError
from rayloom.tools.mcp.stdio import PIDS, Launch
from rayloom.tools.sandbox import processes
from rayloom.tools.sandbox.cgroup import sweep
from rayloom.tools.sandbox.host import Host, find_host
from rayloom.tools.sandbox.sandbox import PATH
from rayloom.tools.sandbox.walls import Walls
from rayloom.tools.settings import SandboxLimits

DISK_MB: Final = 256
SHEBANG_BYTES: Final = 512
_ENVIRONMENT: Final = {"HOME": "/workspace", "LANG": "C.UTF-8", "PATH": PATH, "TMPDIR": "/tmp"}
_NEVER: Final = ("dev", "proc", "run", "sys", "workspace")
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


async def confined(
    command: Sequence[str], env: Mapping[str, str], readable: Sequence[str], *, memory_mb: int
) -> Launch:
    """A command inside the sandbox.

    Raises Refused (``SANDBOX_UNAVAILABLE``), Transient (``SANDBOX_START_FAILED``), UserError (``MCP_INVALID``).
    """
    program = _found(command[0])
    # Looked up once more: what was a folder then may be a link now.
    real = await asyncio.to_thread(lambda: {folder: _real(folder, strict=True) for folder in readable})
    shown = {**{folder: folder for folder in _needed(program)}, **real}
    with ExitStack() as stack:
        host = await _found_host(list(shown.values()))
        for fd in host.pass_fds:
            stack.callback(os.close, fd)
        walls = Walls(host, stack, home=_ENVIRONMENT["HOME"], disk_mb=DISK_MB, shm_mb=DISK_MB)
        for place, folder in shown.items():
            walls.show(folder, place)
        words = walls.closed({**_ENVIRONMENT, **env})
        # By descriptor: everybody on this machine may read the arguments of a process, and these hold secrets.
        words_fd = walls.handed(b"\0".join(os.fsencode(word) for word in words) + b"\0")
        return Launch(
            command=["bwrap", "--args", words_fd, "--", "/bin/sh", "-c", _limited(), "sh", program, *command[1:]],
            executable=host.executable,
            env=host.env,
            pass_fds=(*walls.fds, *host.pass_fds),
            identity=host.identity,
            memory_mb=memory_mb,
            close=stack.pop_all().close,
        )


def _limited() -> str:
    """A shell's script that becomes the program, with its number of processes and files limited."""
    # Not the address space: Node reserves far more of it than it ever uses.
    limits = processes.limits_script(
        SandboxLimits(pids=PIDS, disk_mb=DISK_MB),
        address_space=False,
        processes=processes.counts_processes_per_namespace(),
    )
    return f'{limits}; exec "$@"'


def check_readable(folders: Sequence[str]) -> None:
    """Raise UserError (``MCP_INVALID``) for what can't be shown to a confined server."""
    for folder in folders:
        # One that is not there now may be when the server is started: then this is asked again.
        _real(folder, strict=False)


def _real(folder: str, *, strict: bool) -> str:
    """Where a folder really is, whatever links lead there. Raises UserError (``MCP_INVALID``)."""
    path = Path(folder)
    refused = UserError("MCP_INVALID", f"readable: {folder!r} can't be shown to a server in the sandbox")
    if not path.is_absolute() or ".." in path.parts or _is_forbidden(path):
        raise refused
    try:
        try:
            real = path.resolve(strict=True)
        except FileNotFoundError:
            if strict:
                raise
            real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # A circle of links raises RuntimeError before Python 3.13; a name that no file can have raises ValueError.
        raise UserError("MCP_INVALID", f"readable: {folder!r} can't be found: {error}") from error
    if _is_forbidden(real):
        raise refused
    return str(real)


def _is_forbidden(path: Path) -> bool:
    return len(path.parts) < 2 or path.parts[1] in _NEVER


async def _found_host(shown: Sequence[str]) -> Host:
    looking = asyncio.ensure_future(asyncio.to_thread(_host, shown))
    try:
        return await asyncio.shield(looking)
    except asyncio.CancelledError:
        # A thread goes on to its end, and what it opens then is nobody's.
        looking.add_done_callback(
            lambda found: None if found.cancelled() or found.exception() else _close(found.result())
        )
        raise


def _close(host: Host) -> None:
    for fd in host.pass_fds:
        os.close(fd)


def _host(shown: Sequence[str]) -> Host:
    """The best way to start bwrap here that may read what has to be shown."""
    # Of lives before this one, which could not do it themselves.
    sweep()
    reasons: list[str] = []
    for host in find_host(reasons):
        if host.identity is None or all(_is_open(Path(folder)) for folder in shown):
            return host
        _close(host)
    raise Refused(
        "SANDBOX_UNAVAILABLE",
        f"bubblewrap can't run on this machine: {'; '.join(reasons)}; a server runs outside it with trusted: true",
    )


def _is_open(folder: Path) -> bool:
    """Whether anybody may enter a folder and all above it."""
    with suppress(OSError):
        real = folder.resolve(strict=True)
        return all(each.stat().st_mode & stat.S_IXOTH for each in (real, *real.parents) if each.is_dir())
    return False


def _found(program: str) -> str:
    found = shutil.which(program, path=PATH)
    if found is None:
        raise Refused("SANDBOX_UNAVAILABLE", f"there is no program {program!r} here")
    return str(Path(found).absolute())


def _needed(program: str) -> Iterator[str]:
    """What a program needs to run, beside the system's folders: itself, its libraries, and what interprets it."""
    for file in _chain(Path(program)):
        prefix = file.parent.parent if file.parent.name in ("bin", ".bin") else None
        # Never more than that: the folder that a program lies in may be somebody's home.
        shown = prefix if prefix is not None and _is_installation(prefix) else file
        if not any(shown.is_relative_to(folder) for folder in _SYSTEM):
            yield str(shown)


def _is_installation(prefix: Path) -> bool:
    """Whether a folder holds what was installed together: a Python, a virtual environment, a Node, modules of Node."""
    return (
        prefix.name == "node_modules"
        or (prefix / "pyvenv.cfg").exists()
        or (prefix / "lib" / "node_modules").exists()
        or any((prefix / "lib").glob("python3*"))
    )


def _chain(file: Path) -> Iterator[Path]:
    """A program, what it is a link to, and what its first line says that runs it."""
    for _ in range(16):
        yield file
        if file.is_symlink():
            file = Path(os.path.normpath(file.parent / os.readlink(file)))
            continue
        with suppress(OSError), file.open("rb") as opened:
            first = opened.read(SHEBANG_BYTES).partition(b"\n")[0]
            if first.startswith(b"#!") and (words := first[2:].split()):
                file = Path(words[0].decode("utf-8", "surrogateescape"))
                continue
        return
