"""The scheduler on Ray: the one place where it becomes an actor, and its callers' side.

What it is made of is imported where it lives (see `singletons`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import ray

from rayloom.actors.callers import HEALTH_TIMEOUT_S, RayRegistry, RayTokens
from rayloom.actors.named import NamedActor
from rayloom.actors.nodes import ClusterView, look_at_cluster
from rayloom.actors.periodic import repeat
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.actors.singletons import HEALTH_GROUP, start_singleton
from rayloom.dag.answer import Answer, as_value
from rayloom.dag.ports import Health, Waiting
from rayloom.dag.resources import NodeShape, ResourceShape
from rayloom.db import faults

if TYPE_CHECKING:
    from rayloom.actors.node_sweeper import NodeSweeper

_log = logging.getLogger(__name__)

SCHEDULER_NAME: Final = "rayloom-scheduler-v1"
SWEEP_AFTER_S: Final = 30.0


def _go_before_workers() -> None:
    """Ray runs every worker, this one too, at niceness 15. Whoever may, takes the scheduler out of that row.

    Measured on 2 cores: a scheduler that waits behind the attempts it hands out halves the throughput.
    """
    try:
        for thread in os.listdir("/proc/self/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)
    except PermissionError:
        # Only root may, or whoever has a limit for it (RLIMIT_NICE); all works without, only slower under load.
        _log.info("scheduler.niceness_kept")


async def _sweep_nodes(sweeper: NodeSweeper) -> None:
    # Not while everything starts.
    await asyncio.sleep(SWEEP_AFTER_S)
    await repeat("nodes.sweep", sweeper.step, after_error_s=SWEEP_AFTER_S)


class _SchedulerActor:
    """``Scheduler`` as an actor. ``health`` has a group, and so an event loop, of its own."""

    async def __init__(self, settings: WorkerSettings, cluster: str) -> None:  # type: ignore[misc]  # Ray awaits it
        _go_before_workers()
        from rayloom.actors.lanes import OwnLane
        from rayloom.actors.node_sweeper import NodeSweeper
        from rayloom.actors.parsing import ServeParser
        from rayloom.actors.scheduler import Scheduler

        faults.install(settings.engine.faults, "scheduler")
        self._lane = OwnLane(settings.for_workers())

        async def look() -> ClusterView:
            return await asyncio.to_thread(look_at_cluster, settings.engine.node_types)

        self._scheduler = Scheduler(
            settings,
            lane=self._lane,
            registry=RayRegistry(settings.engine),
            tokens=RayTokens(settings.engine),
            parser=ServeParser(answer_s=settings.engine.plan_answer_s),
            look=look,
            # One actor of this name in a cluster, restarted by Ray: its lives never overlap.
            actor=f"{cluster}/{ray.get_runtime_context().get_actor_id()}",
        )
        await self._scheduler.start()
        self._sweeping = asyncio.create_task(_sweep_nodes(NodeSweeper(settings.tools)))

    async def wake(self) -> Answer[None]:
        return await as_value(self._scheduler.wake())

    async def stop(self, attempts: Sequence[tuple[str, int]]) -> Answer[None]:
        return await as_value(self._scheduler.stop(attempts))

    async def nodes(self) -> Answer[Sequence[NodeShape]]:
        return await as_value(self._scheduler.nodes())

    async def waiting(self, sub_task_id: str, user_id: str, shape: str) -> Answer[Waiting]:
        return await as_value(self._scheduler.waiting(sub_task_id, user_id, shape))

    async def knows_tools(self, version: int) -> Answer[bool]:
        return await as_value(self._scheduler.knows_tools(version))

    async def warm(self, cpus: float, count: int) -> Answer[None]:
        self._lane.warm(ResourceShape(cpus=cpus), count)
        return ("ok", None)

    async def close(self) -> Answer[None]:
        self._sweeping.cancel()
        return await as_value(self._scheduler.close())

    @ray.method(concurrency_group=HEALTH_GROUP)
    async def health(self) -> Answer[Health]:
        return await as_value(self._scheduler.health())


def start_scheduler(settings: WorkerSettings, *, cluster: str) -> RayScheduler:
    """Start the scheduler, unless it runs already. ``cluster`` names the Ray cluster, to tell schedulers apart."""
    start_singleton(_SchedulerActor, settings, cluster, name=SCHEDULER_NAME, engine=settings.engine)
    return RayScheduler(settings.engine)


class RayScheduler:
    """The scheduler of a Ray cluster, by name: ``SchedulerPort``. Belongs to one event loop.

    Every method may raise Transient (``ACTOR_UNAVAILABLE``) and may then be called again.
    """

    def __init__(self, engine: EngineSettings) -> None:
        self._actor = NamedActor(SCHEDULER_NAME, engine.namespace)

    async def wake(self) -> None:
        """There is new work; used when Redis can't say so."""
        await self._actor.call("wake", idempotent=True)

    async def stop(self, attempts: Sequence[tuple[str, int]]) -> None:
        """Stop these running attempts (subtask id, attempt number) whose rows are already CANCELLED."""
        await self._actor.call("stop", list(attempts), idempotent=True)

    async def nodes(self) -> Sequence[NodeShape]:
        """Every kind of node that the cluster has or could start."""
        nodes: Sequence[NodeShape] = await self._actor.call("nodes", idempotent=True)
        return nodes

    async def waiting(self, sub_task_id: str, user_id: str, shape: str) -> Waiting:
        """What it knows of a QUEUED subtask. Does not wait for a restart."""
        known: Waiting = await self._actor.call("waiting", sub_task_id, user_id, shape, idempotent=True, retry_for_s=0)
        return known

    async def knows_tools(self, version: int) -> bool:
        """Wait until what it starts is judged by the tools of this version or a newer one. False: not in time.

        Does not wait for a restart: a new life asks the registry before it starts anything.
        """
        knows: bool = await self._actor.call("knows_tools", version, idempotent=True, retry_for_s=0)
        return knows

    async def warm(self, *, cpus: float, count: int) -> None:
        """Have ``count`` workers for attempts of so many CPUs each started now. Does not wait for them."""
        await self._actor.call("warm", cpus, count, idempotent=True)

    async def close(self) -> None:
        """End its life in order: its leases are given back at once."""
        await self._actor.call("close", idempotent=True)

    async def health(self) -> Health:
        """Alive, with counts of what it holds. Does not wait for a restart."""
        health: Any = await self._actor.call("health", idempotent=True, timeout_s=HEALTH_TIMEOUT_S, retry_for_s=0)
        return dict(health)
