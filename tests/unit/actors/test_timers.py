"""Work that is begun once its time has come."""

from __future__ import annotations

import asyncio

from rayloom.actors.timers import Timers


async def test_work_begins_at_its_time_and_its_end_is_told() -> None:
    done: list[str] = []
    ended = asyncio.Event()
    timers = Timers(ended.set)

    async def work() -> None:
        done.append("work")

    timers.after(0.001, work)
    await ended.wait()
    assert done == ["work"]


async def test_what_is_closed_runs_nothing_and_begins_nothing() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()
    timers = Timers(lambda: None)

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            # Gives a connection back, as it were.
            await asyncio.sleep(0)
            stopped.set()

    timers.begin(work)
    await begun.wait()
    await timers.close(within_s=5)
    assert stopped.is_set()
    begun.clear()
    timers.begin(work)
    timers.after(0, work)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not begun.is_set()


async def test_closing_waits_for_nothing_that_does_not_end() -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()
    timers = Timers(lambda: None)

    async def work() -> None:
        begun.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    timers.begin(work)
    await begun.wait()
    await timers.close(within_s=0.01)
    let_go.set()
