"""What counts against whom: a user with its attempts; a key, a task or a model with its calls."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final

from rayloom.dag.amount import Amount
from rayloom.dag.limits import Usage, Window
from rayloom.dag.token_port import Finished, Quota
from rayloom.db.quotas import Standing

GRACE_S: Final = 15.0
"""An admitted attempt without a lease counts for so long: its lease may be about to be taken."""


@dataclass(slots=True)
class CallAccount:
    """A key, a task or a model, as calls of models count against it. ``seen_s``: when it was asked for last."""

    quota: Quota
    usage: Usage = field(default_factory=Usage)
    seen_s: float = 0.0


@dataclass(slots=True)
class UserAccount:
    """A user with limits. ``running``: what was admitted, by when it was last known to be so.

    ``since``: when this controller admitted it. What it knows from the record alone is not here.
    """

    quota: Quota
    usage: Usage = field(default_factory=Usage)
    running: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, quota: Quota, standing: Standing, *, reserved: Amount, now_s: float) -> UserAccount:
        """The account of a user of whom the record has this, and for whom so much is reserved."""
        account = cls(quota, running=dict.fromkeys(standing.leased, now_s))
        starts = Window.of([(now_s - age_s, amount) for age_s, amount in standing.starts], now_s=now_s)
        account.usage = Usage(concurrent=len(account.running), requests=starts, reserved=reserved)
        account.take_tokens(standing, now_s=now_s)
        return account

    def take_tokens(self, standing: Standing, *, now_s: float) -> None:
        """Take what the record has of tokens and money for true."""
        recent = Window.of([(now_s - age_s, amount) for age_s, amount in standing.tokens], now_s=now_s)
        self.usage = replace(self.usage, tokens=recent, used=standing.used)

    def start(self, sub_task_id: str, *, now_s: float) -> None:
        """An attempt is admitted."""
        self.running[sub_task_id] = self.since[sub_task_id] = now_s
        self.usage = self.usage.started(now_s=now_s)

    def end(self, end: Finished, *, now_s: float) -> None:
        """An attempt has ended."""
        since = self.since.pop(end.sub_task_id, None)
        if self.running.pop(end.sub_task_id, None) is None:
            # Said twice, or of an attempt that ended before this account was opened: the record had it already.
            return
        if end.started or since is None:
            self.usage = self.usage.freed().spent(Amount.of(end.tokens, 0.0), now_s=now_s)
        else:
            self.usage = self.usage.returned(started_s=since)

    def compare(self, leased: AbstractSet[str], *, now_s: float) -> int:
        """Take the leases for true; answers how many attempts turn out to have ended without our being told."""
        for sub_task_id in leased:
            self.running[sub_task_id] = now_s
        lost = [sub_task_id for sub_task_id, seen_s in self.running.items() if now_s - seen_s > GRACE_S]
        for sub_task_id in lost:
            del self.running[sub_task_id]
            self.since.pop(sub_task_id, None)
        self.usage = replace(self.usage, concurrent=len(self.running))
        return len(lost)


@dataclass(slots=True, eq=False)
class Unread:
    """A user with limits whose standing was not read yet. ``ended``: what was told meanwhile."""

    quota: Quota
    ended: list[Finished] = field(default_factory=list)
