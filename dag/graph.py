"""The plan as a graph of ordinals: cycles, levels, ranks. Loops only, and linear: a hundred thousand nodes are fine.

Everything takes ``dependencies``: for each node, by its place, the places of the nodes that must be done before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import networkx as nx

Edges: TypeAlias = Sequence[Sequence[int]]


def find_cycles(dependencies: Edges) -> list[tuple[int, ...]]:
    """One cycle of every knot of cycles, its members in the order in which they would have to run.

    Empty where the graph is a DAG. A node that depends on itself is a cycle of one.
    """
    graph = _digraph(dependencies)
    found = []
    for knot in nx.strongly_connected_components(graph):
        first = min(knot)
        if len(knot) > 1 or graph.has_edge(first, first):
            # Inside a knot every node leads on, so the walk from any of them closes a cycle without turning back.
            steps = nx.find_cycle(graph.subgraph(knot), source=first)
            members = [step[0] for step in steps]
            start = members.index(min(members))
            found.append((*members[start:], *members[:start]))
    return sorted(found, key=min)


def levels(dependencies: Edges) -> list[list[int]]:
    """The nodes by their distance from the roots, counted along the longest way; each level in ascending order.

    Raises ValueError where there is a cycle.
    """
    try:
        return [sorted(level) for level in nx.topological_generations(_digraph(dependencies))]
    except nx.NetworkXUnfeasible:
        raise ValueError("the graph has a cycle, so it has no levels") from None


def width(layers: Sequence[Sequence[int]]) -> int:
    """The size of the largest level: how many nodes run at once if all took equally long.

    The largest set of mutually independent nodes can be larger; finding it costs more than knowing it is worth.
    """
    return max((len(layer) for layer in layers), default=0)


def dependents(dependencies: Edges) -> tuple[tuple[int, ...], ...]:
    """For each node the nodes that wait for it, ascending: the same edges from the other end."""
    waiting: list[list[int]] = [[] for _ in dependencies]
    for node, needed in enumerate(dependencies):
        for dependency in needed:
            waiting[dependency].append(node)
    return tuple(map(tuple, waiting))


def ranks(layers: Sequence[Sequence[int]], waiting: Edges) -> list[int]:
    """For each node the number of nodes on the longest way from it to a sink, itself counted: a sink has 1.

    The higher, the more work hangs on it; whatever runs in this order, highest first, follows the critical path.
    """
    rank = [1] * len(waiting)
    for layer in reversed(layers):
        for node in layer:
            rank[node] = 1 + max((rank[dependent] for dependent in waiting[node]), default=0)
    return rank


def critical_path(layers: Sequence[Sequence[int]], waiting: Edges, rank: Sequence[int]) -> tuple[int, ...]:
    """The nodes of a longest way from a root to a sink, in running order; of several the one of lowest ordinals."""
    following: Sequence[int] = layers[0] if layers else ()
    path: list[int] = []
    while following:
        # max takes the first of equals, and every list here ascends.
        path.append(max(following, key=rank.__getitem__))
        following = waiting[path[-1]]
    return tuple(path)


def reachable(edges: Edges, starts: Iterable[int]) -> set[int]:
    """Every node that ``starts`` lead to, over any number of edges; a start itself only where something leads back.

    With dependents for edges: all that waits for the starts; with dependencies: all that they wait for.
    """
    reached: set[int] = set()
    ahead = list(starts)
    while ahead:
        for node in edges[ahead.pop()]:
            if node not in reached:
                reached.add(node)
                ahead.append(node)
    return reached


def _digraph(dependencies: Edges) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(dependencies)))
    graph.add_edges_from((needed, node) for node, all_needed in enumerate(dependencies) for needed in all_needed)
    return graph
