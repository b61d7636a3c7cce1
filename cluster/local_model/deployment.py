"""The local model on Serve: one replica, on the machine where the model was installed, with the server as its child."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from ray import serve
from starlette.applications import Starlette

from rayloom.cluster.embedded.identity import myself
from rayloom.cluster.embedded.keeper import Keeper
from rayloom.cluster.local_model.chosen import ROUTE
from rayloom.cluster.local_model.door import MOST_AT_ONCE, build_door
from rayloom.cluster.local_model.server import LlamaServer, LlamaSettings
from rayloom.serve.replica_port import stay_on_node_address
from rayloom.serve.settings import REPLICA_RETRIES

_log = logging.getLogger(__name__)

MODEL_APPLICATION: Final = "rayloom-local-model"


RETRY_S: Final = 30.0
"""How long a server that could not be started is left alone, though somebody asks."""


class KeptServer:
    """The server of this process, kept running: a `Behind` of the door."""

    def __init__(self, settings: LlamaSettings) -> None:
        self._server = LlamaServer(settings)
        self._keeper = self._begun()

    def _begun(self) -> Keeper:
        keeper = Keeper(self._server, myself(), _log.warning)
        self._begun_at = time.monotonic()
        keeper.begin()
        return keeper

    def address(self) -> str | None:
        """Where it listens; None while it does not."""
        pid = self._keeper.pid
        return None if pid is None else self._server.address(pid)

    def trouble(self) -> str | None:
        """Why it does not come up; None while it may. It is tried anew now and then: what was missing may be there."""
        error = self._keeper.error
        if error is None:
            return None
        if time.monotonic() - self._begun_at > RETRY_S:
            self._keeper = self._begun()
        return str(error)

    def stop(self) -> None:
        """End it; it is gone when this returns."""
        self._keeper.stop()


class LocalModelReplica:
    """The ingress of the application."""

    async def __init__(self, settings: LlamaSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        stay_on_node_address()
        self._key = settings.key.get_secret_value()
        self._kept = KeptServer(settings)

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_door(self._kept, self._key)

    def __del__(self) -> None:
        # Serve calls it when it ends a replica in order; in any other end the kernel tells the server.
        kept = getattr(self, "_kept", None)
        if kept is not None:
            kept.stop()


def deploy(settings: LlamaSettings) -> None:
    """Have Serve bring it up, on the node of this process; returns before the model is loaded."""
    import ray

    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    deployment: Any = serve.deployment(
        serve.ingress()(LocalModelReplica),
        name="LocalModel",
        num_replicas=1,
        # The door counts by itself, and says so in JSON.
        max_ongoing_requests=2 * MOST_AT_ONCE,
        max_queued_requests=-1,
        # It asks for no CPU, which would be one less for attempts while nobody asks it anything.
        ray_actor_options={"num_cpus": 0, "resources": {f"node:{node}": 0.001}},
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0,
        logging_config={"enable_access_log": False},
        max_constructor_retry_count=REPLICA_RETRIES,
    )
    serve.run_many(
        [serve.RunTarget(target=deployment.bind(settings), name=MODEL_APPLICATION, route_prefix=ROUTE)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def withdraw() -> None:
    """Take it from Serve, where it is there."""
    if MODEL_APPLICATION in serve.status().applications:
        serve.delete(MODEL_APPLICATION)
