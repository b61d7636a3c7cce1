"""The word to the registry that the tools of MCP servers, or how these are, have changed: it is never lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from rayloom.dag.errors import RayloomError

_log = logging.getLogger(__name__)

LOOK_S: Final = 5.0


class Telling:
    """``look``: makes the registry read its rows anew."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        # Counted, since something may change while the registry looks for what changed before.
        self._changes = self._told = 0

    def changed(self) -> None:
        """Something has changed, of which the registry need not hear at once."""
        self._changes += 1

    async def tell(self) -> None:
        """Something has changed: let the registry look. If it does not answer, what is done is done."""
        self.changed()
        await self.again()

    async def again(self) -> None:
        """Let the registry look, if there is something that it has not heard of yet."""
        changes = self._changes
        if changes == self._told:
            return
        try:
            async with asyncio.timeout(LOOK_S):
                await self._look()
        except (RayloomError, TimeoutError) as error:
            said = error.message if isinstance(error, RayloomError) else f"it did not answer within {LOOK_S:g} s"
            _log.warning("mcp.registry_not_told: %s", said)
        else:
            self._told = max(self._told, changes)
