"""The database itself refuses what the state machine does not have, and rows that make no sense."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import product
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.states import (
    SUBTASK_MOVES,
    SUBTASK_SETTLED,
    TASK_MOVES,
    TASK_TERMINAL,
    SubtaskStatus,
    TaskStatus,
    legal_pairs,
)
from rayloom.db.engine import driver
from tests.integration.db.spine import Spine

LEGAL = {"tasks": legal_pairs(TASK_MOVES), "sub_tasks": legal_pairs(SUBTASK_MOVES)}
STATUSES: dict[str, list[StrEnum]] = {"tasks": list(TaskStatus), "sub_tasks": list(SubtaskStatus)}


@pytest.mark.parametrize("table", LEGAL)
async def test_the_guard_of_a_table_is_the_table_of_transitions(spine: Spine, table: str) -> None:
    (row,) = await spine.rows(
        "SELECT pg_get_triggerdef(oid) AS text, tgenabled FROM pg_trigger WHERE tgrelid = $1::regclass AND tgname = $2",
        table, f"{table}_transitions",
    )  # fmt: skip
    (pairs,) = re.findall(r"'\{([^}]*)\}'::text\[\]", row["text"])
    assert sorted(pairs.split(",")) == LEGAL[table]
    assert "BEFORE UPDATE OF status" in row["text"]
    assert row["tgenabled"] == b"O"


def _task(status: str) -> dict[str, Any]:
    """A row of ``tasks`` that satisfies every CHECK."""
    row: dict[str, Any] = {"id": uuid7(), "title": "t", "priority": 5, "status": status}
    if status in TASK_TERMINAL:
        row["finished_at"] = "now"
    if status == "COMPLETED":
        row["result"] = "{}"
    if status == "FAILED":
        row["error"] = "{}"
    return row


def _subtask(status: str) -> dict[str, Any]:
    """A row of ``sub_tasks`` that satisfies every CHECK."""
    row: dict[str, Any] = {
        "id": uuid7(), "key": "k", "name": "n", "task_type": "TOOL", "status": status, "execution_order": 0,
        "tool": "t", "timeout_s": 1.0, "max_retries": 0, "shape": "s", "score": 0.0,
    }  # fmt: skip
    if status in SUBTASK_SETTLED:
        row["finished_at"] = "now"
    if status == "COMPLETED":
        row["output_result"] = "null"
    if status == "RUNNING":
        row |= {"incarnation": uuid7(), "attempt": 1, "started_at": "now"}
    if status in ("FAILED", "BLOCKED"):
        row["error"] = "{}"
    if status == "FAILED":
        row["not_before"] = "now"
    if status == "AWAITING_APPROVAL":
        row["held_at"] = "now"
    return row


async def _write(connection: Any, sql: str, row: Mapping[str, Any]) -> None:
    """``sql`` with ``{columns}``, ``{values}`` or ``{sets}`` filled in; ``"now"`` is the database's own clock."""
    given = [value for value in row.values() if value != "now"]
    places = iter(range(1, len(given) + 1))
    holders = {name: "now()" if value == "now" else f"${next(places)}" for name, value in row.items()}
    text = sql.format(
        columns=", ".join(holders),
        values=", ".join(holders.values()),
        sets=", ".join(f"{name} = {holder}" for name, holder in holders.items()),
    )
    await connection.execute(text, *given)


