"""python.run and shell.run in the bubblewrap sandbox, by friends and by enemies, as whoever runs the tests."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.sandbox import processes
from rayloom.tools.sandbox.cgroup import ControlGroup
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.sandbox.select import sandbox_for
from rayloom.tools.settings import SandboxLimits
from tests.unit.tools.context import KeptLog, make_context


def _ours() -> dict[str, int]:
    """What a run could leave behind: children, open descriptors, control groups."""
    groups = [path for mount in ("memory", "pids", "") for path in Path("/sys/fs/cgroup", mount).glob("**/rayloom-*")]
    return {
        "children": len(processes.tree(os.getpid())) - 1,
        "descriptors": sum(_is_of_a_run(descriptor) for descriptor in os.listdir("/proc/self/fd")),
        "groups": len([path for path in groups if path.name.startswith(f"rayloom-{os.getpid()}-")]),
    }


def _is_of_a_run(descriptor: str) -> bool:
    """Whether a descriptor is of a kind that a run opens. Fixtures of the session open sockets and files meanwhile."""
    try:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return False
    return target.startswith(("pipe:", "anon_inode:[pidfd]", "/memfd:", "/sys/fs/cgroup", "/proc/"))


@pytest.fixture(autouse=True)
async def _probed() -> None:
    report = await sandbox_for("auto").probe()
    assert report.isolated


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(_probed: None) -> Iterator[None]:
    before = _ours()
    yield
    assert _ours() == before


async def run(tool: str = "python.run", *, log: KeptLog | None = None, **input: Json) -> Any:
    return (await call_tool(BUILTINS[tool], dict(input), make_context(log=log))).output


async def test_a_program_prints_reads_and_writes() -> None:
    log = KeptLog()
    output = await run(
        log=log,
        code="import sys, helper\nprint(helper.x, sys.stdin.read())\nprint('oops', file=sys.stderr)\n"
        "open('out/plot.png', 'wb').write(b'\\x89PNG')\nopen('data.bin', 'ab').write(b'!')",
        stdin="given",
        files={
            "helper.py": "x = 'imported'",
            "out/keep": "",
            "data.bin": {"base64": base64.b64encode(b"\xff").decode()},
        },
    )
    assert isinstance(output.pop("duration_ms"), int)
    assert output == {
        "exit_code": 0,
        "stdout": "imported given\n",
        "stderr": "oops\n",
        "truncated": False,
        "timed_out": False,
        "oom": False,
        "backend": "bubblewrap",
        "files": {
            "data.bin": {"base64": "/yE=", "size": 2, "media_type": "application/octet-stream"},
            "out/plot.png": {"base64": "iVBORw==", "size": 4, "media_type": "image/png"},
        },
    }
    assert sorted(log.lines) == [("stderr", "oops"), ("stdout", "imported given")]


async def test_a_shell_command_has_the_usual_tools() -> None:
    output = await run("shell.run", command="printf 'b\\na\\n' | sort | awk '{print NR $1}' >x; cat x; exit 3")
    assert (output["exit_code"], output["stdout"]) == (3, "1a\n2b\n")


async def test_an_exception_is_a_result_with_its_traceback() -> None:
    output = await run(code="def f():\n    1 / 0\nf()")
    assert output["exit_code"] == 1
    assert "line 2, in f" in output["stderr"]


async def test_output_is_streamed_while_the_program_runs() -> None:
    log = KeptLog()
    running = asyncio.ensure_future(run(log=log, code="print('first')\nwhile True: pass"))
    await log.spoke.wait()
    assert log.lines == [("stdout", "first")]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_cancelled_run_is_gone_at_once() -> None:
    log = KeptLog()
    running = asyncio.ensure_future(
        run("shell.run", log=log, command="trap '' TERM INT HUP; setsid sleep 1000 & echo up; sleep 1000")
    )
    await log.spoke.wait()
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - began < 2


async def test_the_wall_clock_ends_what_does_not_end_itself() -> None:
    output = await run(
        code="import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass", limits={"wall_s": 0.3}
    )
    assert (output["timed_out"], output["exit_code"], output["oom"]) == (True, 137, False)
    assert 300 <= output["duration_ms"] < 2_000


async def test_a_process_left_in_the_background_does_not_outlive_the_program() -> None:
    output = await run("shell.run", command="setsid sleep 1000 >/dev/null 2>&1 & echo done")
    assert (output["stdout"], output["timed_out"]) == ("done\n", False)


async def test_many_at_once() -> None:
    outputs = await asyncio.gather(*(run(code=f"print({n})") for n in range(8)))
    assert [output["stdout"] for output in outputs] == [f"{n}\n" for n in range(8)]


def test_it_works_in_an_event_loop_of_any_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(run(code="print(1)"))))
    thread.start()
    thread.join()
    assert found[0]["stdout"] == "1\n"


# ---- enemies


async def test_a_fork_bomb_stays_within_its_processes() -> None:
    output = await run(
        code="import os, time\nn = 0\ntry:\n    while True:\n"
        "        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except OSError: print(n)",
        limits={"pids": 24},
    )
    assert output["oom"] is False
    assert output["exit_code"] == 137 or int(output["stdout"]) <= 24


async def test_a_fork_bomb_that_never_stops_is_stopped() -> None:
    output = await run("shell.run", command="f() { f | f & }; f; sleep 60", limits={"pids": 24, "wall_s": 1})
    assert output["exit_code"] != 0


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(400 << 20)\nimport time; time.sleep(9)",
        "x = []\nwhile True: x.append('y' * 1_000_000 + str(len(x)))",
    ],
)
async def test_a_memory_hog_is_killed_for_its_memory(code: str) -> None:
    output = await run(code=code, limits={"memory_mb": 128})
    assert (output["oom"], output["exit_code"]) == (True, 137)


@pytest.mark.parametrize(
    "code",
    [
        "import mmap, time\nx = mmap.mmap(-1, 400 << 20)\nx.write(bytes([1]) * (400 << 20))\ntime.sleep(60)",
        "import ctypes, threading, time\ndef f(): x = b'x' * (400 << 20); time.sleep(60)\n"
        "threading.Thread(target=f).start()\nctypes.CDLL(None).pthread_exit(None)",
    ],
    ids=["shared", "held by a thread that outlives the first"],
)
async def test_memory_is_found_where_it_can_only_be_sampled(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ControlGroup, "create", lambda _limits: None)
    output = await run(code=code, limits={"memory_mb": 128, "wall_s": 60})
    assert (output["oom"], output["exit_code"]) == (True, 137)


async def test_the_usual_ways_to_share_memory_work() -> None:
    output = await run(
        code="import concurrent.futures, ctypes, mmap, multiprocessing as m\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "def fill(name, value):\n    s = SharedMemory(name); s.buf[0] = value.value; s.close()\n"
        "s = SharedMemory(create=True, size=9)\np = m.Process(target=fill, args=(s.name, m.Value('i', 7)))\n"
        "p.start(); p.join(); print(s.buf[0]); s.close(); s.unlink()\n"
        "with concurrent.futures.ProcessPoolExecutor(2) as pool: print(*pool.map(abs, [-1, -2]))\n"
        "print(m.Manager().list([3])[0], ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 4)(), mmap.mmap(-1, 9)[0])"
    )
    assert (output["stdout"], output["stderr"]) == ("7\n1 2\n3 4 0\n", "")


async def test_memory_that_nobody_would_count_is_not_to_be_had() -> None:
    output = await run(
        code="import ctypes, os\ntry: os.memfd_create('x')\nexcept OSError as e: print(e.errno)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, args in (('shmget', (0, 1 << 20, 0o1666)), ('msgget', (0, 0o1666))):\n"
        "    print(libc[name](*args), ctypes.get_errno())"
    )
    assert output["stdout"].splitlines() == ["1", "-1 1", "-1 1"]


async def test_memory_is_counted_over_all_processes() -> None:
    code = "import os, time\nfor n in range(8): os.fork()\nx = bytearray(range(256)) * 40_000\ntime.sleep(9)"
    output = await run(code=code.replace("range(8)", "range(4)"), limits={"memory_mb": 96})
    assert output["oom"] is True


@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/dev/shm"])
async def test_a_disk_hog_meets_the_end_of_its_disk(place: str) -> None:
    code = (
        f"import os\nwritten = 0\ntry:\n    for n in range(64):\n        with open('{place}/' + str(n), 'wb') as f:\n"
        "            f.write(bytes(1 << 20))\n            written += 1\n"
        "except OSError as error: print(written, error.errno)"
    )
    output = await run(code=code, limits={"disk_mb": 8, "memory_mb": 512})
    written, errno = map(int, output["stdout"].split())
    assert written <= 8
    assert errno == 28


async def test_files_that_do_not_fit_are_their_author_s_fault() -> None:
    """Should the tool have counted wrongly, bwrap itself meets the end of the disk."""
    limits = SandboxLimits(disk_mb=1)
    spec = RunSpec(program="shell", source=b"", limits=limits, files={"a": b"x" * (1 << 20), "b": b"x"})
    with pytest.raises(UserError) as error:
        await sandbox_for("auto").run(spec)
    assert error.value.code == "FILES_TOO_LARGE"
    full: Json = {str(n): "x" for n in range(256)}
    assert (await run(code="print(1)", files=full, limits={"disk_mb": 1}))["stdout"] == "1\n"


async def test_output_without_end_is_cut_and_stopped() -> None:
    output = await run("shell.run", command="yes", limits={"output_kb": 16, "wall_s": 20})
    assert (output["truncated"], output["exit_code"]) == (True, 137)
    assert len(output["stdout"]) == 16 * 1024
    assert "printed without end" in output["stderr"]


async def test_nothing_of_ours_shows_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLOOM_SECRET_KEY", "do-not-tell")
    output = await run("shell.run", command="env; cat /proc/*/environ /proc/*/cmdline; echo; ls /proc/self/fd")
    assert "do-not-tell" not in output["stdout"]
    assert str(Path.home()) + "/" not in output["stdout"].replace("/proc", "")
    assert output["stdout"].split()[-4:] == ["0", "1", "2", "3"]


async def test_the_host_is_not_to_be_seen() -> None:
    output = await run(
        code="import os\nprint(*sorted(os.listdir('/')))\nprint(os.getuid(), os.getpid() < 10, os.uname().nodename)\n"
        "paths = ('/root', '/home', '/work', '/etc/shadow', '/etc/hostname', '/var', '/sys')\n"
        "print([path for path in paths if os.path.exists(path)])\n"
        "s = open('/proc/self/status').read()\n"
        "print([l.split()[1] for l in s.splitlines() if l.startswith(('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp:'))])"
    )
    names, first, second, third = output["stdout"].splitlines()
    assert set(names.split()) <= {
        *("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "tmp", "usr", "workspace"),
    }
    assert first == "65534 True sandbox"
    assert second == "[]"
    assert third == "['0000000000000000', '0000000000000000', '1', '2']"


@pytest.mark.parametrize("path", ["/x", "/usr/x", "/etc/x", "/dev/x", "/run/code/x", "/proc/sys/kernel/core_pattern"])
async def test_nothing_outside_the_workspace_can_be_written(path: str) -> None:
    output = await run(code=f"open({path!r}, 'w').write('x')")
    assert output["exit_code"] == 1
    assert "Error" in output["stderr"]


async def test_links_in_the_outputs_lead_nowhere() -> None:
    output = await run(
        "shell.run",
        command="ln -s /etc/passwd a; ln -s / b; ln -s ../../../../etc c; mkfifo d; ln -s e e; ln /usr/bin/env f; "
        "mkdir g; ln -s /etc/passwd g/h; echo real >i; chmod 000 i; mkdir -m 000 j",
    )
    assert list(output["files"]) == ["i"]
    assert base64.b64decode(output["files"]["i"]["base64"]) == b"real\n"


async def test_a_workspace_swapped_for_a_link_is_not_followed() -> None:
    output = await run(
        "shell.run", command="cd /; rm -rf /workspace; mv /workspace /tmp/w; ln -s /etc /workspace; true"
    )
    assert output["files"] == {}


async def test_signals_reach_nobody_outside() -> None:
    output = await run(
        code="import os, signal\nprint(os.getppid())\n"
        "for pid in (1, os.getppid(), -1):\n    try: os.kill(pid, signal.SIGKILL)\n    except OSError as e: print(e)\n"
        f"try: os.kill({os.getpid()}, 0)\nexcept OSError as e: print('gone', e.errno)"
    )
    assert "gone 3" in output["stdout"]


async def test_the_memory_of_the_sandbox_s_own_init_is_out_of_reach() -> None:
    output = await run(
        code="import os\nprint(os.listdir('/proc/1'), os.path.exists(f'/proc/{os.getpid()}/mem'))\n"
        "for path in ('/proc/1/mem', '/proc/1/task/1/mem', '/proc/self/../1/mem'):\n"
        "    try: open(path, 'r+b'); print('OPENED', path)\n"
        "    except OSError as e: print(type(e).__name__)"
    )
    assert output["stdout"].splitlines() == ["[] True", *["FileNotFoundError"] * 3]


async def test_there_is_no_network_but_its_own_loopback() -> None:
    listener = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        output = await run(
            code="import socket\nprint([name for _, name in socket.if_nameindex()])\n"
            f"for address in (('127.0.0.1', {port}), ('1.1.1.1', 53), ('169.254.169.254', 80)):\n"
            "    try: socket.create_connection(address, 1); print('REACHED', address)\n"
            "    except OSError as e: print(type(e).__name__)\n"
            "vsock = (40, socket.SOCK_STREAM)\n"
            "for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), vsock, (socket.AF_INET, socket.SOCK_RAW)):\n"
            "    try: socket.socket(family, kind); print('OPENED', family)\n"
            "    except OSError: print('refused')\n"
        )
    finally:
        listener.close()
        await listener.wait_closed()
    assert output["stdout"].splitlines()[0] == "['lo']"
    assert "REACHED" not in output["stdout"]
    assert "OPENED" not in output["stdout"]


async def test_the_kernel_is_kept_away() -> None:
    output = await run(
        code="import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, args in (('unshare', (0x10000000,)), ('unshare', (0x20000,)), ('ptrace', (0, 0, 0, 0)),\n"
        "                   ('mount', (b'none', b'/tmp', b'tmpfs', 0, None)), ('setns', (0, 0)),\n"
        "                   ('chroot', (b'/tmp',)),\n"
        "                   ('sethostname', (b'x', 1)), ('personality', (0xffffffff,))):\n"
        "    print(name, libc[name](*args), errno.errorcode.get(ctypes.get_errno()))"
    )
    assert [line.split(" ", 1)[1] for line in output["stdout"].splitlines()] == ["-1 EPERM"] * 8


async def test_limits_cannot_be_raised_from_within() -> None:
    output = await run(
        code="import resource as r\nfor what in (r.RLIMIT_FSIZE, r.RLIMIT_CORE, r.RLIMIT_AS):\n"
        "    try: r.setrlimit(what, (r.RLIM_INFINITY, r.RLIM_INFINITY)); print('RAISED')\n"
        "    except (ValueError, PermissionError): print('refused')"
    )
    assert output["stdout"].split() == ["refused"] * 3


async def test_a_program_that_kills_all_it_can_ends_only_itself() -> None:
    output = await run("shell.run", command="kill -9 -1; kill -9 1; kill -9 $$")
    assert output["exit_code"] == 137
    assert (await run(code="print('fine')"))["stdout"] == "fine\n"


async def test_a_closed_standard_output_is_no_hang() -> None:
    output = await run("shell.run", command="exec >&- 2>&-; sleep 0.05; exit 4")
    assert output["exit_code"] == 4
