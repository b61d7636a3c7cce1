"""All that the parser is asked for: tasks that are split, and running ones whose plans grow."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.growing import Growing
from rayloom.actors.judge import Judge
from rayloom.actors.settings import EngineSettings
from rayloom.actors.splitting import Splitting
from rayloom.dag.replan import PlannerPort
from rayloom.db.blobs import BlobStore


class Planning:
    """Splitting and growing of one incarnation at a time. ``on_closed`` is told when tasks have ended by it.

    ``judge``: to be told of tools and nodes.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        parser: PlannerPort,
        settings: EngineSettings,
        *,
        on_room: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self.judge = Judge(settings)
        given = (engine, blobs, backlog, parser, self.judge)
        self._splitting = Splitting(*given, on_room=on_room, on_closed=on_closed, replans=settings.max_replans)
        self._growing = Growing(*given, on_room=on_room, on_closed=on_closed)

    async def turn(self, incarnation: UUID) -> None:
        """Take what there is to plan."""
        await self._splitting.turn(incarnation)
        await self._growing.turn(incarnation)

    async def close(self) -> None:
        """Stop; the next incarnation takes it over."""
        await self._splitting.close()
        await self._growing.close()

    def counts(self) -> dict[str, int]:
        """How many tasks are being split, and grow."""
        return {"splitting": self._splitting.count, "growing": self._growing.count}
