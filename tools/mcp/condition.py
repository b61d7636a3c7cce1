"""How a server is, as its session finds it, and why."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from rayloom.dag.mcp import ServerHealth
from rayloom.tools.mcp import protocol
from rayloom.tools.mcp.redaction import Redaction

_log = logging.getLogger(__name__)

OFFLINE_AFTER: Final = 3
TAIL_LINES: Final = 5
TAIL_CHARS: Final = 500


class Condition:
    """The health of one server. ``on_health`` is told of each change; ``last_error`` says what came in the way last."""

    def __init__(self, name: str, redaction: Redaction, on_health: Callable[[ServerHealth], None]) -> None:
        self.health: ServerHealth = "unknown"
        self.last_error = ""
        self.ended_for = ""
        """Why we ended the server ourselves, until it is started again."""
        self._name, self._redaction, self._on_health = name, redaction, on_health
        self._failures = 0
        self._heard: deque[str] = deque(maxlen=TAIL_LINES)

    def heard(self, line: str) -> None:
        """A line that it wrote for people to read."""
        self._heard.append(self._redaction.message(line, TAIL_CHARS))

    def connected(self) -> None:
        """It answers. What ended it before can still be read, until it has been well for a while."""
        self._failures = 0
        self._set("ok")

    def well(self) -> None:
        """It has answered again."""
        self.last_error = ""
        self.connected()

    def failed(self, error: BaseException) -> None:
        """Something came in the way."""
        self._failures += 1
        self.last_error = self.said(error)
        if self._heard:
            # A command that can't run says why there, and nowhere else.
            self.last_error += f" (it said: {' | '.join(self._heard)[:TAIL_CHARS]})"
            self._heard.clear()
        _log.warning("mcp.failed", extra={"server": self._name, "error": self.last_error, "in_a_row": self._failures})
        if self._failures >= OFFLINE_AFTER:
            self._set("offline")

    def said(self, error: BaseException) -> str:
        """What an error says, without secrets; of a server that we ended, why we did."""
        if self.ended_for and (protocol.is_lost(error) or isinstance(error, ConnectionError)):
            return self.ended_for
        return self._redaction.message(protocol.said(error))

    def _set(self, health: ServerHealth) -> None:
        if health != self.health:
            self.health = health
            self._on_health(health)
