"""What watches over a program in a machine that is elsewhere: it runs there, as root, in the template's own Python.

It is for that machine what the `warden` is for a container. Its source, and that of `leftovers`, is sent there with the
order of the run; both need nothing but the standard library of 3.8. The program runs as nobody and can get no other
rights, so that it can neither signal this nor look into it. What it prints goes straight into our own streams. What is
for us alone, its end and its files, is written as frames (see `warden`) to a file that it can't reach; what we are told
comes through standard input: any byte, or its end, means to stop.
"""

from __future__ import annotations

import ctypes
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
MS_NOSUID, MS_NODEV = 2, 4
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
FOLDERS = (WORKSPACE, "/tmp", "/dev/shm")
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(place: str, size_mb: int, mode: str) -> None:
    """A memory file system of this size, in place of whatever is there."""
    os.makedirs(place, exist_ok=True)
    options = f"size={size_mb}m,nr_inodes={INODES},{mode}"
    if LIBC.mount(b"none", place.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "can't mount " + place)


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


def sizes(pid: int, file: str, names: str) -> int:
    """The sum of the named sizes in a file of a process, in bytes; 0 when it has ended meanwhile."""
    try:
        with open(f"/proc/{pid}/{file}", encoding="latin-1") as opened:
            return sum(map(int, re.findall(rf"^(?:{names}):\s+(\d+) kB", opened.read(), re.MULTILINE))) * 1024
    except OSError:
        return 0


def memory_bytes(enough: int) -> int:
    """What nobody's processes and files in memory hold; pages that forks share count once when it comes to it."""
    files = 0
    for folder in FOLDERS:
        status = os.statvfs(folder)
        files += (status.f_blocks - status.f_bfree) * status.f_frsize
    pids = theirs()
    rough = sum(sizes(pid, "status", "RssAnon") for pid in pids)
    if files + rough > enough:
        rough = sum(sizes(pid, "smaps_rollup", "Pss_Anon") for pid in pids)
    return files + rough


def kernel_kills() -> int:
    """How many processes the kernel has killed for memory."""
    with suppress(OSError), open("/proc/vmstat") as file:
        found = re.search(r"^oom_kill (\d+)", file.read(), re.MULTILINE)
        return int(found.group(1)) if found else 0
    return 0


def watch(program: int, memory: int, until: float) -> tuple[int, bool]:
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
        if memory_bytes(memory) > memory:
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
        write(main_file, bytes(rest[:source]))
        write(CODE + "/stdin", bytes(rest[source : source + stdin]))
        try:
            digests = put_files(head["files"], rest[source + stdin :])
        except OSError as error:
            send(b"n", str(error).encode())
            return
        argv = ["python3" if is_python else "/bin/sh", main_file]
        limits = [(getattr(resource, name), most) for name, most in head["limits"].items()]
        for stream in (1, 2):
            os.write(stream, BEGUN)
        code, oom = watch(start(argv, head["env"], limits), head["memory"], time.monotonic() + head["until_s"])
        end()
        finds = Leftovers(send, digests, head["max_count"], head["max_bytes"])
        finds.walk(folder, "", 1)
        left_out = {"count": len(finds.left_out), "first": [path[:200] for path in finds.left_out[:1]]}
        send(b"x", json.dumps({"exit_code": code, "oom": oom, "left_out": left_out}).encode())


if __name__ == "__main__":
    main()
