"""The API on Serve: started, beside what else runs there, and waited for."""

from __future__ import annotations

import asyncio
from functools import partial

from rayloom.actors.settings import WorkerSettings
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.settings import Settings


def serve_runs() -> bool:
    """Whether a Serve runs on this Ray already."""
    from ray import serve

    # Without a Serve it has no proxies; a Serve has them as soon as it runs.
    return bool(serve.status().proxies)


def start_serve(settings: Settings, worker_settings: WorkerSettings) -> None:
    """Start Serve, unless it runs, and have it bring up the API; returns before that is up.

    Raises StartRefused when not even a proxy comes up.
    """
    from ray import serve
    from ray.exceptions import RayActorError

    from rayloom.actors.parsing import APPLICATION
    from rayloom.cluster.planning_models import planning_models
    from rayloom.cluster.ports import ray_ports
    from rayloom.serve.deployment import bind

    start = partial(
        serve.start,
        http_options={"host": settings.host, "port": settings.port, "request_timeout_s": None},
        logging_config={"enable_access_log": False},
    )
    for is_last in (False, True):
        try:
            start()
            break
        except (RayActorError, TimeoutError) as error:
            # The proxy that this waited for was too slow, or died, and Serve replaces it; now Serve runs.
            if is_last:
                raise StartRefused(
                    f"Serve's proxy did not start ({type(error).__name__}): is port {settings.port} free on every "
                    "node, and the machine not too busy?"
                ) from None
    given, ports = worker_settings, partial(ray_ports, worker_settings.engine)
    models = partial(planning_models, given.models, given.engine) if given.models.is_configured else None
    application = bind(settings.serve, given.database, given.redis, given.blobs, ports, models)
    # Not `serve.run`: it waits as long as it takes, and nothing can end that.
    serve.run_many(
        [serve.RunTarget(target=application, name=APPLICATION, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def serve_model(llama: LlamaSettings | None) -> None:
    """Have Serve bring up a local model, or end the one of an earlier `up`; returns before the model is loaded."""
    from rayloom.cluster.local_model.deployment import deploy, withdraw

    if llama is None:
        withdraw()
    else:
        deploy(llama)


async def until_deployed(within_s: float) -> None:
    """Wait until Serve says that the API runs. Raises StartRefused when it can't, or takes longer."""
    from ray import serve

    from rayloom.actors.parsing import APPLICATION

    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        status = await asyncio.to_thread(serve.status)
        ours = status.applications.get(APPLICATION)
        if ours is not None and ours.status == "RUNNING":
            return
        said = "it is not known to Serve" if ours is None else f"{ours.status} {ours.message}".strip()
        if ours is not None and ours.status == "DEPLOY_FAILED":
            raise StartRefused(f"Serve can't run the API: {said}")
        if asyncio.get_running_loop().time() > deadline:
            raise StartRefused(f"Serve did not bring up the API within {within_s:.0f} s: {said}")
        await asyncio.sleep(0.1)
