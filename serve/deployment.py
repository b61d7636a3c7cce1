"""The thin Ray Serve wrapping: the API's ingress and the parser, each a plain thing made elsewhere.

Who deploys them has to import them: what a replica is made of is imported in the replica.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from rayloom.dag.answer import Answer, as_value, as_values
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.replan import ReplanRequest
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.serve.replica_port import stay_on_node_address
from rayloom.serve.settings import REPLICA_RETRIES, ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rayloom.serve.deps import Ports
    from rayloom.serve.parser import ModelsFor

API_DEPLOYMENT: Final = "Api"
PARSER_DEPLOYMENT: Final = "Parser"
# The app refuses by itself, in JSON: Serve must let every request reach it.
HEADROOM: Final = 200
LOOK_S: Final = 2.0
"""How often Serve looks whether a replica lives: so long nobody may answer after one has died."""
DRAIN_LOOK_S: Final = 0.5
"""How often a replica that is to end looks whether its requests have ended."""

PortsFactory: TypeAlias = "Callable[[], Ports]"
"""Makes the ports inside the replica; pickled by name and arguments."""


ModelsFactory: TypeAlias = "Callable[[], ModelsFor]"
"""Makes the models inside the replica; pickled by name and arguments."""


class ParserDeployment:
    """The parser behind Serve: its errors cross as values."""

    def __init__(self, models: ModelsFactory | None = None) -> None:
        from rayloom.serve.parser import Parser

        stay_on_node_address()
        self._parser = Parser(None if models is None else models())

    async def plan(self, request: PlanRequest) -> Answer[Planned]:
        """Parse a prompt and split it into a plan, or say why that can't be done."""
        return await as_value(self._parser.plan(request))

    async def stream(self, request: PlanRequest) -> AsyncIterator[Answer[Early | Planned]]:
        """The same, but first what of the plan may run already."""
        async with aclosing(self._parser.stream(request)) as found:
            async for answer in as_values(found):
                yield answer

    async def replan(self, request: ReplanRequest) -> Answer[Planned]:
        """What to add to the plan of a running task, or why that can't be said."""
        return await as_value(self._parser.replan(request))


class Api:
    """The ingress: an app that is built in the replica, from values that cross processes."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: ServeSettings,
        database: DatabaseSettings,
        redis: RedisSettings,
        blobs: BlobSettings,
        ports: PortsFactory,
        parser: DeploymentHandle[Any],
    ) -> None:
        from rayloom.serve.deps import open_deps

        stay_on_node_address()
        self._settings = settings
        self._open = lambda: open_deps(settings, database, redis, blobs, ports())
        # Bound so that Serve brings it up first; it is called by name, like every singleton.
        self._parser = parser

    def __serve_build_asgi_app__(self) -> FastAPI:
        from rayloom.serve.app import build_app

        return build_app(self._settings, self._open)


def bind(
    settings: ServeSettings,
    database: DatabaseSettings,
    redis: RedisSettings,
    blobs: BlobSettings,
    ports: PortsFactory,
    models: ModelsFactory | None = None,
) -> serve.Application:
    """The application for ``serve.run(…, route_prefix="/")``. ``models``: what plans prompts; None: their outline.

    Serve's own ``request_timeout_s`` must be null: it would cut event streams, and a client may raise it.
    """
    parser: Any = serve.deployment(
        ParserDeployment,
        name=PARSER_DEPLOYMENT,
        max_ongoing_requests=8,
        max_queued_requests=200,
        autoscaling_config=_scaling(settings.parser_replicas, settings.parser_replicas_max, target=4),
        ray_actor_options=_actor(settings),
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
        health_check_period_s=LOOK_S,
        max_constructor_retry_count=REPLICA_RETRIES,
    )
    ongoing = settings.admission_requests + settings.admission_streams + HEADROOM
    api: Any = serve.deployment(
        serve.ingress()(Api),
        name=API_DEPLOYMENT,
        max_ongoing_requests=ongoing,
        max_queued_requests=-1,
        autoscaling_config=_scaling(settings.api_replicas, settings.api_replicas_max, target=ongoing / 4),
        ray_actor_options=_actor(settings),
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_S,
        health_check_period_s=LOOK_S,
        max_constructor_retry_count=REPLICA_RETRIES,
    )
    application: serve.Application = api.bind(settings, database, redis, blobs, ports, parser.bind(models))
    return application


def _actor(settings: ServeSettings) -> dict[str, Any]:
    return {"num_cpus": settings.replica_cpus}


def _scaling(start: int, most: int, *, target: float) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=start,
        max_replicas=max(start, most),
        target_ongoing_requests=target,
        upscale_delay_s=5,
        downscale_delay_s=120,
    )