_COLUMNS_BY_STATUS: dict[str, dict[str, Any]] = {
    "tasks": {"finished_at": None, "result": None, "error": None},
    "sub_tasks": {
        "finished_at": None, "output_result": None, "error": None, "not_before": None, "incarnation": None,
        "held_at": None,
        "attempt": 0, "started_at": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("table", LEGAL)
async def test_every_transition_that_is_not_in_the_table_is_refused(spine: Spine, table: str) -> None:
    make: Callable[[str], dict[str, Any]] = _task if table == "tasks" else _subtask
    made = await spine.submit({"a": []})
    belongs: dict[str, Any] = {"user_id": spine.user_id} | ({} if table == "tasks" else {"parent_id": made.task_id})
    passed, refused = [], []
    async with driver(spine.engine) as connection:
        for source, target in product(STATUSES[table], repeat=2):
            outer = connection.transaction()
            await outer.start()
            row: dict[str, Any] = make(source) | belongs
            await _write(connection, f"INSERT INTO {table} ({{columns}}) VALUES ({{values}})", row)
            change = _COLUMNS_BY_STATUS[table] | make(target)
            del change["id"]
            try:
                await _write(connection, f"UPDATE {table} SET {{sets}} WHERE id = '{row['id']}'", change)
                passed.append(f"{source}>{target}")
            except asyncpg.CheckViolationError as error:
                refused.append((str(error), f"illegal transition of {table} {row['id']}: {source} to {target}"))
            await outer.rollback()
    stays = [f"{status}>{status}" for status in STATUSES[table]]
    assert sorted(passed) == sorted(LEGAL[table] + stays)
    for told, expected in refused:
        assert told == expected


SENSELESS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ck_tasks_status": ("tasks", "PENDING", {"status": "LOST"}),
    "ck_tasks_priority": ("tasks", "PENDING", {"priority": 11}),
    "ck_tasks_priority 0": ("tasks", "PENDING", {"priority": 0}),
    "ck_tasks_open_count": ("tasks", "PROCESSING", {"open_count": 1}),
    "ck_tasks_open_count -1": ("tasks", "PROCESSING", {"open_count": -1, "subtask_count": 1}),
    "ck_tasks_blocked_count": ("tasks", "PROCESSING", {"blocked_count": 2, "subtask_count": 1}),
    "ck_tasks_finished": ("tasks", "COMPLETED", {"finished_at": None}),
    "ck_tasks_finished early": ("tasks", "PROCESSING", {"finished_at": "now"}),
    "ck_tasks_result": ("tasks", "COMPLETED", {"result": None}),
    "ck_tasks_result early": ("tasks", "PROCESSING", {"result": "1"}),
    "ck_tasks_result_apart": ("tasks", "PROCESSING", {"result_apart": True}),
    "ck_tasks_error": ("tasks", "FAILED", {"error": None}),
    "ck_tasks_growth": ("tasks", "PROCESSING", {"growth": "wild", "open_count": 1, "subtask_count": 1}),
    "ck_tasks_open_count growing": ("tasks", "PROCESSING", {"growth": "due", "subtask_count": 1}),
    "ck_tasks_growing": ("tasks", "SPLITTING", {"growth": "due", "open_count": 1, "subtask_count": 1}),
    "ck_tasks_grower": ("tasks", "PROCESSING", {"growth": "under_way", "open_count": 1, "subtask_count": 1}),
    "ck_tasks_replans_left": ("tasks", "PROCESSING", {"replans_left": -1}),
    "ck_tasks_whole": ("tasks", "COMPLETED", {"plan_meta": '{"partial": true}'}),
    "ck_sub_tasks_superseded": ("sub_tasks", "READY", {"superseded": True}),
    "ck_tasks_closed": ("tasks", "COMPLETED", {"open_count": 1, "subtask_count": 1}),
    "ck_sub_tasks_task_type": ("sub_tasks", "READY", {"task_type": "DANCE"}),
    "ck_sub_tasks_status": ("sub_tasks", "READY", {"status": "LOST"}),
    "ck_sub_tasks_phase": ("sub_tasks", "RUNNING", {"phase": "DREAMING"}),
    "ck_sub_tasks_pending": ("sub_tasks", "READY", {"pending_dependencies": -1}),
    "ck_sub_tasks_finished": ("sub_tasks", "SKIPPED", {"finished_at": None}),
    "ck_sub_tasks_finished early": ("sub_tasks", "RUNNING", {"finished_at": "now"}),
    "ck_sub_tasks_output": ("sub_tasks", "COMPLETED", {"output_result": None}),
    "ck_sub_tasks_output early": ("sub_tasks", "RUNNING", {"output_result": "1"}),
    "ck_sub_tasks_output both": ("sub_tasks", "COMPLETED", {"output_blob": "0"}),
    "ck_sub_tasks_input": ("sub_tasks", "READY", {"input_blob": "0", "input_context": '{"a": 1}'}),
    "ck_sub_tasks_running no lease": ("sub_tasks", "RUNNING", {"incarnation": None}),
    "ck_sub_tasks_running no attempt": ("sub_tasks", "RUNNING", {"attempt": 0}),
    "ck_sub_tasks_running no start": ("sub_tasks", "RUNNING", {"started_at": None}),
    "ck_sub_tasks_phase_running": ("sub_tasks", "QUEUED", {"phase": "EXECUTING"}),
    "ck_sub_tasks_lease": ("sub_tasks", "READY", {"incarnation": uuid7()}),
    "ck_sub_tasks_freed": ("sub_tasks", "QUEUED", {"pending_dependencies": 1}),
    "ck_sub_tasks_not_before": ("sub_tasks", "FAILED", {"not_before": None}),
    "ck_sub_tasks_not_before early": ("sub_tasks", "QUEUED", {"not_before": "now"}),
    "ck_sub_tasks_error": ("sub_tasks", "BLOCKED", {"error": None}),
    "ck_sub_tasks_on_failure": ("sub_tasks", "READY", {"on_failure": "panic"}),
    "ck_sub_tasks_stand_in": ("sub_tasks", "READY", {"stand_in": "1"}),
    "ck_sub_tasks_stand_in none": ("sub_tasks", "READY", {"on_failure": "continue"}),
    "ck_sub_tasks_fallback": ("sub_tasks", "READY", {"on_failure": "fallback"}),
    "ck_sub_tasks_fallback no input": ("sub_tasks", "READY", {"on_failure": "fallback", "fallback_tool": "t"}),
    "ck_sub_tasks_fallback for nothing": ("sub_tasks", "READY", {"fallback_tool": "t", "fallback_input": "{}"}),
    "ck_sub_tasks_fallback on none": ("sub_tasks", "READY", {"on_fallback": True}),
    "ck_sub_tasks_held": ("sub_tasks", "AWAITING_APPROVAL", {"held_at": None}),
    "ck_tasks_held": ("tasks", "PROCESSING", {"held_at": "now"}),
    "ck_tasks_callback": ("tasks", "PROCESSING", {"callback_url": "https://x.example"}),
    "ck_tasks_callback no url": ("tasks", "PROCESSING", {"callback_secret": "s"}),
    "ck_users_name": ("users", "", {"id": uuid7(), "name": ""}),
    "ck_api_keys_role": ("api_keys", "", {"id": uuid7(), "role": "god", "key_hash": b"x"}),
    "ck_tools_type": ("tools", "", {"type": "MAGIC"}),
    "ck_tools_lane": ("tools", "", {"lane": "fast"}),
    "ck_tools_permission_level": ("tools", "", {"permission_level": "god"}),
    "ck_execution_logs_status": ("execution_logs", "", {"status": "RUNNING"}),
    "ck_task_events_kind": ("task_events", "", {"kind": "weather"}),
    "ck_dead_letters_status": ("dead_letters", "", {"status": "lost", "settled_at": "now"}),
    "ck_dead_letters_settled": ("dead_letters", "", {"status": "retried"}),
    "ck_webhooks_task_status": ("webhooks", "", {"task_status": "READY"}),
    "ck_webhooks_status": ("webhooks", "", {"status": "lost"}),
    "ck_webhooks_delivered": ("webhooks", "", {"status": "delivered"}),
    "ck_webhooks_delivered early": ("webhooks", "", {"delivered_at": "now"}),
    "ck_blobs_place": ("blobs", "", {"data": None}),
    "ck_blobs_place both": ("blobs", "", {"place": "s3://bucket"}),
    "ck_breakers_openings": ("breakers", "", {"openings": -1}),
    "ck_mcp_servers_transport": ("mcp_servers", "", {"transport": "pigeon"}),
    "ck_mcp_servers_health": ("mcp_servers", "", {"health": "poorly"}),
    "ck_api_keys_max_level": (
        "api_keys",
        "",
        {"id": uuid7(), "role": "user", "key_hash": b"y", "max_level": "god"},
    ),
    "ck_model_calls_status": ("model_calls", "", {"status": "lost", "settled_at": "now"}),
    "ck_model_calls_settled": ("model_calls", "", {"status": "settled"}),
    "ck_model_calls_settled early": ("model_calls", "", {"settled_at": "now"}),
    "ck_model_calls_reserved": ("model_calls", "", {"reserved_tokens": -1}),
    "ck_model_calls_reserved usd": ("model_calls", "", {"reserved_usd": -0.5}),
    "ck_model_calls_used": ("model_calls", "", {"status": "settled", "settled_at": "now", "tokens_out": -1}),
    "ck_model_calls_unused": ("model_calls", "", {"tokens_in": 1}),
    "ck_model_calls_least": ("model_calls", "", {"least_in": -1}),
    "ck_model_calls_least usd": ("model_calls", "", {"least_usd": -0.1}),
    "ck_limit_alerts_level": ("limit_alerts", "", {"level": "model"}),
    "ck_granting_ahead_row": ("granting_ahead", "", {"is_row": False}),
    "ck_model_calls_payer": ("model_calls", "", {"sub_task_id": uuid7()}),
    "ck_log_lines_stream": ("log_lines", "", {"stream": "river"}),
    "ck_log_lines_level": ("log_lines", "", {"level": "LOUD"}),
}
_PLAIN: dict[str, dict[str, Any]] = {
    "users": {},
    "api_keys": {},
    "tools": {
        "id": uuid7(), "name": "x", "schema": "{}", "endpoint": "e", "type": "NATIVE", "permission_level": "read",
    },
    "execution_logs": {
        "sub_task_id": uuid7(), "attempt": 1, "task_id": uuid7(), "status": "COMPLETED", "start_time": "now",
        "end_time": "now", "duration": 1.0,
    },
    "task_events": {"task_id": uuid7(), "kind": "task"},
    "dead_letters": {
        "id": uuid7(), "task_id": uuid7(), "user_id": uuid7(), "subtask": "k", "tool": "t", "code": "c",
        "fingerprint": "f", "error": "{}", "attempts": 1, "status": "open", "at": "now", "updated_at": "now",
    },
    "webhooks": {"id": uuid7(), "task_id": uuid7(), "user_id": uuid7(), "task_status": "FAILED", "at": "now"},
    "blobs": {"sha256": "0", "size": 1, "data": b"1"},
    "breakers": {"key": "t", "openings": 1},
    "mcp_servers": {"name": "m", "transport": "http", "spec": "{}", "secrets": "s"},
    "model_calls": {
        "id": uuid7(), "user_id": uuid7(), "model": "m", "purpose": "p", "reserved_tokens": 1, "reserved_usd": 0.0,
        "status": "reserved", "expires_at": "now",
    },
    "limit_alerts": {
        "level": "user", "owner_id": uuid7(), "user_id": uuid7(), "limit_name": "max_tokens", "share": 1.0,
    },
    "log_lines": {"task_id": uuid7(), "stream": "tool", "level": "INFO", "message": "m"},
}  # fmt: skip


@pytest.mark.parametrize("case", SENSELESS)
async def test_a_row_that_makes_no_sense_is_refused(spine: Spine, case: str) -> None:
    table, status, change = SENSELESS[case]
    row: dict[str, Any] = dict(_PLAIN.get(table, {}))
    if table in ("tasks", "api_keys"):
        row["user_id"] = spine.user_id
    if table == "tasks":
        row |= _task(status)
    if table == "sub_tasks":
        row |= _subtask(status) | {"user_id": spine.user_id, "parent_id": (await spine.submit({"a": []})).task_id}
    async with driver(spine.engine) as connection:
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await _write(connection, f"INSERT INTO {table} ({{columns}}) VALUES ({{values}})", row | change)
    assert getattr(refused.value, "constraint_name", None) == case.split()[0]


async def test_every_check_has_a_case(engine: AsyncEngine) -> None:
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        )
    assert {row["conname"] for row in rows} == {case.split()[0] for case in SENSELESS}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE task_events SET reason = 'nothing happened' WHERE task_id = '{task}'",
        "DELETE FROM task_events WHERE task_id = '{task}'",
        "TRUNCATE task_events",
    ],
)
async def test_the_record_of_events_is_only_ever_added_to(spine: Spine, statement: str) -> None:
    made = await spine.submit({"a": []})
    with pytest.raises(asyncpg.CheckViolationError, match="append-only"):
        await spine.rows(statement.format(task=made.task_id))


async def test_the_events_of_a_task_may_go_when_it_is_gone(spine: Spine) -> None:
    gone, stays = await spine.submit({"a": []}), await spine.submit({"a": []})
    await spine.rows("DELETE FROM tasks WHERE id = $1", gone.task_id)
    deleted = await spine.rows("DELETE FROM task_events WHERE task_id = $1 RETURNING id", gone.task_id)
    assert deleted
    assert await spine.events(stays.task_id, "a") == [("PENDING", "READY"), ("READY", "QUEUED")]
