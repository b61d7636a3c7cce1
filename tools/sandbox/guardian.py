"""What watches over a program in a machine that is elsewhere: it runs there, as root, in the template's own Python.

It is for that machine what the `warden` is for a container. Its source, and that of `leftovers`, is sent there with the
order of the run; both need nothing but the standard library of 3.8. The program runs as nobody and can get no other
rights, so that it can neither signal this nor look into it. What it prints goes straight into our own streams. What is
for us alone, its end and its files, is written as frames (see `warden`) to a file that it can't reach; what we are told
comes through standard input: any byte, or its end, means to stop.

A template may let anybody write to its interpreter, so before the program begins all but its own folders is made
read-only, and whatever is needed after that has been loaded.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import hashlib
import json
import os
import re
import resource
import select
import signal
import struct
import time
from contextlib import suppress
from typing import Any

from rayloom.tools.sandbox.leftovers import Leftovers

PLACE = "/var/lib/rayloom"
CODE = "/run/code"
WORKSPACE = "/workspace"
BEGUN = b"\x06\n"
NOBODY = 65534
LOOK_S = 0.025
GONE_S = 5.0
SHM_MB = 64
INODES = 16384
MIB = 1024 * 1024
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
CLONE_NEWNS = 0x20000
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
FOLDERS = (WORKSPACE, "/tmp", "/dev/shm")
# The kernel's own places are left as they are.
AS_IT_IS = (*FOLDERS, "/proc", "/sys", "/dev")
LIBC = ctypes.CDLL(None, use_errno=True)
# What is loaded late is loaded now: those of files below /proc, of names of files, and of text.
for encoding in ("latin-1", "ascii", "utf-8"):
    codecs.lookup(encoding)


def mount(place: str, size_mb: int, mode: str) -> None:
    """A memory file system of this size, in place of whatever is there."""
    os.makedirs(place, exist_ok=True)
    options = f"size={size_mb}m,nr_inodes={INODES},{mode}"
    if LIBC.mount(b"none", place.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "can't mount " + place)


def close_files() -> None:
    """Let nothing here be written to any more but by files that are open, and in `FOLDERS`.

    Raises OSError: then nothing may run.
    """
    if LIBC.unshare(CLONE_NEWNS) != 0 or LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "can't have mounts of its own")
    with open("/proc/self/mountinfo", "rb") as file:
        named = [line.split()[4] for line in file]
    places = ["/", *(os.fsdecode(re.sub(rb"\\([0-7]{3})", _plain, name)) for name in named)]
    places = [each for each in places if not f"{each}/".startswith(tuple(f"{ours}/" for ours in AS_IT_IS))]
    # One that lies below another mount has no way to it, for the program neither.
    for place in places:
        with suppress(OSError):
            flags = os.statvfs(place).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
            LIBC.mount(None, os.fsencode(place), None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, None)
    for place in places:
        with suppress(FileNotFoundError, PermissionError):
            if not os.statvfs(place).f_flag & MS_RDONLY:
                raise OSError(errno.EROFS, "can't be made read-only", place)


def _plain(code: re.Match[bytes]) -> bytes:
    return bytes([int(code.group(1), 8)])


def write(path: str, data: bytes) -> None:
    """A file with this content."""
    with open(path, "wb") as file:
        file.write(data)


def put_files(files: list[tuple[str, int]], data: memoryview) -> dict[str, bytes]:
    """The files of the run, nobody's own, and the digest of each."""
    digests = {}
    for path, length in files:
        content, data = bytes(data[:length]), data[length:]
        digests[path] = hashlib.sha256(content).digest()
        folder = WORKSPACE
        for part in path.split("/")[:-1]:
            folder += "/" + part
            if not os.path.isdir(folder):
                os.mkdir(folder)
                os.chown(folder, NOBODY, NOBODY)
        target = WORKSPACE + "/" + path
        write(target, content)
        os.chown(target, NOBODY, NOBODY)
    return digests


def start(argv: list[str], env: dict[str, str], limits: list[tuple[int, int]]) -> int:
    """The program, as nobody; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.dup2(os.open(CODE + "/stdin", os.O_RDONLY), 0)
        os.closerange(3, 256)
        for what, most in limits:
            resource.setrlimit(what, (most, most))
        os.nice(19)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        become_nobody()
        os.chdir(WORKSPACE)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"the program can't be started: {error}\n".encode())
    finally:
        os._exit(127)


def become_nobody() -> None:
    """Give up every right, for good."""
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "can't give up new privileges")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def theirs() -> list[int]:
    """The pids of all that nobody runs."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.stat("/proc/" + name).st_uid == NOBODY:
                found.append(int(name))
    return found


def sizes(path: str, names: str) -> int:
    """The sum of the named sizes in a file of the kernel's, in bytes; 0 when its process has ended meanwhile."""
    try:
        with open(path, encoding="latin-1") as opened:
            return sum(map(int, re.findall(rf"^(?:{names}):\s+(\d+) kB", opened.read(), re.MULTILINE))) * 1024
    except OSError:
        return 0


