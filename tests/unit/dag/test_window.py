"""How much is handed to Ray: what has room, and one node's worth of demand beyond."""

from __future__ import annotations

from rayloom.dag.resources import NodeShape, ResourceShape
from rayloom.dag.window import Window

NODE = NodeShape(total={"CPU": 2, "sandbox": 1}, labels={}, count_max=1)
BIG = NodeShape(total={"CPU": 4}, labels={}, count_max=9)
ONE = ResourceShape(cpus=1)
HALF = ResourceShape(cpus=0.5)
BOXED = ResourceShape(cpus=0.5, custom=(("sandbox", 1),))
HUGE = ResourceShape(cpus=99)


def _taken(window: Window, shape: ResourceShape, count: int) -> list[bool | None]:
    return [window.take(shape) for _ in range(count)]


def test_room_is_filled_first_then_one_nodes_worth_of_demand() -> None:
    window = Window(nodes=[NODE])
    assert window.capacity(ONE) == 4
    assert _taken(window, ONE, 5) == [True, True, False, False, None]
    assert window.capacity(ONE) == 0


def test_demand_is_measured_by_the_largest_node_that_could_come() -> None:
    window = Window(nodes=[NODE], types=[BIG])
    assert _taken(window, ONE, 7) == [True, True, False, False, False, False, None]


def test_without_nodes_there_is_only_demand_and_without_types_nothing() -> None:
    assert _taken(Window(types=[BIG]), ONE, 5) == [False, False, False, False, None]
    assert Window().take(ONE) is None
    assert Window(nodes=[NODE]).take(HUGE) is None


def test_what_ends_makes_room_which_demand_takes_first() -> None:
    window = Window(nodes=[NODE])
    _taken(window, ONE, 3)
    window.give_back(ONE)
    assert window.room(ONE) == 1
    assert _taken(window, ONE, 3) == [False, False, None]
    assert (window.running, window.demand) == ({ONE: 2}, {ONE: 2})
    for _ in range(4):
        window.give_back(ONE)
    assert (window.running, window.demand) == ({}, {})
    window.give_back(ONE)
    assert window.room(ONE) == 2


def test_shapes_share_what_a_node_has() -> None:
    window = Window(nodes=[NODE])
    assert window.take(BOXED) is True
    assert window.room(BOXED) == 0
    assert window.room(HALF) == 3
    assert window.used("CPU") == 0.5
    assert window.used("sandbox") == 1


def test_what_others_use_is_no_room() -> None:
    window = Window(nodes=[NODE], others={"CPU": 1.5})
    assert window.room(HALF) == 1
    assert window.room(ONE) == 0
    assert Window(nodes=[NODE], others={"CPU": 5}).room(HALF) == 0
