"""The first process of a container: it starts one program, tells what it prints, and brings out what it leaves.

Its source, and that of `leftovers`, is handed to the image's own Python: both need nothing but the standard library
of 3.8. The program runs as the same user, but can neither signal it (the kernel protects the first process of a
namespace from the others), nor look into it or trace it (it can't be dumped), nor write to its streams.

An interpreter is started beforehand. It waits for its program in a named pipe, and finds it there as if it were a file;
before the first line runs the pipe has become a plain file, for tracebacks to read.

What goes through its streams are frames: a letter, a length in four bytes, so many bytes. When its standard input ends
whoever asked for the run is gone: it kills everything and ends, and the engine removes the container.
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
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from rayloom.tools.sandbox.leftovers import Leftovers

CODE = "/run/code"
WORKSPACE = "/workspace"
CHUNK = 65536
LOOK_S = 0.025
START_S = 15.0
PR_SET_DUMPABLE = 4
OOM_COUNTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
ODD_ENCODING = re.compile(rb"^[ \t\f]*#.*?coding[:=](?![ \t]*utf-?8\b)", re.IGNORECASE | re.MULTILINE)


def send(letter: bytes, data: bytes) -> None:
    """One frame to whoever asked for the run."""
    rest = memoryview(letter + struct.pack(">I", len(data)) + data)
    while rest:
        rest = rest[os.write(1, rest) :]


def receive(length: int) -> bytes:
    """So many bytes, or the end of it all."""
    data = bytearray()
    while len(data) < length:
        more = os.read(0, min(length - len(data), 1 << 20))
        if not more:
            gone()
        data += more
    return bytes(data)


def gone() -> NoReturn:
    """Nobody is there any more."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    os._exit(0)


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for memory."""
    for path in OOM_COUNTS:
        try:
            with open(path) as file:
                found = re.search(r"^oom_kill (\d+)", file.read(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found.group(1))
    return 0


class Program:
    """The program, or the interpreter that will become it."""

    def __init__(self, argv: list[str], env: dict[str, str], limits: list[tuple[int, int]]) -> None:
        out, out_in = os.pipe()
        err, err_in = os.pipe()
        self.outputs = {out: b"o", err: b"e"}
        self.pid = os.fork()
        if self.pid == 0:
            try:
                become(argv, env, limits, out_in, err_in)
            finally:
                os._exit(127)
        os.close(out_in)
        os.close(err_in)

    def relay(self, readable: list[int]) -> None:
        """Tell what it printed."""
        for pipe in readable:
            letter = self.outputs.get(pipe)
            if letter is None:
                continue
            data = os.read(pipe, CHUNK)
            if data:
                send(letter, data)
            else:
                del self.outputs[pipe]
                os.close(pipe)


def become(argv: list[str], env: dict[str, str], limits: list[tuple[int, int]], out: int, err: int) -> None:
    """In the child: give up what is the warden's, take the limits, and be the program."""
    os.setsid()
    for number in (signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.dup2(os.open(CODE + "/stdin", os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, 256)
    for what, most in limits:
        resource.setrlimit(what, (most, most))
    os.nice(19)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    os.chdir(WORKSPACE)
    os.execvpe(argv[0], argv, env)


def write(path: str, data: bytes) -> None:
    """A file with this content."""
    with open(path, "wb") as file:
        file.write(data)


def put_files(files: list[tuple[str, int]]) -> dict[str, bytes]:
    """The files of the run, and the digest of each."""
    digests = {}
    for path, length in files:
        data = receive(length)
        digests[path] = hashlib.sha256(data).digest()
        target = os.path.join(WORKSPACE, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write(target, data)
    return digests


def wake(program: Program, source: bytes) -> bool:
    """Let the waiting interpreter have its program; whether it took it."""
    write(CODE + "/next", source)
    until = time.monotonic() + START_S
    pipe = -1
    while pipe < 0:
        try:
            pipe = os.open(CODE + "/main.py", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # it has not come to the pipe yet
            if time.monotonic() > until or os.waitpid(program.pid, os.WNOHANG)[0]:
                return False
            select.select([], [], [], 0.001)
    os.rename(CODE + "/next", CODE + "/main.py")
    os.set_blocking(pipe, True)
    rest = memoryview(source)
    while rest:
        rest = rest[os.write(pipe, rest) :]
    os.close(pipe)
    return True


def watch(program: Program, woken: int) -> tuple[int, bool]:
    """Until it ends, has used too much memory, or is to be stopped; its exit code, and whether it was memory."""
    before = oom_kills()
    code = None
    while code is None:
        readable, _, _ = select.select([0, woken, *program.outputs], [], [], LOOK_S)
        if woken in readable:
            os.read(woken, CHUNK)
        program.relay(readable)
        if oom_kills() > before:
            return 137, True
        if 0 in readable:
            receive(1)
            return 137, False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == program.pid:
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, oom_kills() > before and code == 137


def end(program: Program) -> None:
    """Kill all that is left, wait until it is gone, tell its last words."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
        except InterruptedError:
            continue
    while program.outputs:
        readable, _, _ = select.select(list(program.outputs), [], [], 1.0)
        if not readable:
            break
        program.relay(readable)


def main() -> None:
    """One run."""
    start: dict[str, Any] = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 or os.getpid() != 1:
        sys.exit("it is not the first process of its own, or can't be protected")
    woken, wakes = os.pipe()
    for pipe in (woken, wakes):
        os.set_blocking(pipe, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    os.umask(0o022)
    folder = os.open(WORKSPACE, os.O_DIRECTORY | os.O_RDONLY)
    write(CODE + "/stdin", b"")
    os.mkfifo(CODE + "/main.py", 0o644)
    limits = [(getattr(resource, name), most) for name, most in start["limits"].items()]
    program = Program(["python3", CODE + "/main.py"], start["env"], limits)
    send(b"r", b"")
    if not select.select([0], [], [], start["lifetime_s"])[0]:
        gone()
    ask = json.loads(receive(struct.unpack(">I", receive(4))[0]))
    source, given = receive(ask["source"]), receive(ask["stdin"])
    try:
        digests = put_files(ask["files"])
        write(CODE + "/stdin", given)
        head = b"\n".join(source.split(b"\n", 2)[:2])
        wrapper = start["wrapper"]
        if wrapper or ask["program"] != "python" or ODD_ENCODING.search(head) or not wake(program, source):
            end(program)
            # Nobody reads the pipe any more: who opened it would wait for ever.
            os.unlink(CODE + "/main.py")
            is_python = ask["program"] == "python"
            main_file = CODE + ("/program.py" if is_python else "/main.sh")
            write(main_file, source)
            program = Program([*wrapper, "python3" if is_python else "/bin/sh", main_file], start["env"], limits)
    except OSError as error:
        send(b"n", str(error).encode())
        return
    send(b"b", b"")
    code, oom = watch(program, woken)
    end(program)
    finds = Leftovers(send, digests, ask["max_count"], ask["max_bytes"])
    finds.walk(folder, "", 1)
    finds.last_word(code, oom)


if __name__ == "__main__":
    main()
