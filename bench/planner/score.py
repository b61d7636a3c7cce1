"""How near a plan comes to the graph that a record wants."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from bench.planner.records import GoldNode, Record
from rayloom.dag import graph
from rayloom.dag.plan import Subtask, TaskType
from rayloom.dag.planning.read import CODE, THINK
from rayloom.dag.verified import VerifiedPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of one plan. F1: 1 where it has just what is wanted. ``width_ratio``: how much may run at once, of the wanted."""

    node_f1: float
    edge_f1: float
    width_ratio: float


def score(plan: VerifiedPlan, record: Record) -> Score:
    """The score of a plan."""
    places = _matched([subtask.spec for subtask in plan.subtasks], record)
    found = {
        (places.get(needed, f"?{needed}"), places.get(subtask.ordinal, f"?{subtask.ordinal}"))
        for subtask in plan.subtasks
        for needed in subtask.dependencies
    }
    return Score(
        node_f1=_f1(len(places), len(plan.subtasks), len(record.nodes)),
        edge_f1=_f1(len(_reduced(found) & record.edges), len(_reduced(found)), len(record.edges)),
        width_ratio=plan.width / _width(record),
    )


def _matched(subtasks: list[Subtask], record: Record) -> dict[int, str]:
    """For the ordinals of subtasks the wanted nodes that they are: the likest first, each once."""
    pairs = [
        (-_likeness(subtask, node), ordinal, place, node.id)
        for ordinal, subtask in enumerate(subtasks)
        for place, node in enumerate(record.nodes)
        if _likeness(subtask, node)
    ]
    matched: dict[int, str] = {}
    for _, ordinal, _, name in sorted(pairs):
        if ordinal not in matched and name not in matched.values():
            matched[ordinal] = name
    return matched


def _likeness(subtask: Subtask, node: GoldNode) -> float:
    """0 where it can't be this one."""
    kind = subtask.tool or (THINK if subtask.type is TaskType.REASONING else CODE)
    if kind != node.tool:
        return 0.0
    said = json.dumps([subtask.id, subtask.name, subtask.instruction, subtask.input], ensure_ascii=False).lower()
    return 1.0 + sum(word.lower() in said for word in node.words) / max(1, len(node.words))


def _reduced(edges: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without those that others imply."""
    names = sorted({name for edge in edges for name in edge})
    waiting = [sorted(names.index(late) for early, late in edges if early == name) for name in names]
    return {
        (early, late)
        for early, late in edges
        if not any(
            names.index(late) in graph.reachable(waiting, [other])
            for other in waiting[names.index(early)]
            if names[other] != late
        )
    }


def _width(record: Record) -> int:
    names = [node.id for node in record.nodes]
    needed = [[names.index(early) for early, late in record.edges if late == name] for name in names]
    return graph.width(graph.levels(needed))


def _f1(hits: int, found: int, wanted: int) -> float:
    return 1.0 if found == wanted == 0 else 2 * hits / (found + wanted)
