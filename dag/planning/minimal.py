"""No more order than the work needs: dependencies that others imply are left out."""

from __future__ import annotations

import networkx as nx

from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan


def minimal(verified: VerifiedPlan) -> tuple[JsonObject, int]:
    """The plan with as few ``depends_on`` as say the same, and how many were left out.

    Left out is what a reference implies, and what follows from other dependencies. What runs before what stays as it
    is, and so do width and critical path.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(verified.subtasks)))
    graph.add_edges_from((needed, subtask.ordinal) for subtask in verified.subtasks for needed in subtask.dependencies)
    reduced = nx.transitive_reduction(graph)
    ordinals = {subtask.spec.id: subtask.ordinal for subtask in verified.subtasks}
    subtasks: list[JsonObject] = []
    removed = 0
    for subtask in verified.subtasks:
        implied = {*subtask.references, *subtask.fallback_references}
        kept = [
            name
            for name in dict.fromkeys(subtask.spec.depends_on)
            if name not in implied and reduced.has_edge(ordinals[name], subtask.ordinal)
        ]
        removed += len(subtask.spec.depends_on) - len(kept)
        written: JsonObject = subtask.spec.model_dump(mode="json", exclude_unset=True)
        written.pop("depends_on", None)
        subtasks.append({**written, "depends_on": list(kept)} if kept else written)
    return {"subtasks": list(subtasks)}, removed
