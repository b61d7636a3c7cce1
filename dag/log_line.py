"""A line of the full-chain log."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from rayloom.dag.values import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line. ``stream``: system, stdout, stderr, tool or model; ``level``: DEBUG, INFO, WARNING or ERROR."""

    at: datetime
    task_id: str
    message: str
    subtask: str | None = None
    attempt: int | None = None
    stream: str = "system"
    level: str = "INFO"
    fields: JsonObject = field(default_factory=dict)
