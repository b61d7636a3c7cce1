"""How much is handed to Ray: what has room, and one node's worth of demand beyond."""

from __future__ import annotations

from rayloom.dag.resources import NodeShape, ResourceShape
from rayloom.dag.window import AHEAD_NODES, LOOKS, MAX_DEMAND, MAX_KNOWN, QUICK_S, TRIAL, Use, Window

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


def test_others_hold_what_is_in_use_and_not_ours_at_every_one_of_the_last_looks() -> None:
    window = Window()
    for free in (0.0, 1.0, 0.5, 0.0, 0.0):
        window.look([NODE], [], total={"CPU": 2, "sandbox": 1}, free={"CPU": free, "sandbox": 1.0})
    assert window.others == {"CPU": 1.0, "sandbox": 0.0}
    assert window.room(ONE) == 1
    window.take(ONE)
    for _ in range(LOOKS):
        window.look([NODE], [], total={"CPU": 2}, free={"CPU": 1.5})
    assert window.others == {"CPU": 0.0}


def test_demand_that_runs_on_a_new_node_is_ours_and_there_is_room_for_the_next() -> None:
    window = Window()
    window.look([], [BIG], total={}, free={})
    assert _taken(window, ONE, 5) == [False, False, False, False, None]
    # The node has come, Ray runs all four on it, and nothing new is queued meanwhile.
    for _ in range(LOOKS + 1):
        window.look([BIG], [BIG], total={"CPU": 4}, free={"CPU": 0})
        assert window.others == {"CPU": 0.0}
    assert window.running == {ONE: 4}
    assert _taken(window, ONE, 5) == [False, False, False, False, None]


def test_an_end_gives_its_room_to_demand() -> None:
    window = Window(nodes=[NODE])
    _taken(window, ONE, 3)
    window.ended(ONE, SLOW, lasted_s=9.0)
    assert (window.running, window.demand) == ({ONE: 2}, {})


QUICK, SLOW = ("task", "quick"), ("task", "slow")


def _quick_ends(window: Window, count: int, use: Use = QUICK) -> None:
    """So many attempts that come and end quickly, one after the other."""
    for _ in range(count):
        window.take(ONE)
        window.ended(ONE, use, lasted_s=QUICK_S)


def _earned(window: Window, lead: int, use: Use = QUICK) -> None:
    """A task has earned so much."""
    _quick_ends(window, TRIAL + lead, use)


def test_quick_ends_in_a_row_let_more_be_handed_over_up_to_a_limit() -> None:
    window = Window(nodes=[NODE])
    _earned(window, 0)
    assert window.capacity(ONE) == 2 + 2
    _quick_ends(window, 3)
    assert window.capacity(ONE) == 2 + 2 + 3
    _quick_ends(window, 1_000)
    assert window.capacity(ONE) == 2 + 2 * AHEAD_NODES
    assert window.capacity(HALF) == 4 + 4


def test_a_slow_end_takes_that_back() -> None:
    window = Window(nodes=[NODE])
    _earned(window, 10)
    window.take(ONE)
    window.ended(ONE, SLOW, lasted_s=QUICK_S + 0.001)
    assert window.capacity(ONE) == 4


def test_an_autoscaler_sees_one_nodes_worth_however_quick() -> None:
    window = Window(nodes=[NODE], types=[NODE])
    _earned(window, 10)
    assert window.capacity(ONE) == 4


def test_what_is_beyond_a_nodes_worth_and_not_known_to_be_quick_is_given_back() -> None:
    window = Window(nodes=[NODE])
    _earned(window, 10)
    taken = _taken(window, ONE, 8)
    assert taken == [True, True, *[False] * 6]
    assert window.surplus(ONE, [QUICK, SLOW, SLOW, SLOW, QUICK, SLOW]) == [2, 3, 5]
    assert window.allowance(ONE) == 0


def test_what_was_handed_over_before_counts_too() -> None:
    window = Window(nodes=[NODE])
    _earned(window, 10)
    _taken(window, ONE, 5)
    assert window.surplus(ONE, [SLOW, SLOW]) == [1]
    assert window.surplus(ONE, [QUICK, QUICK, QUICK]) == []
    assert window.surplus(ONE, []) == []


def test_what_one_task_has_earned_is_no_other_tasks() -> None:
    window = Window(nodes=[NODE])
    other = ("other task", "quick")
    _earned(window, 30)
    _earned(window, 1, other)
    taken = _taken(window, ONE, 40)
    demand = taken.count(False)
    assert demand == 2 * AHEAD_NODES
    # Two within a node's worth, one that it earned; the rest goes back, and nobody has a lead any more.
    assert window.surplus(ONE, [other] * demand) == list(range(3, demand))
    assert window.allowance(ONE) == 0


def test_many_small_tasks_earn_nothing() -> None:
    window = Window(nodes=[NODE])
    for number in range(100):
        _quick_ends(window, TRIAL, (f"task{number}", "quick"))
    assert window.capacity(ONE) == 4


def test_what_is_known_to_be_quick_is_bounded() -> None:
    window = Window(nodes=[NODE])
    for number in range(MAX_KNOWN + 1):
        window.take(ONE)
        window.ended(ONE, (f"task{number}", "tool"), lasted_s=0.0)
    assert len(window._quick) <= MAX_KNOWN


def test_demand_is_bounded_over_all_shapes() -> None:
    window = Window(nodes=[NODE])
    shapes = [ResourceShape(cpus=0.5 + number / 10_000) for number in range(MAX_DEMAND)]
    handed = [window.take(shape) for shape in shapes for _ in range(4)]
    assert handed.count(False) == MAX_DEMAND


def test_a_shape_is_hopeless_when_no_node_could_ever_run_it() -> None:
    assert Window(nodes=[NODE], types=[BIG]).is_hopeless(HUGE)
    assert not Window(nodes=[NODE], types=[BIG]).is_hopeless(ONE)
    assert not Window(nodes=[NODE], types=[BIG]).is_hopeless(ResourceShape(cpus=4))
    assert not Window().is_hopeless(HUGE)