class Memory:
    """What nobody's processes hold, together, from now on, and may hold. ``meminfo``: where the kernel counts all of
    this machine's; empty where others share that kernel, so that only files in our own folders can be counted."""

    def __init__(self, most: int, meminfo: str) -> None:
        self.most, self.meminfo = most, meminfo
        self.before = self.shared()

    def shared(self) -> int:
        """Files in memory; with the kernel's count also those without a name, and whatever else processes share."""
        if self.meminfo:
            return sizes(self.meminfo, "Shmem")
        found = [os.statvfs(folder) for folder in FOLDERS]
        return sum((status.f_blocks - status.f_bfree) * status.f_frsize for status in found)

    def is_over(self) -> bool:
        """Whether it is too much; pages that forks share count once when it comes to it."""
        room = self.most - (self.shared() - self.before)
        pids = theirs()
        if sum(sizes(f"/proc/{pid}/status", "RssAnon") for pid in pids) <= room:
            return False
        return sum(sizes(f"/proc/{pid}/smaps_rollup", "Pss_Anon") for pid in pids) > room


def kernel_count() -> str:
    """Where the kernel counts what this machine holds, if it is this machine's alone: no user namespace is around."""
    with open("/proc/self/uid_map") as file:
        return "/proc/meminfo" if file.read().split() == ["0", "0", "4294967295"] else ""


def kernel_kills() -> int:
    """How many processes the kernel has killed for memory."""
    with suppress(OSError), open("/proc/vmstat") as file:
        found = re.search(r"^oom_kill (\d+)", file.read(), re.MULTILINE)
        return int(found.group(1)) if found else 0
    return 0


def watch(program: int, memory: Memory, until: float) -> tuple[int, bool]:
    """Until it ends, has used too much memory, or is to be stopped; its exit code, and whether it was memory."""
    before = kernel_kills()
    while True:
        told = select.select([0], [], [], LOOK_S)[0]
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 137, False
            if pid == program:
                killed = os.WIFSIGNALED(status)
                code = 128 + os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
                return code, killed and code == 137 and kernel_kills() > before
            if pid == 0:
                break
        if memory.is_over():
            return 137, True
        if told or time.monotonic() > until:
            return 137, False


def end() -> None:
    """Kill all that nobody runs, and wait until it is gone."""
    until = time.monotonic() + GONE_S
    while theirs() and time.monotonic() < until:
        killer = os.fork()
        if killer == 0:
            # As nobody, in one call: who forks faster than a list is read does not escape it.
            with suppress(OSError):
                become_nobody()
                os.kill(-1, signal.SIGKILL)
            os._exit(0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0] or select.select([], [], [], 0.005)[0]:
                continue


def main() -> None:
    """One run."""
    os.chmod(PLACE, 0o700)
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.umask(0o022)
    with open(PLACE + "/order", "rb") as file:
        (length,) = struct.unpack(">I", file.read(4))
        head: dict[str, Any] = json.loads(file.read(length))
        rest = memoryview(file.read())
    disk_mb = head["disk_mb"]
    mount(WORKSPACE, disk_mb, f"mode=0755,uid={NOBODY},gid={NOBODY}")
    mount("/tmp", disk_mb, "mode=1777")
    mount("/dev/shm", min(disk_mb, SHM_MB), "mode=1777")
    os.makedirs(CODE, exist_ok=True)
    folder = os.open(WORKSPACE, os.O_DIRECTORY | os.O_RDONLY)
    with open(PLACE + "/out", "wb") as out:

        def send(letter: bytes, data: bytes) -> None:
            out.write(letter + struct.pack(">I", len(data)) + data)

        if head["hosts"]:
            with open("/etc/hosts", "a") as names:
                names.write("".join(f"\n{address} {name}" for name, address in head["hosts"]) + "\n")
        is_python = head["program"] == "python"
        main_file = CODE + ("/main.py" if is_python else "/main.sh")
        source, stdin = head["source"], head["stdin"]
        try:
            write(main_file, bytes(rest[:source]))
            write(CODE + "/stdin", bytes(rest[source : source + stdin]))
            memory = Memory(head["memory"], kernel_count())
            digests = put_files(head["files"], rest[source + stdin :])
        except OSError as error:
            send(b"n", str(error).encode())
            return
        close_files()
        argv = ["python3" if is_python else "/bin/sh", main_file]
        limits = [(getattr(resource, name), most) for name, most in head["limits"].items()]
        for stream in (1, 2):
            os.write(stream, BEGUN)
        code, oom = watch(start(argv, head["env"], limits), memory, time.monotonic() + head["until_s"])
        end()
        finds = Leftovers(send, digests, head["max_count"], head["max_bytes"])
        finds.walk(folder, "", 1)
        finds.last_word(code, oom)


if __name__ == "__main__":
    main()
