"""The pipes of stdio servers, in the event loop that Ray gives its actors."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from rayloom.tools.mcp.pipes import LineReader, LineTooLong, Writer
from rayloom.tools.mcp.stdio import stdio, trusted
from tests.integration.tools.mcp_rig import GENEROUS_S, open_files

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
