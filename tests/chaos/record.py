"""What is known of a run: every row, every transition, every mark left outside, and what a client was promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rayloom.dag.values import Json
from tests.chaos.plans import TOOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The row of a task. ``forked_from``: the task that it took over from; empty for most. ``user``: whose it is."""

    id: str
    title: str
    status: str
    result: Json
    held: bool = False
    """It names an incarnation that splits it."""
    forked_from: str = ""
    wants_approval: bool = False
    has_callback: bool = False
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtask:
    """The row of a subtask. ``held``: a scheduler's lease stands on it.

    ``is_dispensable``: the others go on without it when it is blocked. ``wants_approval``: before it is queued.
    ``on_fallback``: the attempts that ran its fallback. ``retry_count``: how many retries it has spent since it was
    retried by hand or turned to its fallback.
    """

    id: str
    task_id: str
    key: str
    tool: str
    status: str
    attempt: int
    after: tuple[str, ...] = ()
    held: bool = False
    is_dispensable: bool = False
    wants_approval: bool = False
    on_fallback: tuple[int, ...] = ()
    max_retries: int = 3
    retry_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The row of an attempt that has ended. Times are those that its worker told, in seconds since the epoch."""

    sub_task_id: str
    attempt: int
    status: str
    code: str = ""
    started_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition; ``id`` counts them in the order of their commits, within a task."""

    id: int
    at: datetime
    task_id: str
    kind: str
    subtask: str | None
    source: str | None
    target: str | None
    attempt: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """The row of a dead letter; its id is that of its subtask."""

    id: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A row of the outbox: an end of a task that was to be told, and whether it was."""

    id: str
    task_id: str
    task_status: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One call of the drill, as it told the ledger; ``at`` in seconds since the epoch; ``pid``: of the worker."""

    sub_task_id: str
    attempt: int
    at: float
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that reached the target of `http.request`, and what it was answered."""

    sub_task_id: str
    at: float
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One webhook that reached the receiver. ``body``: a digest of it; ``is_signed``: its signature is right."""

    id: str
    task_id: str
    task_status: str
    body: str
    is_signed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One life of a scheduler, in seconds since the epoch. ``heard_at``: it was last heard of; ``ended_at``: it was
    declared over, None while it lasts."""

    started_at: float
    heard_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A task that was answered 202, and what it has to come to.

    ``again``: the tasks that the same request was answered with when it was sent again. ``anew``: what a fork was to
    run anew, with all below.
    """

    task_id: str
    title: str
    ends: frozenset[str]
    result: Json
    again: tuple[str, ...] = ()
    fork_of: str = ""
    anew: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What nobody should hold any more, counted or named."""

    in_flight: int = 0
    uncommitted: int = 0
    reservations: int = 0
    orphan_blobs: int = 0
    untold_webhooks: int = 0
    redis_ids: tuple[str, ...] = ()
    sandboxes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upset:
    """Something was done by which the token controller may have forgotten what it had admitted: from when to when."""

    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFault:
    """An answer of 500 with a body of ours."""

    method: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """The wait before retry n is ``initial_s * 2**n`` or longer, but for the cap, ``max_s``."""

    initial_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What no row tells of a run: how it was set up, what was done to it, and what its driver saw.

    ``back_off``: None where nobody knows it. ``breakers``: the tools whose breakers were seen open.
    """

    back_off: BackOff | None = None
    breakers: frozenset[str] = frozenset()
    upsets: Sequence[Upset] = ()
    faults: Sequence[ServerFault] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All of it. ``accepted``: what the client was promised. ``marking``: the tool whose calls leave marks.

    ``limits``: how many attempts a user may have running at once, of those who have a limit.
    """

    accepted: Sequence[Accepted]
    tasks: Sequence[Task]
    subtasks: Sequence[Subtask]
    attempts: Sequence[Attempt]
    events: Sequence[Event]
    marks: Sequence[Mark]
    lives: Sequence[Life] = ()
    letters: Sequence[Letter] = ()
    webhooks: Sequence[Webhook] = ()
    calls: Sequence[Call] = ()
    heard: Sequence[Heard] = ()
    marking: str = TOOL
    leftovers: Leftovers = field(default_factory=Leftovers)
    limits: Mapping[str, int] = field(default_factory=dict)
    circumstances: Circumstances = field(default_factory=Circumstances)
