"""The machines of the local E2B service: real processes in namespaces of their own, below a folder of their own.

Each has a user namespace with 65,536 ids, so that root and nobody in it are two people, and neither is anybody on this
host. That takes the right to give out ids: root's. It is no virtual machine, and holds nobody hostile by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CLONE_NEWUSER: Final = 0x10000000
IDS: Final = 65_536
FIRST_ID: Final = 10_000_000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_numbers: Final = itertools.count()
_BOX: Final = r"""set -e
mount --bind "$1" "$1"
cd "$1"; shift
mkdir -p usr proc dev etc tmp run var/lib home/user
for name in bin sbin lib lib64; do [ -e $name ] || ln -s usr/$name $name; done
mount --rbind /usr usr
[ ! -d local ] || mount --bind local usr/local
[ ! -e small ] || mount -t tmpfs -o size=64k none run
mount -t proc proc proc
mount -t tmpfs -o mode=755 none dev
for name in null zero full random urandom; do : >dev/$name; mount --bind /dev/$name dev/$name; done
ln -s /proc/self/fd dev/fd
for name in ld.so.cache alternatives; do
    [ -e /etc/$name ] || continue
    if [ -d /etc/$name ]; then mkdir -p etc/$name; else : >>etc/$name; fi
    mount --bind /etc/$name etc/$name
done
where=$1; shift
exec chroot . /bin/sh -c 'cd "$0" && exec "$@"' "$where" "$@"
"""


@dataclass
class Machine:
    """One machine, until it is killed or its time is over."""

    id: str
    asked: dict[str, Any]
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    began_at: float = field(default_factory=time.time)
    processes: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="rayloom-e2b-"))
        self._first = FIRST_ID + IDS * (next(_numbers) % 1_000)
        self.root.chmod(0o755)
        os.chown(self.root, self._first, self._first)
        self._users = _namespace(self._first)
        if self.asked["templateID"] == "loose":
            _give_away_python(self.root / "local", self._first)
        elif self.asked["templateID"] == "small":
            (self.root / "small").touch()

    @property
    def ends_at(self) -> float:
        """When it is killed, unless somebody does so before."""
        return self.began_at + float(self.asked.get("timeout", 300))

    def path(self, path: str) -> Path:
        """A file of the machine. Links lead nowhere else."""
        found = (self.root / path.lstrip("/")).resolve()
        if not found.is_relative_to(self.root.resolve()):
            raise FileNotFoundError(path)
        return found

    def write(self, path: str, data: bytes) -> None:
        """A file of root's, and the folders to it."""
        target = self.path(path)
        for folder in reversed(target.relative_to(self.root.resolve()).parents):
            place = self.root / folder
            if not place.exists():
                place.mkdir()
                os.chown(place, self._first, self._first)
        target.write_bytes(data)
        os.chown(target, self._first, self._first)

    async def start(
        self, command: list[str], env: dict[str, str], where: str, *, stdin: bool
    ) -> asyncio.subprocess.Process:
        """A process of root's, with all that it starts below it."""
        namespaces = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/unshare", *namespaces, "/bin/sh", "-c", _BOX, "sh", str(self.root), where or "/", *command),
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **env},
            preexec_fn=self._enter,
        )
        self.processes[process.pid] = process
        return process

    async def kill(self) -> None:
        """End all of it."""
        self.gone.set()
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
        if self._users >= 0:
            os.close(self._users)
            self._users = -1
        shutil.rmtree(self.root, ignore_errors=True)

    def _enter(self) -> None:
        if _LIBC.setns(self._users, CLONE_NEWUSER) != 0:
            os._exit(125)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _give_away_python(prefix: Path, owner: int) -> None:
    """An interpreter of root's that anybody may write to, as /usr/local is in E2B's own templates."""
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    assert found is not None
    asked = [found, "-I", "-S", "-c", "import os; print(os.__file__)"]
    library = Path(subprocess.check_output(asked, text=True)).parent
    unneeded = shutil.ignore_patterns("*-packages", "__pycache__", "test*", "idlelib", "ensurepip", "config-*")
    shutil.copytree(library, prefix / "lib" / library.name, ignore=unneeded)
    for each in library.parent.glob("libpython*"):
        shutil.copy2(each, prefix / "lib")
    (prefix / "bin").mkdir()
    shutil.copy2(Path(found).resolve(), prefix / "bin" / "python3")
    for place, _, names in os.walk(prefix):
        for path in (place, *(os.path.join(place, name) for name in names)):
            os.chown(path, owner, owner)
            os.chmod(path, 0o777)


def _namespace(first: int) -> int:
    """A user namespace whose ids are those of the host from ``first`` on; its descriptor."""
    (read_there, tell_here), (read_here, tell_there) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell_there, b"." if _LIBC.unshare(CLONE_NEWUSER) == 0 else b"!")
        os.read(read_there, 1)
        os._exit(0)
    try:
        if os.read(read_here, 1) != b".":
            raise OSError("this machine makes no user namespaces")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {first} {IDS}\n")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.write(tell_here, b".")
        os.waitpid(pid, 0)
        for end in (read_there, tell_here, read_here, tell_there):
            os.close(end)
