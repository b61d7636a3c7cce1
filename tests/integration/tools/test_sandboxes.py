"""python.run and shell.run in every kind of sandbox that is here, by friends."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from typing import Any

import pytest

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.settings import SandboxLimits
from tests.integration.tools.sandboxes import Kind, run, sandbox_of
from tests.unit.tools.context import KeptLog


async def test_a_program_prints_reads_and_writes(kind: Kind) -> None:
    log = KeptLog()
    output = await run(
        kind,
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
        "backend": kind,
        "files": {
            "data.bin": {"base64": "/yE=", "size": 2, "media_type": "application/octet-stream"},
            "out/plot.png": {"base64": "iVBORw==", "size": 4, "media_type": "image/png"},
        },
    }
    assert sorted(log.lines) == [("stderr", "oops"), ("stdout", "imported given")]


async def test_a_shell_command_has_the_usual_tools(kind: Kind) -> None:
    output = await run(kind, "shell.run", command="printf 'b\\na\\n' | sort | awk '{print NR $1}' >x; cat x; exit 3")
    assert (output["exit_code"], output["stdout"]) == (3, "1a\n2b\n")


async def test_an_exception_is_a_result_with_its_traceback(kind: Kind) -> None:
    output = await run(kind, code="def f():\n    1 / 0\nf()")
    assert output["exit_code"] == 1
    assert "line 2, in f" in output["stderr"]


async def test_output_is_streamed_while_the_program_runs(kind: Kind) -> None:
    log = KeptLog()
    running = asyncio.ensure_future(run(kind, log=log, code="print('first')\nwhile True: pass"))
    await log.spoke.wait()
    assert log.lines == [("stdout", "first")]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.timed
async def test_a_cancelled_run_is_gone_at_once(kind: Kind) -> None:
    log = KeptLog()
    running = asyncio.ensure_future(
        run(kind, "shell.run", log=log, command="trap '' TERM INT HUP; setsid sleep 1000 & echo up; sleep 1000")
    )
    await log.spoke.wait()
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - began < (2 if kind == "bubblewrap" else 10)


async def test_the_wall_clock_ends_what_does_not_end_itself(kind: Kind) -> None:
    output = await run(
        kind, code="import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass", limits={"wall_s": 0.3}
    )
    assert (output["timed_out"], output["exit_code"], output["oom"]) == (True, 137, False)
    assert 300 <= output["duration_ms"] < 10_000


async def test_a_process_left_in_the_background_does_not_outlive_the_program(kind: Kind) -> None:
    output = await run(kind, "shell.run", command="setsid sleep 1000 >/dev/null 2>&1 & echo done")
    assert (output["stdout"], output["timed_out"]) == ("done\n", False)


async def test_many_at_once(kind: Kind) -> None:
    outputs = await asyncio.gather(*(run(kind, code=f"print({n})") for n in range(8)))
    assert [output["stdout"] for output in outputs] == [f"{n}\n" for n in range(8)]


def test_it_works_in_an_event_loop_of_any_thread(kind: Kind) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(run(kind, code="print(1)"))))
    thread.start()
    thread.join()
    assert found[0]["stdout"] == "1\n"


async def test_the_usual_ways_to_share_memory_work(kind: Kind) -> None:
    output = await run(
        kind,
        code="import concurrent.futures, ctypes, mmap, multiprocessing as m\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "def fill(name, value):\n    s = SharedMemory(name); s.buf[0] = value.value; s.close()\n"
        "s = SharedMemory(create=True, size=9)\np = m.Process(target=fill, args=(s.name, m.Value('i', 7)))\n"
        "p.start(); p.join(); print(s.buf[0]); s.close(); s.unlink()\n"
        "with concurrent.futures.ProcessPoolExecutor(2) as pool: print(*pool.map(abs, [-1, -2]))\n"
        "print(m.Manager().list([3])[0], ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 4)(), mmap.mmap(-1, 9)[0])",
    )
    assert (output["stdout"], output["stderr"]) == ("7\n1 2\n3 4 0\n", "")


async def test_files_that_do_not_fit_are_their_author_s_fault(kind: Kind) -> None:
    """Should the tool have counted wrongly, bwrap itself meets the end of the disk."""
    limits = SandboxLimits(disk_mb=1)
    spec = RunSpec(program="shell", source=b"", limits=limits, files={"a": b"x" * (1 << 20), "b": b"x"})
    with pytest.raises(UserError) as error:
        await sandbox_of(kind).run(spec)
    assert error.value.code == "FILES_TOO_LARGE"
    full: Json = {str(n): "x" for n in range(256)}
    assert (await run(kind, code="print(1)", files=full, limits={"disk_mb": 1}))["stdout"] == "1\n"


async def test_a_closed_standard_output_is_no_hang(kind: Kind) -> None:
    output = await run(kind, "shell.run", command="exec >&- 2>&-; sleep 0.05; exit 4")
    assert output["exit_code"] == 4


async def test_a_program_in_another_encoding_says_so_itself(kind: Kind) -> None:
    output = await run(kind, code="# -*- coding: latin-1 -*-\nprint(len('\u00e9'))")
    assert (output["exit_code"], output["stdout"]) == (0, "2\n")


async def test_what_was_given_and_not_changed_does_not_come_back(kind: Kind) -> None:
    output = await run(
        kind,
        "shell.run",
        command="touch same; echo other >changed; rm gone; mkdir -p a/b; echo new >a/b/c; cat changed same",
        files={"same": "x", "changed": "y", "gone": "z"},
    )
    assert list(output["files"]) == ["a/b/c", "changed"]
    assert output["stdout"] == "other\nx"


async def test_large_input_and_output_go_through(kind: Kind) -> None:
    output = await run(
        kind,
        code="import sys\ndata = sys.stdin.read()\nprint(data, end='')\nopen('copy', 'w').write(data)",
        stdin="0123456789" * 80_000,
    )
    assert output["stdout"] == "0123456789" * 80_000
    assert output["files"]["copy"]["size"] == 800_000
    assert output["truncated"] is False


async def test_a_second_program_finds_nothing_of_the_first(kind: Kind) -> None:
    await run(kind, "shell.run", command="echo secret >/workspace/a; echo secret >/tmp/a; echo secret >/dev/shm/a")
    output = await run(kind, "shell.run", command="ls -A /workspace /tmp /dev/shm")
    assert output["stdout"].split() == ["/dev/shm:", "/tmp:", "/workspace:"]
