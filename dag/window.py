"""How much work is handed to Ray: what the cluster can run now, plus one node's worth of each queued shape.

Ray itself knows no priority: what it holds, it starts in its own order. So only what has room is handed over, best
first, and beyond that just enough of each shape for the autoscaler to see that a node is wanted. Where no autoscaler
could be misled, more is handed over of a task whose attempts end quickly: Ray gives a worker back as soon as it has
nothing more for it, and to get it again costs more than a quick attempt.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rayloom.dag.resources import NodeShape, ResourceShape, copies

_EPSILON = 1e-9

QUICK_S = 0.1
"""An attempt that lasts at most so long is quick."""
AHEAD_NODES = 16
"""How many nodes' worth of quick attempts of a shape are handed over beyond what can run, at most."""
TRIAL = 16
"""So many quick ends in a row earn a task nothing yet: of many small tasks none would live to use what it earned."""
LOOKS = 4
"""Of so many looks at the cluster the least is what others use."""
MAX_DEMAND = 2_000
"""How many attempts of all shapes together are handed over beyond what can run, at most."""
MAX_KNOWN = 1_000
"""Of how many tools of tasks it is remembered that they are quick."""

Use = tuple[str, str]
"""A task, and the tool that one of its attempts uses."""


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
    _looks: deque[dict[str, float]] = field(default_factory=lambda: deque(maxlen=LOOKS))
    _ahead: dict[ResourceShape, int] = field(default_factory=dict)
    _quick: dict[tuple[ResourceShape, Use], int] = field(default_factory=dict)
    """How many attempts in a row were quick."""

    def look(
        self,
        nodes: Sequence[NodeShape],
        types: Sequence[NodeShape],
        *,
        total: Mapping[str, float],
        free: Mapping[str, float],
    ) -> None:
        """Take in the cluster as it is now; ``total``, ``free``: what there is, and what nobody uses, by resource."""
        self.nodes, self.types = nodes, types
        # What Ray runs on a node that has just come is ours, and must not be taken for somebody else's.
        for shape in list(self.demand):
            self.settle(shape)
        # What others hold is only known as a difference of numbers taken at different moments: the least of the last
        # few looks is what they surely hold.
        self._looks.append({name: total[name] - free.get(name, 0.0) - self.used(name) for name in total})
        self.others = {name: max(min(look.get(name, 0.0) for look in self._looks), 0.0) for name in total}

    def room(self, shape: ResourceShape) -> int:
        """How many more attempts of this shape could run at once now, if nothing else were added."""
        fitting = sum(copies(shape, node) for node in self.nodes) - self.running.get(shape, 0)
        for name, amount in shape.amounts():
            fitting = min(fitting, math.floor(self._free(name) / amount + _EPSILON))
        return max(fitting, 0)

    def allowance(self, shape: ResourceShape) -> int:
        """How many more attempts of this shape may be handed over as demand."""
        worth = self._worth(shape)
        if not self.types:
            worth = min(worth + self._ahead.get(shape, 0), worth * AHEAD_NODES)
        return max(min(worth - self.demand.get(shape, 0), MAX_DEMAND - sum(self.demand.values())), 0)

    def is_hopeless(self, shape: ResourceShape) -> bool:
        """Whether no node that there is or could be can ever run it."""
        return bool(self.nodes) and not self._worth(shape)

    def surplus(self, shape: ResourceShape, uses: Sequence[Use]) -> list[int]:
        """Which of those just taken as demand to give back: beyond a node's worth only the lead that a task has earned.

        Whose they are and what tools they use (``uses``) is known only now that they have been claimed. Gives indexes.
        """
        within = self._worth(shape) - (self.demand.get(shape, 0) - len(uses))
        beyond = list(enumerate(uses))[max(within, 0) :]
        used: Counter[Use] = Counter()
        too_many = []
        for index, use in beyond:
            used[use] += 1
            if used[use] > self._quick.get((shape, use), 0) - TRIAL:
                too_many.append(index)
        if too_many:
            self._ahead.pop(shape, None)
        return too_many

    def take(self, shape: ResourceShape) -> bool | None:
        """Hand over one attempt: True as running, False as demand, None when the window is full.

        Ray starts what it holds of one shape in the order it came, so what was demand takes the room first.
        """
        if self.settle(shape) > 0:
            _add(self.running, shape, 1)
            return True
        if self.allowance(shape) > 0:
            _add(self.demand, shape, 1)
            return False
        return None

    def settle(self, shape: ResourceShape) -> int:
        """Give what was handed over as demand the room that there is by now: Ray runs it. Answers how much is left."""
        room = self.room(shape)
        begun = min(room, self.demand.get(shape, 0))
        if begun:
            _add(self.demand, shape, -begun)
            _add(self.running, shape, begun)
        return room - begun

    def give_back(self, shape: ResourceShape) -> None:
        """An attempt that was to be handed over was not, or has ended."""
        _add(self.running if self.running.get(shape) else self.demand, shape, -1)

    def ended(self, shape: ResourceShape, use: Use, *, lasted_s: float) -> None:
        """An attempt has ended. Quick ones in a row are what lets more of the same task be handed over."""
        self.give_back(shape)
        if shape in self.demand:
            self.settle(shape)
        if lasted_s > QUICK_S:
            self._ahead.pop(shape, None)
            self._quick.pop((shape, use), None)
            return
        if len(self._quick) >= MAX_KNOWN and (shape, use) not in self._quick:
            self._quick.clear()
            self._ahead.clear()
        in_a_row = self._quick[shape, use] = self._quick.get((shape, use), 0) + 1
        if in_a_row > TRIAL:
            _add(self._ahead, shape, 1)

    def capacity(self, shape: ResourceShape) -> int:
        """How many more attempts of this shape may be handed over, as running and as demand together."""
        return self.room(shape) + self.allowance(shape)

    def used(self, name: str) -> float:
        """How much of a resource the attempts hold that were given room."""
        return sum(
            amount * count
            for shape, count in self.running.items()
            for resource, amount in shape.amounts()
            if resource == name
        )

    def _worth(self, shape: ResourceShape) -> int:
        return max((copies(shape, node) for node in (*self.nodes, *self.types)), default=0)

    def _free(self, name: str) -> float:
        return sum(node.total.get(name, 0.0) for node in self.nodes) - self.used(name) - self.others.get(name, 0.0)


def _add(counts: dict[ResourceShape, int], shape: ResourceShape, change: int) -> None:
    left = counts.get(shape, 0) + change
    if left > 0:
        counts[shape] = left
    else:
        counts.pop(shape, None)
