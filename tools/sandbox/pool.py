"""Containers that wait for their run, so that a program need not wait for its container. Each serves one run."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress

from rayloom.tools.sandbox import container
from rayloom.tools.sandbox.container import Container, Shape
from rayloom.tools.sandbox.engine import Engine

_log = logging.getLogger(__name__)


class Pool:
    """At most ``most`` waiting containers of each of the last two shapes that were asked for.

    They are made in a thread with an event loop of its own: the loop of a run may be over before its successor stands.
    """

    SHAPES = 2

    def __init__(self, engine: Engine, *, most: int) -> None:
        self._engine, self._most = engine, most
        self._lock = threading.Lock()
        self._waiting: dict[Shape, list[Container]] = {}
        self._coming: dict[Shape, int] = {}
        self._closed = False

    def take(self, shape: Shape) -> Container | None:
        """One that waits, or None."""
        while True:
            with self._lock:
                waiting = self._waiting.get(shape)
                found = waiting.pop() if waiting else None
            if found is None or found.is_usable():
                return found
            found.stream.close()

    def refill(self, shape: Shape) -> None:
        """Have this shape's containers made in the background. What no longer belongs here is let go."""
        dropped: list[Container] = []
        with self._lock:
            # The last asked for stands last.
            self._waiting[shape] = self._waiting.pop(shape, [])
            while len(self._waiting) > self.SHAPES:
                dropped += self._waiting.pop(next(iter(self._waiting)))
            missing = 0 if self._closed else self._most - len(self._waiting[shape]) - self._coming.get(shape, 0)
            if missing > 0:
                self._coming[shape] = self._coming.get(shape, 0) + missing
        for each in dropped:
            each.stream.close()
        for _ in range(missing):
            threading.Thread(target=self._make, args=(shape,), name="rayloom-containers", daemon=True).start()

    def ids(self) -> set[str]:
        """Those that wait."""
        with self._lock:
            return {each.id for several in self._waiting.values() for each in several}

    def is_settled(self) -> bool:
        """Whether nothing is being made."""
        with self._lock:
            return not any(self._coming.values())

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
        for each in (one for several in waiting for one in several):
            each.stream.close()

    def _make(self, shape: Shape) -> None:
        made: Container | None = None
        try:
            made = asyncio.run(container.start(self._engine, shape))
        except Exception as error:  # noqa: BLE001 - whatever it is: the next run starts its own, and says what is wrong
            _log.warning("sandbox.not_refilled", extra={"reason": str(error)})
        with self._lock:
            self._coming[shape] -= 1
            if not self._coming[shape]:
                del self._coming[shape]
            if made is not None and not self._closed and shape in self._waiting:
                self._waiting[shape].append(made)
                return
        if made is not None:
            with suppress(OSError):
                made.stream.close()
