"""Settling and reserving calls at the same time: none waits for another in a circle."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.db.engine import driver
from rayloom.db.ledger import Ledger

# A statement of the other one waits for a lock.
WAITS = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
    AND query LIKE '%settle_calls%' AND pid <> pg_backend_pid())
"""
RESERVE = """
SELECT reserve_calls(ARRAY[$1::uuid], ARRAY[$2::uuid], ARRAY[NULL::uuid], ARRAY[NULL::uuid], ARRAY[NULL::uuid],
    ARRAY[0], ARRAY['m'], ARRAY['reason'], ARRAY[1::bigint], ARRAY[0::float8], ARRAY[60::float8], ARRAY[0::bigint],
    ARRAY[0::bigint], ARRAY[0::float8])
"""


async def test_a_call_that_is_not_written_down_yet_is_settled_in_the_order_in_which_calls_are_reserved(
    engine: AsyncEngine,
) -> None:
    ledger, user = Ledger(engine), str(uuid7())
    known = Reservation(
        id=str(UUID(int=2)), payer=Payer(user_id=user), model="m", purpose="reason", tokens=1, cost_usd=0.0,
        lease_s=60.0,
    )  # fmt: skip
    new = replace(known, id=str(UUID(int=1)))
    await ledger.reserve([known])
    settlements = [(known, ModelUse(tokens_in=3)), (new, ModelUse(tokens_in=4))]
    async with driver(engine) as connection:
        # A statement that writes the new one down, and renews the known one, in the middle of its work.
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(RESERVE, new.id, user)
        settling = asyncio.ensure_future(ledger.settle(settlements))
        async with driver(engine) as watching:
            while not await watching.fetchval(WAITS):
                assert not settling.done()
        await connection.execute(RESERVE, known.id, user)
        await transaction.commit()
    news = await settling
    assert {id_: used.tokens for id_, used in news.items()} == {known.id: 3, new.id: 4}
    assert await ledger.open_calls() == []
    await ledger.close()
