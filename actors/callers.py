"""The callers' side of the singletons: each by its name, as the port that the rest of the system knows.

Apart from `singletons`, which makes them: a worker process calls the registry and needs nothing of what it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rayloom.actors.named import NamedActor
from rayloom.actors.settings import EngineSettings
from rayloom.dag.breaker import Call
from rayloom.dag.model import Denied, ModelUse, ProviderLimits, Reservation
from rayloom.dag.ports import (
    LONG_POLL_S,
    Ask,
    BreakerWish,
    Finished,
    Health,
    Held,
    Limited,
    Quota,
    RegisteredTool,
    ToolSnapshot,
)
from rayloom.dag.token_port import TokenFigures

REGISTRY_NAME: Final = "rayloom-registry-v1"
TOKENS_NAME: Final = "rayloom-tokens-v1"
HEALTH_TIMEOUT_S: Final = 3.0
ADMIT_TIMEOUT_S: Final = 3.0
REPORT_TIMEOUT_S: Final = 3.0


class RayRegistry:
    """The registry of a Ray cluster, by name: ``RegistryPort``. Belongs to one event loop.

    Every method may raise Transient (``ACTOR_UNAVAILABLE``); after that it is not known whether a registration or
    removal was done.
    """

    def __init__(self, engine: EngineSettings) -> None:
        self._actor = NamedActor(REGISTRY_NAME, engine.namespace)

    async def snapshot(self) -> ToolSnapshot:
        """All tools now."""
        snapshot: ToolSnapshot = await self._actor.call("snapshot", idempotent=True)
        return snapshot

    async def changed(self, version: int) -> ToolSnapshot:
        """Wait until the registry is newer than ``version``, or for some 20 s; answers all tools either way."""
        snapshot: ToolSnapshot = await self._actor.call("changed", version, idempotent=True, timeout_s=LONG_POLL_S + 20)
        return snapshot

    async def look(self) -> None:
        """Rows were changed: read them now. Does not wait for a restart, which reads them anyway."""
        await self._actor.call("look", idempotent=True, retry_for_s=0)

    async def register_native(self, name: str, endpoint: str) -> RegisteredTool:
        """Switch on an installed entry point.

        Raises UserError (``TOOL_EXISTS``, ``TOOL_UNKNOWN``, ``TOOL_NAME_INVALID``, ``TOOL_INVALID``).
        """
        tool: RegisteredTool = await self._actor.call("register_native", name, endpoint, idempotent=False)
        return tool

    async def register_skill(self, tool: RegisteredTool, contents: Sequence[str]) -> RegisteredTool:
        """Add a Skill whose contents are in the blob store. Raises UserError (``TOOL_EXISTS``)."""
        made: RegisteredTool = await self._actor.call("register_skill", tool, contents, idempotent=False)
        return made

    async def set_active(self, name: str, active: bool) -> RegisteredTool:
        """Switch a tool on or off. Raises UserError (``TOOL_UNKNOWN``)."""
        tool: RegisteredTool = await self._actor.call("set_active", name, active, idempotent=True)
        return tool

    async def remove(self, name: str) -> None:
        """Remove a tool that is not built in. Raises UserError (``TOOL_UNKNOWN``, ``TOOL_BUILT_IN``)."""
        await self._actor.call("remove", name, idempotent=False)

    async def report(self, calls: Sequence[Call]) -> None:
        """How calls of tools went. Does not wait for a restart: who reports has more to do."""
        await self._actor.call("report", calls, idempotent=False, timeout_s=REPORT_TIMEOUT_S, retry_for_s=0)

    async def probe(self, key: str, by: str) -> bool:
        """Let one subtask past a breaker whose time has come. False: wait. Does not wait for a restart."""
        may: bool = await self._actor.call("probe", key, by, idempotent=True, timeout_s=REPORT_TIMEOUT_S, retry_for_s=0)
        return may

    async def set_breaker(self, name: str, state: BreakerWish) -> RegisteredTool:
        """Close or open the breaker of a tool by hand, or switch it off. Raises UserError (``TOOL_UNKNOWN``)."""
        tool: RegisteredTool = await self._actor.call("set_breaker", name, state, idempotent=True)
        return tool

    async def set_alternative(self, name: str, alternative: str | None) -> RegisteredTool:
        """What is called in its place while its breaker is open.

        Raises UserError (``TOOL_UNKNOWN``, ``ALTERNATIVE_INVALID``).
        """
        tool: RegisteredTool = await self._actor.call("set_alternative", name, alternative, idempotent=True)
        return tool

    async def health(self) -> Health:
        """Alive, with its version; ``ok`` once it has read the database. Does not wait for a restart."""
        return await _health(self._actor)


class RayAccounts:
    """Where calls of models are reserved and settled in a Ray cluster: ``AccountPort``. Belongs to one event loop.

    Every method may raise Transient (``ACTOR_UNAVAILABLE``) and may then be called again with the same arguments.
    """

    def __init__(self, engine: EngineSettings) -> None:
        self._actor = NamedActor(TOKENS_NAME, engine.namespace)

    async def reserve(self, reservation: Reservation) -> Denied | None:
        """Reserve at every level at once, or at none. None: granted. Waits for a restart."""
        denied: Denied | None = await self._actor.call("reserve", reservation, idempotent=True)
        return denied

    async def renew(self, reservation: Reservation) -> None:
        """The call is still under way. Does not wait for a restart: it is said again."""
        await self._actor.call("renew", reservation, idempotent=True, timeout_s=REPORT_TIMEOUT_S, retry_for_s=0)

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        """The call is over and used this: durable when this returns. Waits for a restart."""
        await self._actor.call("settle", reservation, use, idempotent=True)

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        """What an endpoint said of its limits. Does not wait for a restart: the next answer says so again."""
        await self._actor.call("learn", model, limits, idempotent=True, timeout_s=REPORT_TIMEOUT_S, retry_for_s=0)


class RayTokens(RayAccounts):
    """The token controller of a Ray cluster, by name: ``TokenPort``. Belongs to one event loop.

    Every method may raise Transient (``ACTOR_UNAVAILABLE``) and may then be called again with the same arguments.
    """

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Sequence[Held]:
        """Which of a batch must wait. Those not named are admitted and count until they are ``finished``.

        Does not wait for a restart: nothing that ends is written down meanwhile.
        """
        held: Sequence[Held] = await self._actor.call(
            "admit", asked, finished, idempotent=True, timeout_s=ADMIT_TIMEOUT_S, retry_for_s=0
        )
        return held

    async def limited(self, user_id: str) -> Limited | None:
        """What holds back everything of a user now; None where something may start."""
        held: Limited | None = await self._actor.call("limited", user_id, idempotent=True)
        return held

    async def quota(self, user_id: str) -> Quota:
        """The limits of a user."""
        quota: Quota = await self._actor.call("quota", user_id, idempotent=True)
        return quota

    async def set_quota(self, user_id: str, quota: Quota) -> None:
        """Change the limits of a user, durably. Raises UserError (``USER_UNKNOWN``, ``QUOTA_INVALID``)."""
        await self._actor.call("set_quota", user_id, quota, idempotent=True)

    async def key_quota(self, key_id: str) -> Quota:
        """The limits of an API key."""
        quota: Quota = await self._actor.call("key_quota", key_id, idempotent=True)
        return quota

    async def set_key_quota(self, key_id: str, quota: Quota) -> None:
        """Change the limits of an API key, durably. Raises UserError (``KEY_UNKNOWN``, ``QUOTA_INVALID``)."""
        await self._actor.call("set_key_quota", key_id, quota, idempotent=True)

    async def figures(self, user_id: str = "") -> TokenFigures:
        """What it counts, for monitoring, or of one user. Does not wait for a restart."""
        figures: TokenFigures = await self._actor.call(
            "figures", user_id, idempotent=True, timeout_s=HEALTH_TIMEOUT_S, retry_for_s=0
        )
        return figures

    async def health(self) -> Health:
        """Alive, with counts of what it holds; ``ok`` once it has read the database. Does not wait for a restart."""
        return await _health(self._actor)


async def _health(actor: NamedActor) -> Health:
    health: Health = await actor.call("health", idempotent=True, timeout_s=HEALTH_TIMEOUT_S, retry_for_s=0)
    return health
