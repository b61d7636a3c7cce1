"""Whether a call of a model may be made: what it may use at most must fit under every limit before it is made.

Values alone, as in `limits`; the time is handed in, as seconds of any clock that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rayloom.dag.amount import Amount, nano
from rayloom.dag.limits import WINDOW_S, Usage
from rayloom.dag.model import Denied, ProviderLimits
from rayloom.dag.token_port import Level, Quota

LEASE_S: Final = 60.0
"""Who calls a model and says nothing for so long is taken for dead."""
RENEW_EVERY_S: Final = LEASE_S / 3
"""As often says it that it is alive."""
AHEAD_PART: Final = 20
"""One part in so many of a limit is never granted before what it is granted for is written down, and all at once."""
RESERVED_WAIT_S: Final = 1.0
"""What is in the way is only reserved: it may be settled with less at any moment."""
PROVIDER: Final = "provider"
"""Stands for the limit in a denial that goes by what an endpoint said of its own ones."""


def refusal(level: Level, quota: Quota, usage: Usage, asked: Amount, *, now_s: float) -> Denied | None:
    """Whether one level's limits deny so much; None: it fits. Of several, the one that nothing but a higher limit
    mends is named, else the first.
    """
    found = list(_refusals(level, quota, usage, asked, now_s))
    return min(found, key=lambda each: each.retry_in_s is not None, default=None)


def _refusals(level: Level, quota: Quota, usage: Usage, asked: Amount, now_s: float) -> Iterator[Denied]:
    used, reserved = usage.used, usage.reserved
    if quota.max_tokens is not None and used.tokens + reserved.tokens + asked.tokens > quota.max_tokens:
        said = f"{used.tokens:,} are used, {reserved.tokens:,} reserved, {asked.tokens:,} more are asked for"
        is_final = used.tokens + asked.tokens > quota.max_tokens
        yield _denied(level, "max_tokens", f"{quota.max_tokens:,} tokens", said, is_final)
    if quota.max_cost_usd is not None:
        limit = nano(quota.max_cost_usd)
        if used.nano_usd + reserved.nano_usd + asked.nano_usd > limit:
            said = f"{_usd(used)} are used, {_usd(reserved)} reserved, {_usd(asked)} more are asked for"
            is_final = used.nano_usd + asked.nano_usd > limit
            yield _denied(level, "max_cost_usd", f"{quota.max_cost_usd:g} USD", said, is_final)
    if quota.tokens_per_min is not None:
        limit, counted = quota.tokens_per_min, usage.tokens.total(now_s=now_s)
        wait_s = usage.tokens.room_in_s(asked.tokens + reserved.tokens, limit, now_s=now_s)
        if wait_s > 0:
            said = f"{counted:,} were used in the last minute, {reserved.tokens:,} are reserved, "
            said += f"{asked.tokens:,} more are asked for"
            # An infinite wait is for what is reserved, unless the call alone is more than ever fits.
            wait_s = RESERVED_WAIT_S if math.isinf(wait_s) else wait_s
            is_final = asked.tokens > limit
            yield _denied(level, "tokens_per_min", f"{limit:,} tokens a minute", said, is_final, wait_s)
    if quota.requests_per_min is not None:
        limit = quota.requests_per_min
        wait_s = usage.requests.room_in_s(1, limit, now_s=now_s)
        if wait_s > 0:
            said = f"{usage.requests.total(now_s=now_s):,} were made in the last minute"
            yield _denied(level, "requests_per_min", f"{limit:,} calls a minute", said, math.isinf(wait_s), wait_s)
    if quota.max_concurrent is not None and usage.concurrent >= quota.max_concurrent:
        limit, said = quota.max_concurrent, f"{usage.concurrent:,} are under way"
        yield _denied(level, "max_concurrent", f"{limit:,} calls at once", said, limit <= 0)


def _denied(level: Level, limit: str, means: str, said: str, is_final: bool, wait_s: float = RESERVED_WAIT_S) -> Denied:
    """``is_final``: nothing but a higher limit helps."""
    detail = f"{limit} of its {level} ({means}): {said}"
    return Denied(level=level, limit=limit, detail=detail, retry_in_s=None if is_final else wait_s)


def _usd(amount: Amount) -> str:
    return f"{amount.cost_usd:.6g} USD"


def fits_ahead(quota: Quota, unwritten: Amount, *, calls: int) -> bool:
    """Whether so much, of so many calls, may be granted and not be written down yet."""
    tokens, cost_usd, calls_at_most = _ahead(quota)
    return unwritten.tokens <= tokens and unwritten.cost_usd <= cost_usd and calls <= calls_at_most


def withheld(quota: Quota) -> Quota:
    """What is left of limits while nobody knows what was granted and not written down."""
    return Quota(
        max_tokens=_less(quota.max_tokens),
        max_cost_usd=None if quota.max_cost_usd is None else quota.max_cost_usd * (1 - 1 / AHEAD_PART),
        tokens_per_min=_less(quota.tokens_per_min),
        requests_per_min=_less(quota.requests_per_min),
        max_concurrent=_less(quota.max_concurrent),
    )


def _less(limit: int | None) -> int | None:
    return None if limit is None else limit - limit // AHEAD_PART


def _ahead(quota: Quota) -> tuple[float, float, float]:
    """So many tokens, so much money and so many calls."""
    tokens = [limit for limit in (quota.max_tokens, quota.tokens_per_min) if limit is not None]
    calls = [limit for limit in (quota.requests_per_min, quota.max_concurrent) if limit is not None]
    cost_usd = math.inf if quota.max_cost_usd is None else quota.max_cost_usd / AHEAD_PART
    return (
        min((limit // AHEAD_PART for limit in tokens), default=math.inf),
        cost_usd,
        min((limit // AHEAD_PART for limit in calls), default=math.inf),
    )


def shares(quota: Quota, usage: Usage, *, now_s: float) -> Iterator[tuple[str, float]]:
    """How much of each limit is used up, in all or in the last minute: (limit, share), 1 being all of it."""
    for name, limit, used in (
        ("max_tokens", quota.max_tokens, usage.used.tokens),
        ("max_cost_usd", quota.max_cost_usd and nano(quota.max_cost_usd), usage.used.nano_usd),
        ("tokens_per_min", quota.tokens_per_min, usage.tokens.total(now_s=now_s)),
        ("requests_per_min", quota.requests_per_min, usage.requests.total(now_s=now_s)),
    ):
        if limit is not None:
            yield name, used / limit if limit else 1.0


TOLD_MAX_S: Final = 120.0
"""An endpoint is asked again after this, whatever it said: a slip of its clock must not close it to all for a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What the endpoint of a model said of its own limits, less what was let through since; None: nothing."""

    requests_left: int | None = None
    requests_reset_at: float = 0.0
    tokens_left: int | None = None
    tokens_reset_at: float = 0.0
    closed_until: float = 0.0

    def told(self, limits: ProviderLimits, *, now_s: float) -> Provider:
        """After it said so: what it did not speak of stays. Where it does not say when, it is in a minute."""
        known = self
        if limits.requests_left is not None:
            reset_at = now_s + _seconds(limits.requests_reset_s)
            known = replace(known, requests_left=limits.requests_left, requests_reset_at=reset_at)
        if limits.tokens_left is not None:
            reset_at = now_s + _seconds(limits.tokens_reset_s)
            known = replace(known, tokens_left=limits.tokens_left, tokens_reset_at=reset_at)
        if limits.retry_after_s is not None:
            known = replace(known, closed_until=max(known.closed_until, now_s + _seconds(limits.retry_after_s)))
        return known

    def called(self, amount: Amount) -> Provider:
        """After one more call was let through."""
        return replace(
            self,
            requests_left=None if self.requests_left is None else self.requests_left - 1,
            tokens_left=None if self.tokens_left is None else self.tokens_left - amount.tokens,
        )

    def refusal(self, asked: Amount, *, promised: Sequence[Amount] = (), now_s: float) -> Denied | None:
        """Whether it would refuse a call of so many tokens now; None: it may take it.

        ``promised``: the calls that others will make first.
        """
        requests, tokens = 1 + len(promised), asked.tokens + sum(each.tokens for each in promised)
        said, open_at = "it said to wait", self.closed_until
        if self.requests_left is not None and self.requests_left < requests and self.requests_reset_at > open_at:
            said, open_at = "it takes no more requests for now", self.requests_reset_at
        if self.tokens_left is not None and self.tokens_left < tokens and self.tokens_reset_at > open_at:
            said, open_at = f"it takes no {asked.tokens:,} tokens for now", self.tokens_reset_at
        if open_at <= now_s:
            return None
        detail = f"limits of the model's endpoint: {said}"
        return Denied(level="model", limit=PROVIDER, detail=detail, retry_in_s=open_at - now_s)


def _seconds(reset_s: float | None) -> float:
    return float(WINDOW_S) if reset_s is None else min(max(reset_s, 0.0), TOLD_MAX_S)
