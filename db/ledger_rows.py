"""Calls of models as rows of the ledger, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg

from rayloom.dag.amount import Amount, nano
from rayloom.dag.errors import Bug
from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.output import clean_text
from rayloom.dag.token_port import Quota

COUNT_MAX: Final = 2**48
COST_MAX: Final = 1e12


def check_reservation(reservation: Reservation) -> None:
    """Whether it can be written down: one that can't would keep its whole batch from it. Raises Bug."""
    payer = reservation.payer
    try:
        for id_ in (reservation.id, payer.user_id):
            UUID(id_)
        for id_ in (payer.key_id, payer.task_id, payer.sub_task_id):
            if id_:
                UUID(id_)
    except ValueError as error:
        raise Bug("RESERVATION_INVALID", f"a reservation names something that is no UUID: {error}") from error
    if payer.sub_task_id and not payer.task_id:
        raise Bug("RESERVATION_INVALID", "a reservation names a subtask and no task")
    if not 0 <= payer.attempt < 2**31 or not 0 <= reservation.tokens <= COUNT_MAX:
        raise Bug("RESERVATION_INVALID", f"a reservation of {reservation.tokens} tokens by attempt {payer.attempt}")
    # Also what is no number at all.
    if not 0 <= reservation.cost_usd <= COST_MAX or not 0 < reservation.lease_s <= COST_MAX:
        raise Bug("RESERVATION_INVALID", f"a reservation of {reservation.cost_usd} USD for {reservation.lease_s} s")


def columns_of(reservations: Sequence[Reservation]) -> list[list[Any]]:
    """Calls as the columns that `reserve_calls` and `settle_calls` take."""
    payers = [each.payer for each in reservations]
    return [
        [each.id for each in reservations],
        [payer.user_id for payer in payers],
        [payer.key_id or None for payer in payers],
        [payer.task_id or None for payer in payers],
        [payer.sub_task_id or None for payer in payers],
        [payer.attempt for payer in payers],
        [clean_text(each.model) for each in reservations],
        [clean_text(each.purpose) for each in reservations],
        [each.tokens for each in reservations],
        [each.cost_usd for each in reservations],
    ]


def count_of(tokens: int) -> int:
    """So many tokens as fit into a column."""
    return min(max(tokens, 0), COUNT_MAX)


def cost_of(cost_usd: float) -> float:
    """So much money as fits into a column; what is no number is none."""
    return min(max(cost_usd, 0.0), COST_MAX) if math.isfinite(cost_usd) else 0.0


def reservation_of(row: asyncpg.Record) -> Reservation:
    """The call that a row of ``model_calls`` is about; ``lease_s`` is how long its lease is yet."""
    payer = Payer(
        user_id=str(row["user_id"]),
        key_id=text_of(row["key_id"]),
        task_id=text_of(row["task_id"]),
        sub_task_id=text_of(row["sub_task_id"]),
        attempt=row["attempt"],
    )
    return Reservation(
        id=str(row["id"]),
        payer=payer,
        model=row["model"],
        purpose=row["purpose"],
        tokens=row["reserved_tokens"],
        cost_usd=row["reserved_usd"],
        lease_s=row["lease_s"],
    )


def text_of(id_: UUID | None) -> str:
    """An id as the values have it."""
    return "" if id_ is None else str(id_)


def used_of(row: asyncpg.Record) -> Amount:
    """What a row of totals says."""
    return Amount.of(row["tokens_used"], row["cost_usd"])


def use_of(row: asyncpg.Record) -> ModelUse:
    """What a row of ``model_calls`` says that the call used."""
    return ModelUse(
        tokens_in=row["tokens_in"],
        tokens_out=row["tokens_out"],
        cost_usd=row["cost_usd"],
        is_estimated=row["is_estimated"],
    )


def difference_of(row: asyncpg.Record) -> Amount:
    """What a call adds to what was counted; may be less than nothing."""
    return Amount(tokens=int(row["tokens"]), nano_usd=nano(row["cost_usd"]))


def budget_of(budget: Mapping[str, Any] | None) -> Quota:
    """The limits that the budget of a task sets."""
    limits = budget or {}
    return Quota(max_tokens=limits.get("max_tokens"), max_cost_usd=limits.get("max_cost_usd"))
