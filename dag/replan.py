"""Plans that begin before they are whole, and that are added to: what the parser must know, and the port to ask it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import ParserPort
from rayloom.dag.values import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """One subtask of a running task as it is now.

    ``output`` is the beginning of its JSON text; ``error`` says why it has none. ``is_done``: others may use it.
    """

    key: str
    status: str
    is_done: bool
    output: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanRequest:
    """The request, the plan so far, what has come of it, and why that is not enough.

    ``joiner``: the id of the subtask that answers, or was to answer, the whole request; empty where there is none.
    """

    request: PlanRequest
    plan: JsonObject
    reached: tuple[Reached, ...]
    reason: str
    joiner: str = ""


class PlannerPort(ParserPort, Protocol):
    """The parser deployment, as far as it also begins plans and adds to them."""

    def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        """As ``plan``; but first, one by one as they are written, it gives subtasks that may run already.

        What they are in the plan, which comes last, may be something else. Closing it stops the model. Raises as
        ``plan``.
        """

    async def replan(self, request: ReplanRequest) -> Planned:
        """What to add to the plan of a running task: its subtasks are new ones alone, and may be none.

        Raises as ``plan``.
        """
