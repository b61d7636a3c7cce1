"""With a million subtasks, every query that is asked again and again goes by an index that was made for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db import (
    attempts,
    events,
    incarnations,
    leases,
    letters,
    logs,
    reads,
    results,
    retries,
    task_moves,
    waiting,
    webhooks,
)  # fmt: skip
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import driver, make_engine
from rayloom.db.letters import LetterFilter
from rayloom.db.outputs import outputs
from rayloom.db.quotas import QuotaStore
from rayloom.db.settings import BlobSettings, DatabaseSettings
from tests.integration.databases import administer


def _blobs(engine: AsyncEngine) -> BlobStore:
    """A store that has nothing to do with Redis."""
    return BlobStore(engine, Redis(), BlobSettings(cache_ttl_s=0))


pytestmark = pytest.mark.long

USER, LIFE = UUID(int=1), UUID(int=2)
TASKS = 5_000
"""Of 200 subtasks each: a million."""
TASK = "('00000000-0000-7000-8000-' || lpad(to_hex({}), 12, '0'))::uuid"
SUBTASK = "('00000000-0000-7000-9000-' || lpad(to_hex({}), 12, '0'))::uuid"
FILL = (
    f"INSERT INTO users (id, name) VALUES ('{USER}', 'everybody')",
    f"INSERT INTO users (id, name) SELECT {TASK.format('n')}, 'user ' || n FROM generate_series(1, 20) n",
    f"INSERT INTO schedulers (incarnation, actor) VALUES ('{LIFE}', 'a test')",
    # Most tasks are long done; a hundred are live.
    f"""
    INSERT INTO tasks (id, user_id, title, status, priority, result, subtask_count, open_count, created_at, finished_at,
        deadline_at)
    SELECT {TASK.format("n")}, CASE WHEN n % 20 = 0 THEN '{USER}' ELSE {TASK.format("n % 20 + 1")} END, 't',
        CASE WHEN n > {TASKS - 100} THEN 'PROCESSING' WHEN n > {TASKS - 110} THEN 'PENDING' ELSE 'COMPLETED' END, 5,
        CASE WHEN n <= {TASKS - 110} THEN '1'::jsonb END, 200, CASE WHEN n > {TASKS - 100} THEN 200 ELSE 0 END,
        now() - make_interval(secs => {TASKS} - n), CASE WHEN n <= {TASKS - 110} THEN now() END,
        CASE WHEN n % 10 = 0 THEN now() + make_interval(secs => n - {TASKS}) END
    FROM generate_series(1, {TASKS}) n""",
    # Of a live task: 40 are queued, 2 run, 2 wait out a back-off, 2 are blocked, the others wait.
    f"""
    INSERT INTO sub_tasks (id, parent_id, user_id, key, name, task_type, status, execution_order, tool, timeout_s,
        max_retries, shape, score, output_result, attempt, incarnation, started_at, finished_at, not_before, error)
    SELECT {SUBTASK.format("n")}, {TASK.format("1 + n / 200")}, '{USER}', 's' || n % 200, 's', 'TOOL', x.status,
        n % 200, 't', 60, 3, 's', n, CASE WHEN x.status = 'COMPLETED' THEN '1'::jsonb END, 1,
        CASE WHEN x.status = 'RUNNING' THEN '{LIFE}'::uuid END, now(),
        CASE WHEN x.status IN ('COMPLETED', 'BLOCKED') THEN now() END, CASE WHEN x.status = 'FAILED' THEN now() END,
        CASE WHEN x.status IN ('FAILED', 'BLOCKED') THEN '{{}}'::jsonb END
    FROM generate_series(0, {TASKS * 200 - 1}) n CROSS JOIN LATERAL (
        SELECT CASE WHEN n < {(TASKS - 100) * 200} THEN 'COMPLETED' WHEN n % 200 < 40 THEN 'QUEUED'
            WHEN n % 200 < 42 THEN 'RUNNING' WHEN n % 200 < 44 THEN 'FAILED' WHEN n % 200 < 46 THEN 'BLOCKED'
            ELSE 'READY' END AS status) x""",
    f"""
    INSERT INTO execution_logs (sub_task_id, attempt, task_id, status, start_time, end_time, duration, tokens_used)
    SELECT {SUBTASK.format("n")}, 1, {TASK.format("1 + n / 200")}, 'COMPLETED', x.at, x.at, 1, n % 2
    FROM generate_series(0, {TASKS * 200 - 1}, 3) n
    CROSS JOIN LATERAL (SELECT now() - make_interval(secs => ({TASKS * 200} - n) / 10.0) AS at) x""",
    f"""
    INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt)
    SELECT {TASK.format("1 + n / 200")}, 'subtask', 's' || n % 200, 'RUNNING', 'COMPLETED', 1
    FROM generate_series(0, {TASKS * 200 - 1}, 2) n""",
    f"""
    INSERT INTO log_lines (task_id, subtask, attempt, stream, level, message)
    SELECT {TASK.format("1 + n / 200")}, 's' || n % 200, 1, 'tool', 'INFO', 'm'
    FROM generate_series(0, {TASKS * 200 - 1}, 3) n""",
    # Of the BLOCKED ones, and of many that are done, there is a letter; most are settled.
    f"""
    INSERT INTO dead_letters (id, task_id, user_id, subtask, tool, code, fingerprint, error, attempts, status, at,
        updated_at, settled_at, mirrored)
    SELECT s.id, s.parent_id, CASE WHEN n % 50 = 0 THEN '{USER}' ELSE {TASK.format("n % 20 + 1")} END, s.key, 't', 'C',
        'f' || n % 97, '{{}}', 1, CASE WHEN s.status = 'BLOCKED' THEN 'open' ELSE 'retried' END,
        now() - make_interval(secs => n), now(),
        CASE WHEN s.status <> 'BLOCKED' THEN now() - make_interval(secs => n) END, n % 10000 <> 0
    FROM generate_series(0, {TASKS * 200 - 1}, 5) n JOIN sub_tasks s ON s.id = {SUBTASK.format("n")}""",
    "VACUUM (ANALYZE) tasks, sub_tasks, execution_logs, task_events, log_lines, dead_letters",
)


@dataclass
class Explained:
    """An engine, and the plan of every statement that it has run, of those inside functions, too."""

    engine: AsyncEngine
    plans: list[str] = field(default_factory=list)

    def hear(self, _connection: object, message: Any) -> None:
        if "Query Text:" in message.message:
            self.plans.append(message.message)


@pytest.fixture(scope="module")
def filled(database: DatabaseSettings) -> DatabaseSettings:
    """The database with a million subtasks in it."""
    quickly = ("SET synchronous_commit = off", "SET work_mem = '64MB'")
    asyncio.run(administer(database.url.get_secret_value(), *quickly, *FILL))
    return database


@pytest.fixture
async def explained(filled: DatabaseSettings) -> AsyncIterator[Explained]:
    """One connection that tells the plan of everything that it runs."""
    engine = make_engine(filled.primary_dsn(), pool_size=1, max_overflow=0, name="explain")
    explained = Explained(engine)
    async with driver(engine) as connection:
        await connection.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; "
            "SET auto_explain.log_level = notice; SET client_min_messages = notice"
        )
        connection.add_log_listener(explained.hear)
    yield explained
    async with driver(engine) as connection:
        connection.remove_log_listener(explained.hear)
    await engine.dispose()


def _task(n: int) -> UUID:
    return UUID(f"00000000-0000-7000-8000-{n:012x}")


def _subtask(n: int) -> str:
    return f"00000000-0000-7000-9000-{n:012x}"


def _hour_ago() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


LIVE = TASKS - 40
FIRST_OF_LIVE = (LIVE - 1) * 200
OPEN = LetterFilter(statuses=("open",))
RUNNING, QUEUED, DUE, BLOCKED = FIRST_OF_LIVE + 40, FIRST_OF_LIVE + 1, FIRST_OF_LIVE + 42, FIRST_OF_LIVE + 45
Asked = Callable[[AsyncEngine], Awaitable[Any]]

QUERIES: dict[str, tuple[Asked, set[str]]] = {
    "my tasks": (
        lambda e: reads.list_tasks(e, user_id=USER, wanted=reads.TaskFilter(), after=None, limit=50),
        {"ix_tasks_user_id_created_at"},
    ),
    "my tasks, the next page": (
        lambda e: reads.list_tasks(
            e, user_id=USER, wanted=reads.TaskFilter(), after=(datetime.now(UTC), _task(TASKS)), limit=50
        ),
        {"ix_tasks_user_id_created_at"},
    ),
    "my tasks of a status": (
        lambda e: reads.list_tasks(
            e, user_id=USER, wanted=reads.TaskFilter(statuses=("PROCESSING",)), after=None, limit=50
        ),
        {"ix_tasks_user_id_status_created_at"},
    ),
    "my tasks since a day": (
        lambda e: reads.list_tasks(
            e,
            user_id=USER,
            wanted=reads.TaskFilter(created_after=datetime.now(UTC) - timedelta(hours=1)),
            after=None,
            limit=50,
        ),
        {"ix_tasks_user_id_created_at"},
    ),
    "details": (
        lambda e: reads.task_details(e, _task(LIVE), USER, limit=1000),
        {"ix_sub_tasks_parent_id_execution_order", "tasks_pkey"},
    ),
    "a page of subtasks": (
        lambda e: reads.list_subtasks(e, _task(LIVE), after=100, limit=50),
        {"ix_sub_tasks_parent_id_execution_order", "pk_execution_logs"},
    ),
    "what is queued": (lambda e: leases.queued_page(e, after=None, limit=1000), {"ix_sub_tasks_queued"}),
    "what is queued, the next page": (
        lambda e: leases.queued_page(e, after=(float(QUEUED), UUID(_subtask(QUEUED))), limit=1000),
        {"ix_sub_tasks_queued"},
    ),
    "what is queued of some shapes": (
        lambda e: leases.queued_page(e, after=None, limit=1000, shapes=["a", "b"]),
        {"ix_sub_tasks_queued"},
    ),
    "how much is queued": (leases.queued_counts, {"ix_sub_tasks_queued"}),
    "leases of the dead": (incarnations.dead_with_leases, {"ix_sub_tasks_leased"}),
    "leases of a user": (lambda e: QuotaStore(e).leased([str(USER)]), {"ix_sub_tasks_leased"}),
    "what counts against a user": (
        lambda e: QuotaStore(e).standings([str(USER)], window_s=61),
        {"ix_execution_logs_start_time", "ix_execution_logs_tokens", "ix_sub_tasks_leased", "tasks_pkey"},
    ),
    "leases that we hold": (
        lambda e: leases.held_leases(e, [(_subtask(RUNNING), 1)], incarnation=LIFE, grace_s=1, silent_grace_s=1),
        {"sub_tasks_pkey"},
    ),
    "taking leases back": (lambda e: leases.recover(e, [LIFE], limit=10), {"ix_sub_tasks_leased", "sub_tasks_pkey"}),
    "back-offs that are over": (lambda e: leases.requeue_due(e, limit=10), {"ix_sub_tasks_backoff", "sub_tasks_pkey"}),
    "claims": (
        lambda e: attempts.claim(e, [(_subtask(QUEUED + n), True) for n in range(8)], incarnation=LIFE),
        {"sub_tasks_pkey", "tasks_pkey"},
    ),
    "deadlines": (task_moves.expired_tasks, {"ix_tasks_deadline"}),
    "tasks to split": (
        lambda e: task_moves.claim_tasks(e, incarnation=LIFE, dead=[LIFE], limit=4),
        {"ix_tasks_live"},
    ),
    "events after an id": (lambda e: events.after(e, _task(LIVE), 5, limit=100), {"ix_task_events_task_id_id"}),
    "a log after a place": (
        lambda e: logs.read_log(e, _task(LIVE), logs.LogFilter(), logs.Position(event_id=5, line_id=5), limit=100),
        {"ix_task_events_task_id_id", "ix_log_lines_task_id_id"},
    ),
    "the outputs that an input refers to": (
        lambda e: outputs(e, _blobs(e), str(_task(1)), ["s1", "s2"], within_s=20),
        {"uq_sub_tasks_parent_id_key"},
    ),
    "an output": (lambda e: results.output_bytes(e, _blobs(e), _task(1), "s1"), {"uq_sub_tasks_parent_id_key"}),
    "a result": (lambda e: results.result_bytes(e, _blobs(e), _task(1), USER), {"tasks_pkey"}),
    "why a queued subtask waits": (
        lambda e: waiting.look(e, _task(LIVE + 5), "s3"),
        {"uq_sub_tasks_parent_id_key", "ix_sub_tasks_queued", "ix_execution_logs_start_time"},
    ),
    "why another waits": (lambda e: waiting.look(e, _task(LIVE), "s60"), {"uq_sub_tasks_parent_id_key"}),
    "webhooks that are due": (lambda e: webhooks.take(e, limit=8, lease_s=10), {"ix_webhooks_due"}),
    "my letters": (
        lambda e: letters.list_letters(e, user_id=USER, wanted=LetterFilter(), after=None, limit=50),
        {"ix_dead_letters_user_id_at"},
    ),
    "my open letters": (
        lambda e: letters.list_letters(e, user_id=USER, wanted=OPEN, after=None, limit=50),
        {"ix_dead_letters_user_id_status_at"},
    ),
    "my open letters, the next page": (
        lambda e: letters.letter_places(
            e, user_id=USER, wanted=OPEN, after=(datetime.now(UTC), UUID(_subtask(5))), limit=1000
        ),
        {"ix_dead_letters_user_id_status_at"},
    ),
    "letters of a cause": (
        lambda e: letters.list_letters(e, user_id=USER, wanted=LetterFilter(fingerprint="f1"), after=None, limit=50),
        {"ix_dead_letters_user_id_fingerprint_at"},
    ),
    "causes": (
        lambda e: letters.group_letters(e, user_id=USER, wanted=OPEN, after=None, limit=50),
        {"ix_dead_letters_user_id_fingerprint_at"},
    ),
    "letters of a task": (
        lambda e: retries.open_of_task(e, _task(LIVE), before=datetime.now(UTC), limit=1000),
        {"ix_dead_letters_task_id"},
    ),
    "letters to forget": (
        lambda e: letters.forget_settled(e, older_than_s=900_000, limit=10),
        {"ix_dead_letters_settled", "dead_letters_pkey"},
    ),
    "letters to mirror": (
        lambda e: letters.mirror_letters(e, _told, limit=10),
        {"ix_dead_letters_unmirrored", "dead_letters_pkey"},
    ),
    "a retry": (
        lambda e: retries.retry_letters(e, [UUID(_subtask(BLOCKED))], reason="r"),
        {"sub_tasks_pkey", "tasks_pkey", "dead_letters_pkey"},
    ),
    "the end of a task": (
        lambda e: task_moves.end_task(e, _task(LIVE + 1), status="CANCELLED", error=None, reason="no more"),
        {"ix_sub_tasks_parent_id_execution_order"},
    ),
}


async def _told(_rows: object) -> None:
    pass


BIG = ("dead_letters", "tasks", "sub_tasks", "execution_logs", "task_events", "log_lines")


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.timeout(600)
async def test_a_query_goes_by_its_index(explained: Explained, query: str) -> None:
    ask, indexes = QUERIES[query]
    explained.plans.clear()
    await ask(explained.engine)
    plans = "\n".join(explained.plans)
    assert plans, "nothing was explained"
    scanned = re.findall(rf"Seq Scan on ({'|'.join(BIG)})\b", plans)
    used = set(re.findall(r"Index (?:Only )?Scan(?: Backward)? (?:using|on) (\w+)", plans))
    assert not scanned, f"{query} reads all of {scanned}:\n{plans}"
    assert indexes <= used, f"{query} should go by {indexes - used}:\n{plans}"
