"""What the routes work with: live connections and the ports to the singletons, opened once in each replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, TypeVar

from starlette.requests import Request

from rayloom.dag.errors import RayloomError, Transient
from rayloom.dag.mcp import McpPort
from rayloom.dag.ports import Health, ParserPort, RegistryPort, SchedulerPort, TokenPort
from rayloom.dag.resources import NodeShape
from rayloom.db.backends import Backends, open_backends
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.serve.at_once import AtOnce
from rayloom.serve.callbacks import Callbacks
from rayloom.serve.offered import OfferedTools
from rayloom.serve.settings import ServeSettings

log = logging.getLogger(__name__)

NODES_TTL_S: Final = 5.0
PORT_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The singletons as the API sees them. ``ray`` answers when Ray itself does, and raises when it does not."""

    scheduler: SchedulerPort
    registry: RegistryPort
    tokens: TokenPort
    mcp: McpPort
    parser: ParserPort
    ray: Callable[[], Awaitable[Health]]


@dataclass(slots=True, kw_only=True)
class Deps:
    """Everything that a route may need."""

    settings: ServeSettings
    backends: Backends
    ports: Ports
    offered: OfferedTools
    callbacks: Callbacks
    plannings: AtOnce
    _nodes: tuple[NodeShape, ...] = field(default=(), init=False)
    _nodes_until: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Begin to listen for wake-ups and for changes of the registry, and to watch the replica."""
        self.backends.start()
        self.offered.start()

    async def close(self) -> None:
        """Give every connection back."""
        await self.offered.stop()
        await self.backends.close()

    async def nodes(self) -> tuple[NodeShape, ...]:
        """Every kind of node, as of a few seconds ago, or the last ones known while the scheduler can't say.

        Empty, so that resources are not judged here, only as long as nobody has ever said.
        """
        if monotonic() >= self._nodes_until:
            try:
                told = tuple(await ask(self.ports.scheduler.nodes(), "the scheduler", timeout_s=2.0))
            except Transient:
                told = ()
            # A scheduler that has just started may know none yet; a cluster without any would not run it.
            self._nodes = told or self._nodes
            self._nodes_until = monotonic() + NODES_TTL_S
        return self._nodes


def open_deps(
    settings: ServeSettings, database: DatabaseSettings, redis: RedisSettings, blobs: BlobSettings, ports: Ports
) -> Deps:
    """The dependencies of a replica; nothing is connected before ``start``."""
    return Deps(
        settings=settings,
        backends=open_backends(database, redis, blobs, name="rayloom-api"),
        ports=ports,
        offered=OfferedTools(ports.registry),
        callbacks=Callbacks(settings),
        plannings=AtOnce(settings.plannings_at_once, retry_after_s=settings.admission_retry_after_s),
    )


async def ask(answer: Awaitable[T], whom: str, *, timeout_s: float = PORT_TIMEOUT_S) -> T:
    """The answer of a singleton. Raises Transient when it does not come in time, or when ``whom`` can't be reached."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except RayloomError:
        raise
    except Exception as error:
        # Whatever a remote call raises (an actor that is gone, restarting, unreachable): it is not the caller's fault.
        log.warning("port.failed", extra={"port": whom, "error": f"{type(error).__name__}: {error}"[:500]})
        raise Transient("UNAVAILABLE", f"{whom} did not answer: {type(error).__name__}") from error


def deps_of(request: Request) -> Deps:
    """The dependencies of the replica that a request came to."""
    deps = request.app.state.deps
    assert isinstance(deps, Deps)
    return deps
