"""What PostgreSQL will not take fails its own attempt, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.db import attempts
from rayloom.db.engine import Line, driver, takes_writes
from tests.integration.db.spine import BROKEN, Spine, outcome

UNSTORABLE: dict[str, dict[str, Any]] = {
    "an escaped NUL": {"output": '{"a": "\\u0000"}'},
    "a raw NUL": {"output": '"\x00"'},
    "half a surrogate pair": {"output": '"\\ud800"'},
    "a lone surrogate": {"output": '"\ud800"'},
    "nested too deep": {"output": "[" * 500_000 + "]" * 500_000},
    "a number beyond numeric": {"output": "1e200000"},
    "no JSON": {"output": "{"},
    "a NUL in stdout": {"output": "1", "stdout": "a\0b"},
    "spans that are no JSON": {"output": "1", "spans": "["},
    "more tokens than fit": {"output": "1", "tokens_used": 2**70},
    "a time that is none": {"output": "1", "started_at": float("nan"), "finished_at": float("nan")},
}


@pytest.mark.parametrize("unfit", UNSTORABLE.values(), ids=UNSTORABLE.keys())
async def test_one_outcome_that_the_database_refuses_is_found_among_many(spine: Spine, unfit: dict[str, Any]) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(9)} | {"join": ["s0", "s8"]})
    claimed = await spine.claim(made.task_id)
    endings = [
        spine.ending(one, outcome(key, **(unfit if key == "s5" else {}))) for key, one in sorted(claimed.items())
    ]
    committed = await attempts.complete(spine.engine, endings)
    ((ending, why),) = committed.refused
    assert ending.sub_task_id == claimed["s5"].sub_task_id
    assert ": " in why
    assert committed.accepted == {one.sub_task_id for key, one in claimed.items() if key != "s5"}
    assert await spine.statuses(made.task_id) == dict.fromkeys(claimed, "COMPLETED") | {
        "s5": "RUNNING",
        "join": "QUEUED",
    }
    assert [queued.sub_task_id for queued in committed.queued] == [(await spine.ids(made.task_id))["join"]]


@pytest.mark.parametrize("message", ["a\0b", "a\ud800b"], ids=["NUL", "surrogate"])
async def test_an_error_is_stored_whatever_its_message(spine: Spine, message: str) -> None:
    made = await spine.submit({"a": []})
    claimed = (await spine.claim(made.task_id))["a"]
    error = ErrorInfo(code="REMOTE", error_class="transient", message=message, retryable=True)
    committed = await attempts.complete(spine.engine, [spine.ending(claimed, outcome(error=error), retry_in_s=0)])
    assert committed.refused == ()
    row = await spine.subtask(made.task_id, "a")
    assert (row["status"], row["error"]["message"]) == ("FAILED", "a�b")


async def test_a_connection_goes_on_after_a_refusal(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": []})
    claimed = await spine.claim(made.task_id)
    await attempts.complete(spine.engine, [spine.ending(claimed["a"], outcome(1, output="{"))])
    await attempts.complete(spine.engine, [spine.ending(claimed["b"], outcome(error=BROKEN))])
    assert await spine.statuses(made.task_id) == {"a": "RUNNING", "b": "BLOCKED"}
    pids = await spine.rows("SELECT count(*) AS idle_in FROM pg_stat_activity WHERE state LIKE 'idle in%'")
    assert pids[0]["idle_in"] == 0


TROUBLES = ["statement_timeout = 100", "lock_timeout = 100", "default_transaction_read_only = on"]


@pytest.mark.parametrize("setting", TROUBLES)
async def test_an_output_is_not_to_blame_for_timeouts_and_failovers(spine: Spine, setting: str) -> None:
    made = await spine.submit({"a": [], "b": []})
    claimed = await spine.claim(made.task_id)
    endings = [spine.ending(one, outcome(1)) for one in claimed.values()]
    line = Line(spine.engine)
    async with driver(line) as connection:
        await connection.execute(f"SET {setting}")
    async with driver(spine.engine) as other, other.transaction():
        await other.execute("SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE", made.task_id)
        with pytest.raises(Transient) as told:
            await attempts.complete(line, endings)
    assert told.value.code == "DATABASE_UNAVAILABLE"
    assert await spine.statuses(made.task_id) == {"a": "RUNNING", "b": "RUNNING"}
    # The line is made anew: after a failover the name leads to the new primary.
    assert await takes_writes(line)
    assert len((await attempts.complete(line, endings)).accepted) == 2
    await line.drop()


async def test_a_database_that_only_reads_takes_no_writes(spine: Spine) -> None:
    line = Line(spine.engine)
    async with driver(line) as connection:
        await connection.execute("SET default_transaction_read_only = on")
    assert not await takes_writes(line)
    await line.drop()


@pytest.mark.long
async def test_a_string_that_is_too_long_for_jsonb(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": []})
    claimed = await spine.claim(made.task_id)
    endings = [
        spine.ending(claimed["a"], outcome(1)),
        spine.ending(claimed["b"], outcome(1, output='"' + "x" * 300_000_000 + '"')),
    ]
    committed = await attempts.complete(spine.engine, endings)
    assert [ending.sub_task_id for ending, _ in committed.refused] == [claimed["b"].sub_task_id]
    assert await spine.statuses(made.task_id) == {"a": "COMPLETED", "b": "RUNNING"}
