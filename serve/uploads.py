"""Bodies that arrive slowly: how long a client may be silent, and how many of them a user may send at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from starlette.types import Message, Receive

from rayloom.serve.problems import Problem

SLOW_AFTER_S: Final = 1.0
"""A body that has not arrived after so long counts: those of quick clients never do, however many there are."""
RETRY_AFTER_S: Final = 5.0


def too_slow(detail: str) -> Problem:
    """The 408 of a body. It closes the connection: the rest of the body is no request."""
    return Problem(408, detail, code="BODY_TOO_SLOW", headers={"Connection": "close"})


class Uploads:
    """The slow bodies that this replica reads, by sender."""

    def __init__(self, idle_s: float, most: int) -> None:
        self.idle_s = idle_s
        self.most = most
        self.slow: Counter[str] = Counter()


class Upload:
    """The body of one request. ``sender``: its user, or the address of the client until the user is known."""

    def __init__(self, uploads: Uploads, sender: str) -> None:
        self.sender = sender
        self._uploads = uploads
        self._counted_as: str | None = None
        self._slow_timer: asyncio.TimerHandle | None = None
        self._silence: asyncio.Timeout | None = None
        self._refusal: Problem | None = None
        self._has_ended = False

    @property
    def is_arriving(self) -> bool:
        """Whether the app has begun to read the body, and there is more of it."""
        return self._slow_timer is not None and not self._has_ended

    async def receive(self, receive: Receive) -> Message:
        """Receive the next part. Raises Problem: 408 after a silence, 429 beyond the limit of slow bodies."""
        if self._has_ended:
            return await receive()
        loop = asyncio.get_running_loop()
        if self._slow_timer is None:
            self._slow_timer = loop.call_later(SLOW_AFTER_S, self._count)
        self._raise_refusal()
        silence = asyncio.timeout(self._uploads.idle_s)
        try:
            async with silence as self._silence:
                message = await receive()
        except TimeoutError:
            if not silence.expired():
                raise
            self._raise_refusal()
            raise too_slow(f"nothing of the body arrived for {self._uploads.idle_s:g} s") from None
        finally:
            self._silence = None
        if not message.get("more_body"):
            self.end()
        return message

    def end(self) -> None:
        """Count this body no more: it has arrived, or is not read any further."""
        self._has_ended = True
        if self._slow_timer is not None:
            self._slow_timer.cancel()
        if self._counted_as is not None:
            self._uploads.slow -= Counter({self._counted_as: 1})
            self._counted_as = None

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal from None

    def _count(self) -> None:
        """Count this body as a slow one, or refuse it."""
        most = self._uploads.most
        if self._uploads.slow[self.sender] < most:
            self._counted_as = self.sender
            self._uploads.slow[self.sender] += 1
            return
        detail = f"you send {most} request bodies slowly at once already; try again when one of them has arrived"
        self._refusal = Problem(
            429, detail, code="TOO_MANY_BODIES", retry_after_s=RETRY_AFTER_S, headers={"Connection": "close"}
        )
        if self._silence is not None:
            self._silence.reschedule(asyncio.get_running_loop().time())
