"""How much work is handed to Ray: what the cluster can run now, plus one node's worth of each queued shape.

Ray itself knows no priority: what it holds, it starts in its own order. So only what has room is handed over, best
first, and beyond that just enough of each shape for the autoscaler to see that a node is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rayloom.dag.resources import NodeShape, ResourceShape, copies

_EPSILON = 1e-9


@dataclass(slots=True)
class Window:
    """What the cluster offers, and what of it is in use. Shapes are counted as they are handed over and come back.

    ``nodes``: every live node. ``types``: every kind of node that there is or could be. ``others``: amounts in use by
    somebody else. ``running``: attempts that were given room. ``demand``: attempts beyond that.
    """

    nodes: Sequence[NodeShape] = ()
    types: Sequence[NodeShape] = ()
    others: Mapping[str, float] = field(default_factory=dict)
    running: dict[ResourceShape, int] = field(default_factory=dict)
    demand: dict[ResourceShape, int] = field(default_factory=dict)

    def room(self, shape: ResourceShape) -> int:
        """How many more attempts of this shape could run at once now, if nothing else were added."""
        fitting = sum(copies(shape, node) for node in self.nodes) - self.running.get(shape, 0)
        for name, amount in shape.amounts():
            fitting = min(fitting, math.floor(self._free(name) / amount + _EPSILON))
        return max(fitting, 0)

    def allowance(self, shape: ResourceShape) -> int:
        """How many more attempts of this shape may be handed over as demand: one node's worth in all."""
        worth = max((copies(shape, node) for node in (*self.nodes, *self.types)), default=0)
        return max(worth - self.demand.get(shape, 0), 0)

    def take(self, shape: ResourceShape) -> bool | None:
        """Hand over one attempt: True as running, False as demand, None when the window is full.

        Ray starts what it holds of one shape in the order it came, so what was demand takes the room first.
        """
        while self.demand.get(shape, 0) and self.room(shape) > 0:
            _add(self.demand, shape, -1)
            _add(self.running, shape, 1)
        if self.room(shape) > 0:
            _add(self.running, shape, 1)
            return True
        if self.allowance(shape) > 0:
            _add(self.demand, shape, 1)
            return False
        return None

    def give_back(self, shape: ResourceShape) -> None:
        """An attempt that was handed over has ended."""
        _add(self.running if self.running.get(shape) else self.demand, shape, -1)

    def capacity(self, shape: ResourceShape) -> int:
        """How many more attempts of this shape may be handed over, as running and as demand together."""
        worth = max((copies(shape, node) for node in (*self.nodes, *self.types)), default=0)
        return max(self.room(shape) + worth - self.demand.get(shape, 0), 0)

    def used(self, name: str) -> float:
        """How much of a resource the attempts hold that were given room."""
        return sum(
            amount * count
            for shape, count in self.running.items()
            for resource, amount in shape.amounts()
            if resource == name
        )

    def _free(self, name: str) -> float:
        return sum(node.total.get(name, 0.0) for node in self.nodes) - self.used(name) - self.others.get(name, 0.0)


def _add(counts: dict[ResourceShape, int], shape: ResourceShape, change: int) -> None:
    left = counts.get(shape, 0) + change
    if left > 0:
        counts[shape] = left
    else:
        counts.pop(shape, None)
