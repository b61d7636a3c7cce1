"""How long the parser may take over a prompt. Apart from `planning_models`, which needs Ray: see `bringup`."""

from __future__ import annotations

from typing import Final

from rayloom.tools.models.settings import ModelsSettings

CALLS: Final = 3
"""Of a model for one prompt: the plan, and two rounds of mending."""
MARGIN_S: Final = 60.0
ANSWER_MAX_S: Final = 5_400.0
PLAIN_ANSWER_S: Final = 120.0


def answer_s(settings: ModelsSettings) -> float:
    """In seconds: a model of one's own needs minutes for each answer."""
    if not settings.is_configured:
        return PLAIN_ANSWER_S
    return min(ANSWER_MAX_S, CALLS * settings.for_role("planner").call_s + MARGIN_S)
