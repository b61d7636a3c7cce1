"""The singletons on Ray: the one place where registry and token controller become actors, and their callers' side.

A singleton is a detached, named actor that Ray restarts for ever; it is asked for with ``get_if_exists``, so whoever
comes second gets the first one's. Names carry a version: a release that talks differently must not meet an old actor.
Constructors read nothing: Ray gives up an actor whose constructor fails, and a database may be away for a while.

Who starts an actor has to import its class: what the actor is made of is therefore imported in its constructor, so that
`rayloom up` does not take seconds over what only others need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray

from rayloom.actors.callers import REGISTRY_NAME, TOKENS_NAME, RayRegistry, RayTokens
from rayloom.actors.periodic import repeat
from rayloom.actors.settings import EngineSettings
from rayloom.dag.answer import Answer, as_value
from rayloom.dag.breaker import BreakerPolicy, Call
from rayloom.dag.model import Denied, ModelUse, ProviderLimits, Reservation
from rayloom.dag.ports import Ask, BreakerWish, Finished, Health, Held, Limited, Quota, RegisteredTool, ToolSnapshot
from rayloom.dag.token_port import TokenFigures
from rayloom.db import faults
from rayloom.db.settings import DatabaseSettings

POOL_SIZE: Final = 2
TOKENS_POOL_SIZE: Final = 6
"""Three of them are kept for reserving and settling."""
MAX_CONCURRENCY: Final = 1000
HEALTH_GROUP: Final = "health"


class _ToolRegistryActor:
    """``ToolRegistry`` as an actor. ``health`` has a group, and so an event loop, of its own."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, database: DatabaseSettings, policy: BreakerPolicy, may_fail: str
    ) -> None:
        from rayloom.actors.breakers import Breakers
        from rayloom.actors.registry import ToolRegistry
        from rayloom.db.breaker_rows import BreakerRows
        from rayloom.db.catalogue import Catalogue
        from rayloom.db.engine import make_engine
        from rayloom.tools.builtin.catalogue import BUILTINS

        faults.install(may_fail, "registry")
        engine = make_engine(database.primary_dsn(), pool_size=POOL_SIZE, max_overflow=0, name=REGISTRY_NAME)
        self._registry = ToolRegistry(Catalogue(engine), BUILTINS, Breakers(BreakerRows(engine), policy))
        self._life = asyncio.create_task(repeat(REGISTRY_NAME, self._registry.step))

    async def snapshot(self) -> Answer[ToolSnapshot]:
        return await as_value(self._registry.snapshot())

    async def changed(self, version: int) -> Answer[ToolSnapshot]:
        return await as_value(self._registry.changed(version))

    async def look(self) -> Answer[None]:
        return await as_value(self._registry.refresh())

    async def register_native(self, name: str, endpoint: str) -> Answer[RegisteredTool]:
        return await as_value(self._registry.register_native(name, endpoint))

    async def register_skill(self, tool: RegisteredTool, contents: Sequence[str]) -> Answer[RegisteredTool]:
        return await as_value(self._registry.register_skill(tool, contents))

    async def set_active(self, name: str, active: bool) -> Answer[RegisteredTool]:
        return await as_value(self._registry.set_active(name, active))

    async def remove(self, name: str) -> Answer[None]:
        return await as_value(self._registry.remove(name))

    async def report(self, calls: Sequence[Call]) -> Answer[None]:
        return await as_value(self._registry.report(calls))

    async def probe(self, key: str, by: str) -> Answer[bool]:
        return await as_value(self._registry.probe(key, by))

    async def set_breaker(self, name: str, state: BreakerWish) -> Answer[RegisteredTool]:
        return await as_value(self._registry.set_breaker(name, state))

    async def set_alternative(self, name: str, alternative: str | None) -> Answer[RegisteredTool]:
        return await as_value(self._registry.set_alternative(name, alternative))

    @ray.method(concurrency_group=HEALTH_GROUP)
    async def health(self) -> Answer[Health]:
        return await as_value(self._registry.health())


