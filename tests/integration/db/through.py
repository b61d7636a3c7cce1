"""What plans tasks, seen through to the end of all that a turn of it starts."""

from __future__ import annotations

import asyncio
from uuid import UUID

from rayloom.actors.growing import Growing
from rayloom.actors.splitting import Splitting


async def through(planning: Splitting | Growing, room: asyncio.Event, incarnation: UUID) -> None:
    """A turn, until nothing of it is under way. ``room`` is set by its ``on_room``."""
    await planning.turn(incarnation)
    async with asyncio.timeout(120):
        while planning.count:
            room.clear()
            await room.wait()
