"""Levels, ranks and cycles of small graphs whose answers can be seen."""

from __future__ import annotations

import pytest

from rayloom.dag import graph

# 0 -> 1 -> 3 -> 4, 0 -> 2 -> 3: a diamond with a tail, and 5 by itself.
DIAMOND = [(), (0,), (0,), (1, 2), (3,), ()]


def test_levels_are_distances_along_the_longest_way() -> None:
    assert graph.levels(DIAMOND) == [[0, 5], [1, 2], [3], [4]]
    assert graph.width(graph.levels(DIAMOND)) == 2
    assert graph.levels([]) == []
    assert graph.width([]) == 0


def test_dependents_are_the_same_edges_from_the_other_end() -> None:
    assert graph.dependents(DIAMOND) == ((1, 2), (3,), (3,), (4,), (), ())


def test_a_rank_counts_the_nodes_of_the_longest_way_to_a_sink() -> None:
    layers, waiting = graph.levels(DIAMOND), graph.dependents(DIAMOND)
    rank = graph.ranks(layers, waiting)
    assert rank == [4, 3, 3, 2, 1, 1]
    assert graph.critical_path(layers, waiting, rank) == (0, 1, 3, 4)
    assert graph.critical_path([], [], []) == ()


def test_a_cycle_is_named_in_running_order_from_its_first_member() -> None:
    # 2 waits for 0, 1 for 2, 0 for 1; and 3 hangs on to it, 4 leads to it.
    assert graph.find_cycles([(1, 4), (2,), (0,), (0,), ()]) == [(0, 2, 1)]


def test_every_knot_of_cycles_shows_one() -> None:
    found = graph.find_cycles([(1,), (0,), (3,), (2, 4), (3,), (5,)])
    assert len(found) == 3
    assert found[0] == (0, 1)
    assert found[1][0] in (2, 3)
    assert found[2] == (5,)


def test_a_dag_has_no_cycle_and_a_cycle_has_no_levels() -> None:
    assert graph.find_cycles(DIAMOND) == []
    with pytest.raises(ValueError, match="cycle"):
        graph.levels([(1,), (0,)])


def test_a_long_cycle_is_found_without_recursion() -> None:
    count = 5_000
    ring = [((node - 1) % count,) for node in range(count)]
    (cycle,) = graph.find_cycles(ring)
    assert cycle == tuple(range(count))


def test_reachable_is_everything_ahead() -> None:
    waiting = graph.dependents(DIAMOND)
    assert graph.reachable(waiting, [1]) == {3, 4}
    assert graph.reachable(DIAMOND, [3]) == {0, 1, 2}
    assert graph.reachable(waiting, [5]) == set()
    assert graph.reachable([(1,), (0,)], [0]) == {0, 1}