class _TokenControllerActor:
    """``TokenController`` as an actor. ``health`` has a group, and so an event loop, of its own."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, database: DatabaseSettings, models: Mapping[str, Quota], warn_share: float, may_fail: str
    ) -> None:
        from rayloom.actors.tokens import TokenController
        from rayloom.db.alerts import AlertStore
        from rayloom.db.engine import make_engine
        from rayloom.db.ledger import Ledger
        from rayloom.db.quotas import QuotaStore

        faults.install(may_fail, "tokens")
        engine = make_engine(database.primary_dsn(), pool_size=TOKENS_POOL_SIZE, max_overflow=0, name=TOKENS_NAME)
        self._tokens = TokenController(
            QuotaStore(engine), Ledger(engine), AlertStore(engine), models=models, warn_share=warn_share
        )
        self._life = asyncio.create_task(repeat(TOKENS_NAME, self._tokens.step))

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Answer[Sequence[Held]]:
        return await as_value(self._tokens.admit(asked, finished))

    async def limited(self, user_id: str) -> Answer[Limited | None]:
        return await as_value(self._tokens.limited(user_id))

    async def quota(self, user_id: str) -> Answer[Quota]:
        return await as_value(self._tokens.quota(user_id))

    async def set_quota(self, user_id: str, quota: Quota) -> Answer[None]:
        return await as_value(self._tokens.set_quota(user_id, quota))

    async def key_quota(self, key_id: str) -> Answer[Quota]:
        return await as_value(self._tokens.key_quota(key_id))

    async def set_key_quota(self, key_id: str, quota: Quota) -> Answer[None]:
        return await as_value(self._tokens.set_key_quota(key_id, quota))

    async def reserve(self, reservation: Reservation) -> Answer[Denied | None]:
        return await as_value(self._tokens.reserve(reservation))

    async def renew(self, reservation: Reservation) -> Answer[None]:
        return await as_value(self._tokens.renew(reservation))

    async def settle(self, reservation: Reservation, use: ModelUse) -> Answer[None]:
        return await as_value(self._tokens.settle(reservation, use))

    async def learn(self, model: str, limits: ProviderLimits) -> Answer[None]:
        return await as_value(self._tokens.learn(model, limits))

    async def figures(self, user_id: str) -> Answer[TokenFigures]:
        return await as_value(self._tokens.figures(user_id))

    @ray.method(concurrency_group=HEALTH_GROUP)
    async def health(self) -> Answer[Health]:
        return await as_value(self._tokens.health())


def start_singleton(
    actor: type, *arguments: object, name: str, engine: EngineSettings, node_labels: Mapping[str, str] | None = None
) -> Any:
    """The handle of the singleton of that name; it is made when there is none yet.

    ``node_labels``: where it has to run, for clusters that keep a pool of nodes for control.
    """
    # Ray's own types know neither concurrency groups nor the options of named actors.
    remote: Any = ray.remote
    options: dict[str, Any] = {"label_selector": dict(node_labels)} if node_labels else {}
    made = remote(num_cpus=0, concurrency_groups={HEALTH_GROUP: 8})(actor)
    return made.options(
        name=name,
        namespace=engine.namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        # Callers repeat what may be repeated; Ray can't know which calls those are.
        max_task_retries=0,
        max_concurrency=MAX_CONCURRENCY,
        **options,
    ).remote(*arguments)


def start_registry(
    engine: EngineSettings, database: DatabaseSettings, *, node_labels: Mapping[str, str] | None = None
) -> RayRegistry:
    """Start the tool registry, unless it runs already."""
    start_singleton(
        _ToolRegistryActor,
        database,
        engine.breaker_policy,
        engine.faults,
        name=REGISTRY_NAME,
        engine=engine,
        node_labels=node_labels,
    )
    return RayRegistry(engine)


def start_tokens(
    engine: EngineSettings,
    database: DatabaseSettings,
    *,
    models: Mapping[str, Quota] | None = None,
    node_labels: Mapping[str, str] | None = None,
) -> RayTokens:
    """Start the token controller, unless it runs already. ``models``: the limits of models, by their names."""
    start_singleton(
        _TokenControllerActor,
        database,
        dict(models or {}),
        engine.quota_warn_share,
        engine.faults,
        name=TOKENS_NAME,
        engine=engine,
        node_labels=node_labels,
    )
    return RayTokens(engine)
