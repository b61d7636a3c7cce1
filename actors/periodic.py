"""Something that is done again and again for as long as an actor lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from rayloom.actors.trouble import Trouble
from rayloom.dag.errors import RayloomError

log = logging.getLogger(__name__)

AFTER_ERROR_S: Final = 0.5


async def repeat(name: str, step: Callable[[], Awaitable[float]], *, after_error_s: float = AFTER_ERROR_S) -> None:
    """Run ``step`` for ever. It answers in how many seconds it wants to run again; after an error, soon.

    Never ends by itself: an actor must not lose its heartbeat to one error, whatever it is.
    """
    trouble = Trouble()
    while True:
        try:
            pause_s = await step()
        except RayloomError as error:
            if trouble.is_news(error):
                log.warning("periodic.failed", extra={"step": name, "code": error.code, "reason": error.message})
            pause_s = after_error_s
        except Exception as error:
            if trouble.is_news(error):
                log.exception("periodic.broken", extra={"step": name})
            pause_s = after_error_s
        await asyncio.sleep(pause_s)
