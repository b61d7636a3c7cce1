"""What a quota holds back before it is served."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from rayloom.dag.errors import Transient
from rayloom.dag.ports import Limited
from rayloom.serve.deps import Deps, ask
from rayloom.serve.problems import RAISED_LIMIT_S, Problem

LIMIT_TIMEOUT_S: Final = 2.0


async def limit_of(deps: Deps, user_id: UUID) -> Limited | None:
    """The limit that holds back everything of the user now; None, too, while nobody can say."""
    try:
        limited = deps.ports.tokens.limited(str(user_id))
        return await ask(limited, "the token controller", timeout_s=LIMIT_TIMEOUT_S)
    except Transient:
        return None


def waits_long(held: Limited, patience_s: float) -> bool:
    """Whether it is no use to wait for room for so long."""
    return held.free_in_s is None or held.free_in_s > patience_s


def too_many(held: Limited, what: str) -> Problem:
    """The 429 of a limit that holds ``what`` back."""
    wait_s = RAISED_LIMIT_S if held.free_in_s is None else held.free_in_s
    return Problem(
        429, f"the limit {held.limit} of your quota holds {what} back", code="LIMIT_REACHED", retry_after_s=wait_s
    )
