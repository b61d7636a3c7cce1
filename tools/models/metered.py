"""Models whose calls are paid for: reserved before, settled after, and written down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from uuid_utils.compat import uuid7

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
from rayloom.dag.values import JsonObject
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.tokens import count

if TYPE_CHECKING:
    from rayloom.tools.models.client import ModelCall, OnText

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_MAX_S: Final = 5.0
"""Who has to wait longer for room is told so, and does not hold a worker meanwhile."""
WAIT_TOTAL_MAX_S: Final = 15.0
LEASE_MARGIN_S: Final = 60.0
_ASK_AGAIN_S: Final = 0.5
_SETTLE_TRIES: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call, for the trace and the log. ``started_at`` in seconds since the epoch, when its question was asked.

    ``id`` is its reservation's. ``waited_s``: for room, before that. ``finish`` is empty, and ``error`` its reason,
    where it gave no answer. ``is_settled``: False where the account could not be told what it used.
    """

    id: str
    name: str
    model: str
    purpose: str
    use: ModelUse
    started_at: float
    waited_s: float
    duration_s: float
    first_text_s: float | None
    finish: Literal["stop", "length", ""]
    error: ErrorInfo | None
    is_settled: bool

    @property
    def is_ok(self) -> bool:
        """Whether it gave an answer that is what was asked for."""
        return self.error is None

    @property
    def attributes(self) -> JsonObject:
        """The attributes of its span, of the kind ``model``, and the fields of its log line."""
        found: JsonObject = {
            "model": self.model,
            "purpose": self.purpose,
            "tokens_in": self.use.tokens_in,
            "tokens_out": self.use.tokens_out,
            "is_estimated": self.use.is_estimated,
            "cost_usd": self.use.cost_usd,
            "duration_ms": round(self.duration_s * 1_000),
            "waited_ms": round(self.waited_s * 1_000),
        }
        if self.first_text_s is not None:
            found["first_text_ms"] = round(self.first_text_s * 1_000)
        if self.finish:
            found["finish"] = self.finish
        if self.error is not None:
            found["error"] = self.error.code
        if not self.is_settled:
            found["is_settled"] = False
        return found

    @property
    def line(self) -> str:
        """What the log says of it, in the stream ``model``."""
        used = f"{self.use.tokens_in} + {self.use.tokens_out} tokens, {self.use.cost_usd:.6f} USD"
        end = f"{self.error.code}: {self.error.message}" if self.error else self.finish
        return f"{self.purpose}: {self.name} ({self.model}), {used}, {self.duration_s:.1f} s: {end}"


OnCall = Callable[[CallRecord], None]


class MeteredModels:
    """A `ModelPort` on somebody's account. ``use``: what all of its calls together have used."""

    def __init__(
        self,
        clients: ModelClients,
        account: AccountPort,
        payer: Payer,
        *,
        on_call: OnCall | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.use = ModelUse()
        self._clients = clients
        self._account = account
        self._payer = payer
        self._on_call = on_call
        self._clock = clock

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
        reservation = Reservation(
            id=str(uuid7()),
            payer=self._payer,
            model=view.name,
            purpose=request.purpose,
            tokens=call.tokens_in + call.max_tokens,
            cost_usd=view.cost_usd(call.tokens_in, call.max_tokens),
            lease_s=client.settings.call_s + LEASE_MARGIN_S,
        )
        asked_at = self._clock()
        try:
            await self._reserve(reservation)
        except RayloomError:
            raise
        except BaseException:
            # Whether it was granted is not known: a reservation of nothing is released, if there is one.
            await _to_its_end(self._settle(reservation, ModelUse()))
            raise
        return await self._paid(call, reservation, learning, asked_at)

    async def _paid(
        self, call: ModelCall, reservation: Reservation, learning: _Learning, asked_at: float
    ) -> Completion:
        started_at = self._clock()
        error: ErrorInfo | None = None
        try:
            return await call.run()
        except asyncio.CancelledError:
            error = ErrorInfo(code="CANCELLED", error_class="stale", message="nobody waits for it", retryable=False)
            raise
        except BaseException as problem:
            error = ErrorInfo.from_exception(problem)
            raise
        finally:
            times = (started_at - asked_at, started_at, self._clock() - started_at)
            await _to_its_end(self._close(call, reservation, learning, error, times))

    async def _reserve(self, reservation: Reservation) -> None:
        """Raises what a denial means, once there is no more time to wait for room."""
        waited_s = 0.0
        while True:
            problem: RayloomError
            try:
                denied = await self._account.reserve(reservation)
            except Transient as error:
                problem, wait_s = error, _ASK_AGAIN_S if error.retry_after_s is None else error.retry_after_s
            else:
                if denied is None:
                    return
                problem, found = _refusal(denied), denied.retry_in_s
                if found is None:
                    raise problem
                wait_s = found
            if wait_s > WAIT_MAX_S or waited_s + wait_s > WAIT_TOTAL_MAX_S:
                raise problem
            # Never none: an account that says "now", and again no, is not to be asked without a pause.
            wait_s = max(wait_s, 0.05)
            waited_s += wait_s
            await asyncio.sleep(wait_s)

    async def _close(
        self,
        call: ModelCall,
        reservation: Reservation,
        learning: _Learning,
        error: ErrorInfo | None,
        times: tuple[float, float, float],
    ) -> None:
        use = await call.use()
        is_settled = await self._settle(reservation, use)
        await learning.end()
        self.use += use
        waited_s, started_at, duration_s = times
        if self._on_call is not None:
            self._on_call(
                CallRecord(
                    id=reservation.id,
                    name=reservation.model,
                    model=call.client.view.model,
                    purpose=reservation.purpose,
                    use=use,
                    started_at=started_at,
                    waited_s=waited_s,
                    duration_s=duration_s,
                    first_text_s=call.first_text_s,
                    finish=call.finish,
                    error=error,
                    is_settled=is_settled,
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
        return Refused("BUDGET_EXCEEDED", message)
    return Transient("QUOTA_EXCEEDED", message, retry_after_s=denied.retry_in_s)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do it whole, though who waits for it be cancelled meanwhile; then that goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
