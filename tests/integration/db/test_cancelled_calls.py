"""Whoever is cancelled in the middle of a write, at whichever await, leaves nothing behind that would hurt the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.engine import make_engine
from rayloom.db.settings import DatabaseSettings
from tests.integration.db.spine import Spine

MOST_STEPS = 5_000


@pytest.fixture
async def single(database: DatabaseSettings) -> AsyncIterator[AsyncEngine]:
    """One connection and no other, so that the next call gets the one that was left."""
    engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=0, name="single")
    yield engine
    await engine.dispose()


async def test_a_submission_that_is_cancelled_anywhere_does_not_take_the_next_one_with_it(
    single: AsyncEngine, spine: Spine
) -> None:
    """A client that hangs up ends its request. What is answered after that is on disk, for everybody to see."""
    mine = Spine(single, spine.user_id)
    steps = 0
    while True:
        submitting = asyncio.create_task(mine.submit({"a": []}))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not submitting.cancel():
            await submitting
            break
        await asyncio.wait([submitting])
        made = await mine.submit({"a": []})
        assert await spine.rows("SELECT 1 FROM tasks WHERE id = $1", made.task_id), f"lost after {steps} steps"
        steps += max(1, steps // 8)
    assert 10 < steps < MOST_STEPS
