"""What dead processes of ours have left on a host, removed by whoever comes by: no run need ever follow."""

from __future__ import annotations

import asyncio

from rayloom.tools.sandbox import cgroup, container, package_store
from rayloom.tools.sandbox.engine import Engine
from rayloom.tools.sandbox.remote import Service
from rayloom.tools.settings import ToolSettings


async def tidy(settings: ToolSettings) -> dict[str, int]:
    """Remove it; how many there were of each kind, where there were any. Nothing that somebody still has is touched.

    Containers are looked for where the settings lead to an engine, and machines elsewhere where the settings choose
    those: the ones whose owners are dead, as far as that can be seen from here, or whose time is over (`owner`).
    """
    await asyncio.to_thread(cgroup.sweep)
    found = {"half-made packages": await asyncio.to_thread(package_store.tidy)}
    if settings.sandbox in ("auto", "docker"):
        found["containers"] = await container.sweep(Engine(settings.docker.address))
    elif settings.sandbox == "e2b":
        found["machines elsewhere"] = await Service(settings.e2b).sweep()
    return {what: count for what, count in found.items() if count}
