"""Models whose calls are paid for: reserved before, settled after, and written down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uuid_utils.compat import uuid7

from rayloom.dag.decision import BUDGET_EXCEEDED, QUOTA_EXCEEDED
from rayloom.dag.errors import ErrorInfo, RayloomError, Refused, Transient
from rayloom.dag.model import (
    AccountPort,
    Completion,
    Denied,
    ModelRequest,
    ModelUse,
    ModelView,
    Payer,
    ProviderLimits,
    Reservation,
    Role,
)
from rayloom.dag.reservations import LEASE_S, RENEW_EVERY_S
from rayloom.tools.models.call_record import CallRecord, OnCall
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.patience import Patience, Waiting
from rayloom.tools.models.tokens import count

if TYPE_CHECKING:
    from rayloom.tools.models.client import ModelCall, OnText

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENT: Final = Patience()
RELEASE_S: Final = 5.0
"""Within which a reservation is given back of which nobody knows whether it was granted; else its lease ends it."""
_ASK_AGAIN_S: Final = 0.5
_SETTLE_TRIES: Final = 6


class MeteredModels:
    """A `ModelPort` on somebody's account. ``use``: what all of its calls together have used.

    ``patience``: how long its calls wait for room.
    """

    def __init__(
        self,
        clients: ModelClients,
        account: AccountPort,
        payer: Payer,
        *,
        on_call: OnCall | None = None,
        patience: Patience = PATIENT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.use = ModelUse()
        self._clients = clients
        self._account = account
        self._payer = payer
        self._on_call, self._patience = on_call, patience
        self._clock = clock
        self._under_way = 0

    def view(self, role: Role) -> ModelView:
        """The model that takes a role. Raises Refused (``MODEL_MISSING``)."""
        return self._clients.view(role)

    def count(self, text: str) -> int:
        """How many tokens a text has, by the reference encoding."""
        return count(text)

    async def complete(self, request: ModelRequest, *, on_text: OnText | None = None) -> Completion:
        """See `ModelPort.complete`. Whatever becomes of the call, what it has used is settled when this ends."""
        client = await self._clients.for_role(request.role)
        learning = _Learning(self._account, client.view.name)
        call = await client.prepare(request, on_text=on_text, on_limits=learning.start)
        view = client.view
        asked_at = self._clock()
        reservation = Reservation(
            id=str(uuid7()),
            payer=self._payer,
            model=view.name,
            purpose=request.purpose,
            tokens=call.tokens_in + call.max_tokens,
            cost_usd=view.cost_usd(call.tokens_in, call.max_tokens),
            lease_s=LEASE_S,
            least=await call.least(),
        )
        try:
            await self._reserve(reservation)
        except _Denied as denied:
            raise denied.problem from None
        except BaseException:
            # Whether it was granted is not known.
            await _to_its_end(self._give_back(reservation))
            raise
        self._under_way += 1
        try:
            return await self._paid(call, reservation, learning, asked_at)
        finally:
            self._under_way -= 1

    async def _paid(
        self, call: ModelCall, reservation: Reservation, learning: _Learning, asked_at: float
    ) -> Completion:
        started_at = self._clock()
        error: ErrorInfo | None = None
        end = _End()
        renewing = asyncio.ensure_future(self._renew(call, reservation))
        try:
            try:
                await call.hear()
            finally:
                # Before anybody judges what was heard: that takes its time, and changes nothing of what was used.
                renewing.cancel()
                end.duration_s = self._clock() - started_at
                await _to_its_end(self._close(call, reservation, learning, end))
            return await call.judged()
        except asyncio.CancelledError:
            error = ErrorInfo(code="CANCELLED", error_class="stale", message="nobody waits for it", retryable=False)
            raise
        except BaseException as problem:
            error = ErrorInfo.from_exception(problem)
            raise
        finally:
            self._tell(call, reservation, error, end, started_at=started_at, waited_s=started_at - asked_at)

    async def _reserve(self, reservation: Reservation) -> None:
        """Raises `_Denied` once there is no more time to wait for room, and Transient where nobody could be asked."""
        waiting = Waiting(self._patience)
        while True:
            may_end_it = False
            problem: Exception
            try:
                denied = await self._asked(reservation, within_s=waiting.asking_s)
            except Transient as error:
                problem, wait_s = error, _ASK_AGAIN_S if error.retry_after_s is None else error.retry_after_s
            else:
                if denied is None:
                    return
                problem, found = _Denied(_refusal(denied)), denied.retry_in_s
                if found is None:
                    raise problem
                wait_s = found
                # What takes the room may be a call of ours: to give up now would throw away what that is paid for.
                may_end_it = self._under_way > 0
            # Anew each time: another call may have been paid for since.
            has_paid = self.use.tokens > 0 or self._under_way > 0
            pause_s = waiting.pause_s(wait_s, has_paid=has_paid, may_end_it=may_end_it)
            if pause_s is None:
                raise problem
            await asyncio.sleep(pause_s)

    async def _asked(self, reservation: Reservation, *, within_s: float | None) -> Denied | None:
        """What the account says. Raises Transient where it does not answer within so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                return await self._account.reserve(reservation)
        except TimeoutError:
            raise Transient("ACTOR_UNAVAILABLE", "the token controller does not answer in the time left") from None

    async def _renew(self, call: ModelCall, reservation: Reservation) -> None:
        """Say now and then that the call is still under way, and what it has used so far."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            with suppress(RayloomError):
                await self._account.renew(replace(reservation, least=await call.least()))

    async def _give_back(self, reservation: Reservation) -> None:
        """Release what may be reserved for a call that is not made. If nobody hears that, its lease does it."""
        left_s = self._patience.left_s()
        with suppress(RayloomError, TimeoutError):
            # In time, or when that is over: who is stopped has a moment to clean up.
            async with asyncio.timeout(min(RELEASE_S, left_s / 2) if left_s > 0 else RELEASE_S):
                await self._account.settle(reservation, ModelUse())

    async def _close(self, call: ModelCall, reservation: Reservation, learning: _Learning, end: _End) -> None:
        end.use = await call.use()
        self.use += end.use
        end.is_settled = await self._settle(reservation, end.use)
        await learning.end()

    def _tell(
        self,
        call: ModelCall,
        reservation: Reservation,
        error: ErrorInfo | None,
        end: _End,
        *,
        started_at: float,
        waited_s: float,
    ) -> None:
        if self._on_call is not None:
            self._on_call(
                CallRecord(
                    id=reservation.id,
                    name=reservation.model,
                    model=call.client.view.model,
                    purpose=reservation.purpose,
                    use=end.use,
                    started_at=started_at,
                    waited_s=waited_s,
                    duration_s=end.duration_s,
                    first_text_s=call.first_text_s,
                    finish=call.finish,
                    error=error,
                    is_settled=end.is_settled,
                )
            )

    async def _settle(self, reservation: Reservation, use: ModelUse) -> bool:
        for turn in range(_SETTLE_TRIES):
            try:
                await self._account.settle(reservation, use)
                return True
            except RayloomError as error:
                if turn + 1 == _SETTLE_TRIES:
                    log.warning("model.unsettled", extra={"reservation": reservation.id, "error": error.code})
                else:
                    await asyncio.sleep(_ASK_AGAIN_S * 2**turn)
        return False


@dataclass(slots=True)
class _End:
    """What a call came to, before its answer was judged."""

    use: ModelUse = field(default_factory=ModelUse)
    is_settled: bool = False
    duration_s: float = 0.0


class _Denied(Exception):
    """There is no room, for sure: nothing is reserved."""

    def __init__(self, problem: RayloomError) -> None:
        super().__init__(problem)
        self.problem = problem


class _Learning:
    """Tells the account what an endpoint says of its limits, while the answer is heard."""

    def __init__(self, account: AccountPort, model: str) -> None:
        self._account = account
        self._model = model
        self._telling: list[asyncio.Task[None]] = []

    def start(self, limits: ProviderLimits) -> None:
        self._telling.append(asyncio.ensure_future(self._tell(limits)))

    async def end(self) -> None:
        await asyncio.gather(*self._telling)

    async def _tell(self, limits: ProviderLimits) -> None:
        # It is advice: who does not hear it is told by the endpoint itself.
        with suppress(RayloomError):
            await self._account.learn(self._model, limits)


def _refusal(denied: Denied) -> RayloomError:
    message = f"{denied.detail} (limit: {denied.limit} of the {denied.level})"
    # What is only reserved may be settled with less: a budget is spent when nothing but a higher one helps.
    if denied.level in ("task", "subtask") and denied.retry_in_s is None:
        return Refused(BUDGET_EXCEEDED, message)
    return Transient(QUOTA_EXCEEDED, message, retry_after_s=denied.retry_in_s)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do it whole, though who waits for it be cancelled meanwhile; then that goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
