"""The token controller as everybody sees it, and the values that cross to it and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rayloom.dag.model import AccountPort
from rayloom.dag.values import Health

Level = Literal["user", "key", "task", "subtask", "model"]
"""Whose limits: each call of a model counts against all that it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A queued subtask that wants to start, and whose limits it counts against."""

    sub_task_id: str
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An attempt that was admitted and has ended, with the tokens that its tool said it used.

    What models used is not in it: that was settled call by call. ``started``: False when it never was: then it was no
    request either.
    """

    sub_task_id: str
    user_id: str
    tokens: int = 0
    started: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A subtask that may not start yet: which limit holds it, and in how many seconds to ask again.

    ``limit``: a field of `Quota`; of another level than the user's after its name, as in ``key.max_tokens``.
    ``free_in_s``: when it may have room; None where nobody knows, as nothing but a higher limit helps. ``alone``: it
    was kept from calling a model, and nothing else of its user is held for that.
    """

    sub_task_id: str
    limit: str
    ask_again_in_s: float
    free_in_s: float | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """Nothing of a user may start now: which limit says so, and in how many seconds it may let something through.

    ``free_in_s`` is 0 where it may at any moment, and None where nothing but another limit helps.
    """

    limit: str
    free_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The limits of somebody, or of a model; None means none."""

    max_tokens: int | None = None
    max_cost_usd: float | None = None
    tokens_per_min: int | None = None
    requests_per_min: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What calls of one model for one purpose used since the controller started."""

    model: str
    purpose: str
    calls: int
    tokens_in: int
    tokens_out: int
    cost_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of a limit is used up, 1 being all of it; of a user, a key or a task."""

    level: Level
    id: str
    limit: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFigures:
    """What the controller counts, for monitoring. Counters begin anew when it starts.

    ``denied``: (level, limit) and how often. ``shares``: the fullest limits first. ``warn_share``: from which share on
    a limit is nearly used up.
    """

    used: tuple[Used, ...] = ()
    denied: tuple[tuple[Level, str, int], ...] = ()
    reserved_calls: int = 0
    reserved_tokens: int = 0
    reserved_cost_usd: float = 0.0
    shares: tuple[Share, ...] = ()
    warn_share: float = 1.0


class AdmissionPort(Protocol):
    """The token controller, as the scheduler sees it."""

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Sequence[Held]:
        """Which of a batch must wait. Those not named are admitted and count until they are ``finished``."""


class TokenPort(AdmissionPort, AccountPort, Protocol):
    """The token controller, as everybody sees it."""

    async def limited(self, user_id: str) -> Limited | None:
        """What holds back everything of a user now; None where something may start. Reserves nothing."""

    async def quota(self, user_id: str) -> Quota:
        """The limits of a user."""

    async def set_quota(self, user_id: str, quota: Quota) -> None:
        """Change the limits of a user, durably. Raises UserError (``USER_UNKNOWN``, ``QUOTA_INVALID``)."""

    async def key_quota(self, key_id: str) -> Quota:
        """The limits of an API key."""

    async def set_key_quota(self, key_id: str, quota: Quota) -> None:
        """Change the limits of an API key, durably. Raises UserError (``KEY_UNKNOWN``, ``QUOTA_INVALID``)."""

    async def figures(self, user_id: str = "") -> TokenFigures:
        """What it counts, for monitoring; with the shares of one user alone, where one is named."""

    async def health(self) -> Health:
        """Alive, with counts of what it holds."""
