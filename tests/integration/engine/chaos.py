"""A run of 300 subtasks to kill things in, and the things."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import redis

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.runs import Run, sleep
from tests.integration.waiting import wait_until

SUBTASKS = 300
Kill = Callable[[Instance], None]


def graph(seed: int) -> list[JsonObject]:
    """Twenty sources, then each after three of the sixty before it."""
    chance = random.Random(seed)
    return [
        sleep(f"n{i}", 0.03, *sorted({f"n{chance.randrange(max(0, i - 60), i)}" for _ in range(3)}) if i >= 20 else ())
        for i in range(SUBTASKS)
    ]


def begin(instance: Instance, client: Client, seed: int) -> Run:
    """Start the run, and come back in the middle of it."""
    run = Run.submit(instance, client, graph(seed), title=f"drill {seed}")
    wait_until(lambda: run.progress()["completed"] >= SUBTASKS // 5, what=run.progress)
    assert run.status() == "PROCESSING", "it was over before anything could be killed"
    return run


def expect_whole(run: Run) -> None:
    """It ends well, by itself, and nothing is lost, doubled or out of order."""
    task = run.completed()
    assert task["progress"]["completed"] == SUBTASKS
    run.expect_sound()


def expect_nothing_run_twice(run: Run) -> None:
    """Whatever was away, no attempt was given up that a worker had begun."""
    rows = run.instance.sql(
        "SELECT s.key, e.attempt, e.error_message FROM sub_tasks s JOIN execution_logs e ON e.sub_task_id = s.id "
        "WHERE s.parent_id = $1::uuid AND e.status <> 'COMPLETED' AND e.error_message NOT LIKE '%never started%'",
        run.task_id,
    )
    assert not rows, [dict(row) for row in rows[:3]]


def process_called(title: str) -> Kill:
    """`kill -9` of the process with this title; another one must take its place."""

    def kill(instance: Instance) -> None:
        victim = instance.process(title)
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: not victim.is_alive)

        def replaced() -> bool:
            return any(each.born > victim.born for each in instance.processes(title))

        wait_until(replaced, what=lambda: f"no new {title}")

    return kill


def workers(instance: Instance) -> None:
    """`kill -9` of two workers that run an attempt."""

    def busy() -> list[int] | None:
        found = [each.pid for each in instance.processes() if each.is_at_work]
        return found[:2] if len(found) >= 2 else None

    for pid in wait_until(busy, every_s=0.01):
        os.kill(pid, signal.SIGKILL)


def postgres(instance: Instance) -> None:
    """`kill -9` of PostgreSQL; of a server that is not ours, all its connections of this database."""
    if instance.services is None:
        process_called("bin/postgres -D")(instance)
        return
    instance.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
    )


def cache(instance: Instance) -> None:
    """`kill -9` of Redis; of a server that is not ours, all its connections."""
    if instance.services is None:
        process_called("redis-server")(instance)
        return
    with redis.Redis.from_url(instance.redis_url) as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def flush_cache(instance: Instance) -> None:
    """Everything in Redis is gone."""
    with redis.Redis.from_url(instance.redis_url) as client:
        client.flushdb()
