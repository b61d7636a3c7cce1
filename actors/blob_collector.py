"""Collects blobs that nothing refers to any more, a bounded number at a time, apart from all that must not wait."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.trouble import Trouble
from rayloom.db import blob_collection
from rayloom.db.blobs import BlobStore

_log = logging.getLogger(__name__)


class BlobCollector:
    """Goes round all blobs, in the order of their names; several may do so. ``every_s``: seconds between looks."""

    def __init__(self, engine: AsyncEngine, blobs: BlobStore, *, grace_s: float, every_s: float) -> None:
        self._engine, self._blobs, self._grace_s, self._every_s = engine, blobs, grace_s, every_s
        self._after, self._trouble = "", Trouble()

    async def run(self) -> None:
        """Collect for ever. Raises Transient when the database is away: begin again."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.collect()

    async def collect(self) -> int:
        """Remove what can go of the next blobs; gives how many went."""
        found = await blob_collection.look(self._engine, after=self._after, grace_s=self._grace_s)
        # First: what can't be removed now must not keep us from the others.
        self._after = found.after
        gone = 0
        if found.unused:
            gone = await blob_collection.remove(self._engine, found.unused, grace_s=self._grace_s)
            _log.info("blobs.collected", extra={"count": gone})
        for away in await blob_collection.clear(self._engine, self._blobs):
            self._trouble.tell(_log, "blobs.not_cleared", away, known=True)
        return gone
