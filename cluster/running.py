"""What `rayloom up` has started on Ray, and how it is taken away again: all of it, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from rayloom.actors.settings import EngineSettings, WorkerSettings

_log = logging.getLogger(__name__)

_CLOSE_S = 10.0
"""How long the scheduler may take to give its leases back."""


@dataclass(slots=True)
class RunningCluster:
    """Ray and Serve, started."""

    urls: Mapping[str, str]
    api_key: str
    settings: WorkerSettings
    owns_ray: bool
    owns_serve: bool = True
    """Whether Serve did not run on this Ray before we started it."""

    async def stop(self) -> None:
        """Drain Serve, end the scheduler's life in order, then end Ray if we started it, or leave it.

        A step that fails is logged, and the others are taken all the same.
        """
        import ray

        from rayloom.actors.scheduler_actor import RayScheduler

        await _step("serve", asyncio.to_thread(self._end_serve))
        # When it fails: the scheduler is ended either way, and its leases run out by themselves.
        await _step("scheduler", asyncio.wait_for(RayScheduler(self.settings.engine).close(), timeout=_CLOSE_S))
        end_singletons(self.settings.engine)
        ray.shutdown()

    async def undo(self, deploying: asyncio.Future[None] | None) -> None:
        """The same for a start that failed on the way; ``deploying`` may still be putting our application on Serve."""
        if deploying is not None:
            # In a thread, which can't be cancelled; what it puts there is to be seen by who takes it away.
            await _step("deploying", deploying)
        await self.stop()

    def _end_serve(self) -> None:
        from ray import serve

        from rayloom.actors.parsing import APPLICATION
        from rayloom.cluster.local_model.deployment import MODEL_APPLICATION

        if not self.owns_ray:
            applications, ours = serve.status().applications, {APPLICATION, MODEL_APPLICATION}
            for name in ours & set(applications):
                serve.delete(name)
            if not self.owns_serve or set(applications) - ours:
                # Others have theirs on this Serve.
                return
        serve.shutdown()  # type: ignore[no-untyped-call]


def end_singletons(engine: EngineSettings) -> None:
    """End the singletons of this Ray, those of an earlier `up` too."""
    import ray

    from rayloom.actors.callers import REGISTRY_NAME, TOKENS_NAME
    from rayloom.actors.mcp_caller import MCP_NAME
    from rayloom.actors.scheduler_actor import SCHEDULER_NAME

    for name in (SCHEDULER_NAME, MCP_NAME, REGISTRY_NAME, TOKENS_NAME):
        try:
            ray.kill(ray.get_actor(name, namespace=engine.namespace), no_restart=True)
        except ValueError:
            _log.debug("singleton.absent: %s", name)


async def _step(name: str, work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - what is left must be taken away all the same
        _log.warning("stop.failed: %s", name, extra={"error": f"{type(error).__name__}: {error}"})
