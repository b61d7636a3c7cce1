"""A lane in which every attempt ends at once, as the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rayloom.actors.order import AttemptOrder
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import ResourceShape


def succeeded(order: AttemptOrder) -> Outcome:
    """The attempt gives its own name."""
    output = f'"{order.key}"'
    return Outcome(verdict="succeeded", output=output, output_size=len(output), worker_id="inline")


class InlineLane:
    """``Lane``. ``run`` says how an attempt ends; it is also the attempt that runs, so it can't be stopped."""

    ray_task_id = ""

    def __init__(self, run: Callable[[AttemptOrder], Outcome] = succeeded) -> None:
        self.run = run
        self.started: list[AttemptOrder] = []

    def can_spare(self, count: int) -> None:
        """See `Lane`: here every end is told at once."""

    def start(self, order: AttemptOrder, shape: ResourceShape, done: Callable[[Outcome], None]) -> InlineLane:
        """See `Lane`."""
        self.started.append(order)
        asyncio.get_running_loop().call_soon(done, self.run(order))
        return self

    def stop(self, *, force: bool) -> None:
        """See `Running`."""
