"""The singletons of a Ray cluster as the ports that the API works with.

Who deploys the API imports this, and what it makes is made in a replica: imported there, too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rayloom.actors.settings import EngineSettings
from rayloom.dag.ports import Health
from rayloom.db import faults

if TYPE_CHECKING:
    from rayloom.serve.deps import Ports


async def _ray_health() -> Health:
    """Asks Ray's control service; raises when it does not answer."""
    import ray

    nodes = await asyncio.to_thread(ray.nodes)
    return {"nodes": sum(bool(node["Alive"]) for node in nodes)}


def ray_ports(engine: EngineSettings) -> Ports:
    """Ports that find their actors by name, in whichever process they are made."""
    from rayloom.actors.callers import RayRegistry, RayTokens
    from rayloom.actors.mcp_caller import RayMcp
    from rayloom.actors.parsing import ServeParser
    from rayloom.actors.scheduler_actor import RayScheduler
    from rayloom.serve.deps import Ports

    # The one place in which a replica of the API learns of the engine's settings, before it connects to anything.
    faults.install(engine.faults, "api")
    return Ports(
        scheduler=RayScheduler(engine),
        registry=RayRegistry(engine),
        tokens=RayTokens(engine),
        mcp=RayMcp(engine),
        parser=ServeParser(answer_s=engine.plan_answer_s),
        ray=_ray_health,
    )
