"""What the Ray cluster offers: its live nodes, the kinds of node that it could start, and what others use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ray

from rayloom.dag.resources import NodeShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """``nodes``: one entry a live node. ``types``: those kinds of node that an autoscaler could add.

    ``total`` and ``free``: all that there is, and what nobody uses right now, by resource.
    """

    nodes: tuple[NodeShape, ...] = ()
    types: tuple[NodeShape, ...] = ()
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)


def look_at_cluster(types: tuple[NodeShape, ...]) -> ClusterView:
    """Ask Ray's control service. Blocks for some milliseconds: call it in a thread. ``types``: see `ClusterView`."""
    nodes = tuple(
        NodeShape(total=dict(node["Resources"]), labels=dict(node.get("Labels") or {}), count_max=1)
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray ships it untyped
        if node["Alive"]
    )
    return ClusterView(
        nodes=nodes,
        types=types,
        total=dict(ray.cluster_resources()),  # type: ignore[no-untyped-call]  # Ray ships it untyped
        free=dict(ray.available_resources()),  # type: ignore[no-untyped-call]  # Ray ships it untyped
    )
