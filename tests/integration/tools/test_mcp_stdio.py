"""The pipes of stdio servers, in the event loop that Ray gives its actors."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from rayloom.tools.mcp.pipes import LineReader, LineTooLong, Writer
from rayloom.tools.mcp.stdio import stdio, trusted
from tests.integration.tools.mcp_rig import GENEROUS_S, children, open_files, until

NOTE = '{"jsonrpc":"2.0","method":"notifications/message"}'
FLOOD = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    os.write(1, b'{NOTE}\\n' * 1000)
"""
SILENT = "import sys; sys.stdin.read()"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    def ran(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(work)

    return ran


def test_a_server_that_never_stops_to_write_leaves_no_descriptor_behind(run: Any) -> None:
    """One that did was found by the next server that was given its number: it could not be started."""

    async def work() -> None:
        before = open_files()
        for program in (FLOOD, SILENT, FLOOD, SILENT):
            launch = trusted([sys.executable, "-c", program], {})
            async with stdio(launch, on_stderr=lambda _: None, on_end=lambda _: None) as (incoming, _):
                if program is FLOOD:
                    await incoming.receive()
        assert open_files() <= before

    run(work())


def test_whoever_is_stopped_while_a_server_ends_leaves_nothing_behind(run: Any) -> None:
    async def hold(started: asyncio.Event) -> None:
        launch = trusted([sys.executable, "-c", FLOOD], {})
        async with stdio(launch, on_stderr=lambda _: None, on_end=lambda _: None):
            started.set()
            await asyncio.sleep(3600)

    async def work() -> None:
        before = open_files()
        started = asyncio.Event()
        holder = asyncio.create_task(hold(started))
        await started.wait()
        for _ in range(2):
            holder.cancel()
            await asyncio.sleep(0.1)
        await asyncio.wait({holder}, timeout=GENEROUS_S)
        assert holder.cancelled()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert open_files() <= before

    run(work())


def test_what_has_a_group_of_its_own_is_ended_where_there_is_no_time_to_ask(run: Any) -> None:
    child = "import subprocess as s; print(s.Popen(['sleep', '3600'], start_new_session=True).pid, flush=True)"
    program = f"import os, sys; os.dup2(2, 1); {child}; sys.stdin.read()"
    heard: list[int] = []

    async def hold() -> None:
        launch = trusted([sys.executable, "-c", program], {})
        async with stdio(launch, on_stderr=lambda line: heard.append(int(line)), on_end=lambda _: None):
            await asyncio.Event().wait()

    async def work() -> None:
        holder = asyncio.create_task(hold())
        await until(lambda: heard)
        for _ in range(2):
            holder.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({holder})
        await until(lambda: state(heard[0]) in ("", "Z"))

    run(work())


def state(pid: int) -> str:
    """How a process is, as the kernel has it; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize("count", range(1, 5))
def test_what_comes_in_the_way_of_a_start_leaves_nothing_behind(
    run: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when this process may open nothing more."""
    made: list[Any] = []

    def refused(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    def dup(fd: int) -> int:
        made.append(fd)
        return real(fd) if len(made) < count else refused()

    real = os.dup
    if count > 3:
        monkeypatch.setattr("rayloom.tools.mcp.stdio.PidFd", refused)
    else:
        monkeypatch.setattr("os.dup", dup)

    async def work() -> None:
        files, processes = open_files(), children()
        with pytest.raises(OSError, match="too many open files"):
            async with stdio(trusted(["sleep", "3600"], {}), on_stderr=lambda _: None, on_end=lambda _: None):
                raise AssertionError("unreachable")
        assert open_files() <= files
        assert children() <= processes

    run(work())


def test_lines_come_whole_and_those_too_long_are_left_out(run: Any) -> None:
    async def work() -> None:
        theirs, ours = os.pipe()
        reader, writer = LineReader(theirs, limit=200_000), Writer(ours)
        lines = [b"a\n", b"\n", b"b" * 199_000 + b"\n", b"c" * 500_000 + b"\n", b"d\n", b"no end"]

        async def write() -> None:
            await writer.write(b"".join(lines))
            writer.close()

        writing = asyncio.create_task(write())
        try:
            assert [await reader.line() for _ in range(3)] == lines[:3]
            rest: list[bytes] = []
            refused = 0
            while True:
                try:
                    line = await reader.line()
                except LineTooLong:
                    refused += 1
                    continue
                if not line:
                    break
                rest.append(line)
            assert refused >= 1
            assert rest[-2:] == [b"d\n", b"no end"]
            assert all(len(line) <= 300_000 for line in rest)
            await writing
        finally:
            reader.close()

    run(work())


def test_a_writer_is_told_that_nobody_reads(run: Any) -> None:
    async def work() -> None:
        theirs, ours = os.pipe()
        writer = Writer(ours)
        os.close(theirs)
        with pytest.raises(BrokenPipeError):
            await writer.write(b"x")
        writer.close()
        writer.close()

    run(work())
