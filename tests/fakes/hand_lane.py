"""A lane in which an attempt ends when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from rayloom.actors.order import AttemptOrder
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import ResourceShape


def _told(_outcome: Outcome) -> None:
    raise AssertionError("an attempt ends once")


@dataclass
class Held:
    """An attempt that was handed over; ``stops`` holds how it was asked to stop: whether by force."""

    order: AttemptOrder
    shape: ResourceShape
    done: Callable[[Outcome], None]
    stops: list[bool] = field(default_factory=list)

    @property
    def ray_task_id(self) -> str:
        """See `Running`."""
        return f"task of {self.order.sub_task_id}"

    def stop(self, *, force: bool) -> None:
        """See `Running`."""
        self.stops.append(force)


class HandLane:
    """``Lane``. ``refuses``: the error that it raises in place of starting anything."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.started: list[AttemptOrder] = []
        self.refuses: Exception | None = None

    def can_spare(self, count: int) -> None:
        """See `Lane`: here every end is told at once."""

    def start(self, order: AttemptOrder, shape: ResourceShape, done: Callable[[Outcome], None]) -> Held:
        """See `Lane`."""
        if self.refuses is not None:
            raise self.refuses
        held = Held(order, shape, done)
        self.started.append(order)
        self.held[order.sub_task_id] = held
        return held

    async def end(self, sub_task_id: str, outcome: Outcome) -> None:
        """The attempt of this subtask ends so."""
        held = self.held.pop(sub_task_id)
        # Like a lane that has told an end, it keeps nothing of it.
        done, held.done = held.done, _told
        done(outcome)
        del done
        await asyncio.sleep(0)
