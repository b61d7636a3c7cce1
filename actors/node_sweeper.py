"""The reaper's arm to every node: what dead workers have left there, removed also where no sandbox runs any more.

A worker that runs sandboxes tidies its own node. On a node whose workers all died, or run none, nobody would: so a
short Ray task goes to each node when it is first seen, and now and then after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayloom.tools.sandbox.tidy import tidy
from rayloom.tools.settings import ToolSettings

_log = logging.getLogger(__name__)

LOOK_S: Final = 60.0
EVERY_S: Final = 1_800.0
"""Seldom: it may take a worker process of its own, and a node that is to be given up must be seen to be idle."""
TASK_S: Final = 120.0


def tidied(settings: ToolSettings) -> dict[str, int]:
    """`tidy`, as what runs on a node."""
    return asyncio.run(tidy(settings))


def live_nodes() -> frozenset[str]:
    """The ids of the cluster's nodes. Blocks for some milliseconds."""
    return frozenset(
        node["NodeID"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray ships it untyped
        if node["Alive"]
    )


class NodeSweeper:
    """Knows when each node was last seen to. ``look_s``: how often it looks for new ones."""

    def __init__(
        self,
        settings: ToolSettings,
        *,
        nodes: Callable[[], frozenset[str]] = live_nodes,
        look_s: float = LOOK_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._settings, self._nodes, self._look_s, self._every_s = settings, nodes, look_s, every_s
        self._task: Any = ray.remote(num_cpus=0, max_retries=0)(tidied)
        self._seen: dict[str, float] = {}

    async def step(self) -> float:
        """See to the nodes that are due, all at once; gives in how many seconds to come again."""
        nodes, now = await asyncio.to_thread(self._nodes), time.monotonic()
        self._seen = {node: at for node, at in self._seen.items() if node in nodes}
        due = [node for node in nodes if now - self._seen.get(node, -self._every_s) >= self._every_s]
        # Whatever comes of it: a node that fails is not asked again at once.
        self._seen |= dict.fromkeys(due, now)
        await asyncio.gather(*(self._sweep(node) for node in due))
        return self._look_s

    async def _sweep(self, node: str) -> None:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        ref = self._task.options(name="rayloom:sweep", scheduling_strategy=there).remote(self._settings)
        try:
            async with asyncio.timeout(TASK_S):
                found: Mapping[str, int] = await ref
        except TimeoutError:
            ray.cancel(ref)
            _log.warning("node.not_swept", extra={"node": node, "reason": f"not within {TASK_S:g} s"})
            return
        except RayError as error:
            # It died, or its worker did; the next one that comes by sees to it.
            # Ray tells where it was first, and what it was last.
            said = str(error).strip().splitlines() or [type(error).__name__]
            _log.info("node.not_swept", extra={"node": node, "reason": said[-1][:200]})
            return
        if found:
            _log.warning("node.swept", extra={"node": node, "found": dict(found)})
