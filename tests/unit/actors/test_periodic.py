"""What is done for ever goes on after any error."""

from __future__ import annotations

import asyncio

import pytest

from rayloom.actors.periodic import repeat
from rayloom.dag.errors import Transient


async def test_a_step_is_repeated_through_errors_until_it_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()
    script: list[Exception | None] = [None, Transient("AWAY", "away"), KeyError("bug"), None]

    async def step() -> float:
        what = script.pop(0)
        if what is not None:
            raise what
        if not script:
            done.set()
            return 3600
        return 0

    life = asyncio.create_task(repeat("thing", step, after_error_s=0))
    async with asyncio.timeout(60):
        await done.wait()
    assert [record.message for record in caplog.records] == ["periodic.failed", "periodic.broken"]
    assert not life.done()
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
