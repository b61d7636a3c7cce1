"""All that the parser is asked for: tasks that are split, and running ones whose plans grow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.growing import Growing
from rayloom.actors.splitting import Splitting
from rayloom.dag.parser_port import PlannerPort
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.resources import NodeShape
from rayloom.db.blobs import BlobStore


class Planning:
    """Splitting and growing of one incarnation at a time. ``on_closed`` is told when tasks have ended by it.

    ``levels``: permission levels of tools that want approval. ``replans``: how often what a model planned may grow.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        backlog: Backlog,
        parser: PlannerPort,
        *,
        on_room: Callable[[], None],
        on_closed: Callable[[], None],
        levels: Collection[str],
        replans: int,
    ) -> None:
        self._splitting = Splitting(engine, blobs, backlog, parser, on_room=on_room, levels=levels, replans=replans)
        self._growing = Growing(engine, blobs, backlog, parser, on_room=on_room, on_closed=on_closed, levels=levels)

    @property
    def tools(self) -> ToolSnapshot:
        """The tools that plans are made with."""
        return self._splitting.tools

    def know_tools(self, tools: ToolSnapshot) -> None:
        """These are the tools from now on."""
        self._splitting.tools = self._growing.tools = tools

    def know_nodes(self, nodes: Sequence[NodeShape]) -> None:
        """These are the nodes from now on."""
        self._splitting.nodes = self._growing.nodes = tuple(nodes)

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
