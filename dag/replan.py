"""Adding to the plan of a running task: what the parser must know for that, and the port by which it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rayloom.dag.planned import Planned, PlanRequest
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
    """The parser deployment, as far as it also adds to plans."""

    async def replan(self, request: ReplanRequest) -> Planned:
        """What to add to the plan of a running task: its subtasks are new ones alone, and may be none.

        Raises as ``plan``.
        """
