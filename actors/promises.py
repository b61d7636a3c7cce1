"""Subtasks that were denied the call of a model: held back until there is room for it, which is then kept for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rayloom.actors.call_accounts import CallAccounts
from rayloom.dag.model import Denied, Reservation

DENIED_KEPT: Final = 10_000
"""So many subtasks are remembered that a limit kept from calling a model; the oldest may try once in vain."""
PROMISE_S: Final = 60.0
"""What room was found for in admitting a subtask is kept for it so long, or until its attempt has ended."""


class Promises:
    """See the module. What is promised is counted in the accounts, as if it were reserved.

    ``refusal``: what denies a call now.
    """

    def __init__(
        self,
        accounts: CallAccounts,
        *,
        refusal: Callable[[Reservation], Denied | None],
        clock: Callable[[], float],
    ) -> None:
        self._accounts, self._refusal, self._clock = accounts, refusal, clock
        self._denied: dict[str, Reservation] = {}
        self._promised: dict[str, float] = {}

    @property
    def is_holding(self) -> bool:
        """Whether the admission of any subtask depends on what is known here."""
        return bool(self._denied or self._promised)

    def deny(self, reservation: Reservation, denied: Denied) -> None:
        """A subtask was denied a call."""
        sub_task_id = reservation.payer.sub_task_id
        if sub_task_id and not _ends(denied):
            self._denied.pop(sub_task_id, None)
            self._denied[sub_task_id] = reservation
            if len(self._denied) > DENIED_KEPT:
                del self._denied[next(iter(self._denied))]

    def granted(self, sub_task_id: str) -> None:
        """It was not denied after all."""
        self._denied.pop(sub_task_id, None)

    def still_denied(self, sub_task_id: str) -> Denied | None:
        """What would keep a subtask from the call of a model that it was denied last; None: nothing that is known."""
        reservation = self._denied.get(sub_task_id)
        denied = None if reservation is None else self._refusal(reservation)
        # What its budget denies for good is told to its next attempt, which ends it.
        return None if denied is None or _ends(denied) else denied

    def promise(self, sub_task_id: str) -> None:
        """A subtask that was denied a call is admitted: its room is kept for it."""
        reservation = self._denied.pop(sub_task_id, None)
        if reservation is not None:
            self._promised[sub_task_id] = self._clock() + PROMISE_S
            self._accounts.promise(sub_task_id, reservation)

    def keep(self, sub_task_id: str) -> None:
        """It has come for what was promised, or will not come any more."""
        if self._promised.pop(sub_task_id, None) is not None:
            self._accounts.unpromise(sub_task_id)

    def forget_old(self) -> None:
        """Give back what was promised too long ago."""
        now_s = self._clock()
        for sub_task_id in [id_ for id_, until_s in self._promised.items() if until_s <= now_s]:
            self.keep(sub_task_id)


def _ends(denied: Denied) -> bool:
    return denied.level == "task" and denied.retry_in_s is None
