"""Refused transitions, as the log tells them."""

from __future__ import annotations

from typing import Any

import pytest


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was told of each refused transition so far."""
    names = ("task_id", "subtask", "attempt", "from", "event")
    return [
        {name: vars(record)[name] for name in names if name in vars(record)}
        for record in caplog.records
        if record.message == "transition.refused" and record.levelname == "INFO"
    ]
