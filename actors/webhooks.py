"""Tells the ends of tasks to those who asked for it: takes what is due from the outbox, sends it, settles it.

Everything is in the database (`db.webhooks`): who is told, when again, and whether it is being told just now. So it may
end at any moment, and several may run at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.settings import WebhookSettings, WorkerSettings
from rayloom.actors.trouble import Trouble
from rayloom.dag import webhook
from rayloom.dag.errors import RayloomError, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.values import JsonObject
from rayloom.db import log_lines, webhooks
from rayloom.db.blobs import BlobStore
from rayloom.db.cipher import Cipher, Unreadable
from rayloom.db.results import put_together
from rayloom.db.s3 import in_time
from rayloom.db.webhooks import DueWebhook
from rayloom.tools.addresses import DNS_FAILED, AddressRules, parse_url
from rayloom.tools.builtin.exchange import Request, retry_after_s, status_of

_log = logging.getLogger(__name__)

SLOTS = 32
"""So many are told at once."""
LOT = 8
"""So many are taken in one go, and no more of a user of whom so many are being told: a receiver that is slow, or away,
holds up its own."""
TOGETHER = 8
"""So many results are put together at once, each in lots of 8 MiB. The wait for a turn counts as waiting for blobs."""
UNRESOLVED_S = 3600.0
"""A host whose name does not resolve for so long is given up."""
LOOK_S = 2.0
"""How soon one is seen of which nobody said anything: somebody else's scheduler may have died over it."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why it could not be told. ``final``: to try again is of no use. ``asked_s``: the receiver's ``Retry-After``.

    ``unresolved``: the name of the host did not resolve.
    """

    why: str
    final: bool = False
    unresolved: bool = False
    asked_s: float | None = None


class Webhooks:
    """See the module. Belongs to one event loop; ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        engine: AsyncEngine,
        blobs: BlobStore,
        settings: WebhookSettings,
        rules: AddressRules,
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._blobs, self._settings, self._rules = engine, blobs, settings, rules
        self._jitter, self._clock = jitter, clock
        self._cipher = Cipher(settings.secret_key)
        self._awake = asyncio.Event()
        self._putting_together = asyncio.Semaphore(TOGETHER)
        self._telling: dict[asyncio.Task[None], str] = {}
        self._trouble = Trouble()

    @classmethod
    def of(cls, settings: WorkerSettings, engine: AsyncEngine, blobs: BlobStore) -> Webhooks | None:
        """Those that the settings ask for."""
        if settings.webhooks is None:
            return None
        return cls(engine, blobs, settings.webhooks, AddressRules.parse(settings.tools.allow_addresses))

    def wake(self) -> None:
        """There may be something to tell."""
        self._awake.set()

    async def run(self) -> None:
        """Tell what is due, for ever. Raises Transient when the database is away: begin again."""
        while True:
            self._awake.clear()
            await self._take()
            due_s = await webhooks.next_due_s(self._engine) if len(self._telling) < SLOTS else None
            try:
                async with asyncio.timeout(LOOK_S if due_s is None else min(max(due_s, 0.05), LOOK_S)):
                    await self._awake.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Stop telling. What was under way is told again by whoever comes next, after its time."""
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)

    async def _take(self) -> None:
        while (free := SLOTS - len(self._telling)) > 0:
            busy = [user for user, count in Counter(self._telling.values()).items() if count >= LOT]
            # Twice its time-out: one who is slow is not taken for dead.
            lease_s = 2 * self._settings.timeout_s + 5
            lot = await webhooks.take(self._engine, limit=min(LOT, free), lease_s=lease_s, but_of=busy)
            if not lot:
                return
            for due in lot:
                task = asyncio.get_running_loop().create_task(self._tell(due))
                self._telling[task] = due.user_id
                task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        del self._telling[task]
        self._awake.set()

    async def _tell(self, due: DueWebhook) -> None:
        try:
            # More tries than there are: whoever made the last one died over it.
            spent = due.attempt > webhook.ATTEMPTS
            failure = (
                _Failure("nobody heard how the last attempt ended", final=True) if spent else await self._send(due)
            )
            level, said = await self._settle(due, failure)
            fields = {"webhook_id": str(due.id), "status": due.task_status}
            line = LogLine(at=datetime.now(UTC), task_id=due.task_id, level=level, message=said, fields={**fields})
            await log_lines.append(self._engine, [line])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told again when its time is over
            known = isinstance(error, RayloomError)
            self._trouble.tell(_log, "webhook.unsettled", error, known=known, webhook_id=str(due.id))

    async def _settle(self, due: DueWebhook, failure: _Failure | None) -> tuple[str, str]:
        """Record how an attempt ended. Return level and text for the task's log."""
        said = f"webhook of {due.task_status}, attempt {due.attempt}"
        is_current, level, outcome = await self._record(due, failure)
        if not is_current:
            return "INFO", f"{said}: ended after the webhook was cancelled or tried again"
        return level, f"{said}: {outcome}"

    async def _record(self, due: DueWebhook, failure: _Failure | None) -> tuple[bool, str, str]:
        """Return whether the attempt was the current one, and level and text of its outcome."""
        if failure is None:
            return await webhooks.delivered(self._engine, due), "INFO", "delivered"
        why = failure.why
        wait_s = webhook.wait_s(
            due.attempt, initial_s=self._settings.retry_initial_s, asked_s=failure.asked_s, jitter=self._jitter()
        )
        if failure.unresolved and wait_s is not None:
            left_s = UNRESOLVED_S - (due.unresolved_s or 0.0)
            if left_s > 0:
                wait_s = min(wait_s, left_s)
            else:
                wait_s, why = None, f"{why}, for {UNRESOLVED_S / 60:.0f} minutes"
        if failure.final or wait_s is None:
            is_current = await webhooks.give_up(self._engine, due, why)
            if is_current:
                _log.warning("webhook.given_up", extra={"task_id": due.task_id, "attempts": due.attempt})
            return is_current, "ERROR", f"given up: {why}"
        is_current = await webhooks.put_off(self._engine, due, why, again_in_s=wait_s, unresolved=failure.unresolved)
        return is_current, "WARNING", f"{why}; again in {wait_s:.0f} s"

    async def _send(self, due: DueWebhook) -> _Failure | None:
        """Send it once; None when the receiver has it."""
        try:
            secret = self._cipher.decrypt(due.secret)
        except Unreadable as error:
            return _Failure(f"callback_secret can't be read: {error}", final=True)
        key = webhook.secret_bytes(secret)
        if key is None:
            return _Failure("callback_secret is none that can sign", final=True)
        try:
            body = await self._body(due)
            headers = webhook.headers(key, webhook_id=str(due.id), timestamp=int(self._clock()), body=body)
            target = parse_url(due.url)
            request = Request(method="POST", target=target, headers=headers, content=body)
            status, answered = await status_of(request, self._rules, timeout_s=self._settings.timeout_s)
        except Transient as error:
            return _Failure(f"{error.code}: {error.message}", unresolved=error.code == DNS_FAILED)
        except RayloomError as error:
            # A rule says no, it is no address, or what the result is made of is gone for good.
            return _Failure(f"{error.code}: {error.message}", final=True)
        if webhook.is_delivered(status):
            return None
        asked_s = retry_after_s(answered.get("retry-after"), self._clock())
        return _Failure(f"the receiver answered {status}", final=webhook.is_unwanted(status), asked_s=asked_s)

    async def _body(self, due: DueWebhook) -> bytes:
        result = due.result
        if due.result_apart:
            # No longer than the receiver itself may take: both have to end within the lease.
            async with in_time(self._settings.timeout_s), self._putting_together:
                result = await put_together(self._engine, self._blobs, UUID(due.task_id))
        about: JsonObject = {"title": due.title, "labels": due.labels, "result": result, "error": due.error}
        return orjson.dumps(
            webhook.event(
                webhook_id=str(due.id),
                source=self._settings.source,
                task_id=due.task_id,
                at=due.at,
                status=due.task_status,
                about=about,
            )
        )
