"""Kill each kind of process of a running rayloom: ``python -m tests.chaos.kills --rounds 20 --seed 1``.

The kinds are those that the process table shows. Under load each is killed once, then two at a time for some rounds.
Every task must end COMPLETED, each result committed once; `rayloom up` must say something after every kill. The table
at the end shows how long no subtask completed, and how long the API was not ready. Exit code 0: all of it held.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Final

from rayloom.cluster.ray_watch import role_of
from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.chaos.driver import AWAY
from tests.integration.engine.chaos import graph
from tests.integration.instance import Instance, running
from tests.integration.processes import Process
from tests.integration.runs import Run
from tests.integration.waiting import wait_until

OPEN: Final = 2
"""So many tasks of 300 subtasks are under way at any time."""
CALM_S: Final = 3.0
RECOVERED_S: Final = 300.0
PATIENCE_S: Final = 600.0
SILENT_S: Final = 30.0
SOON_S: Final = 5.0
PROGRESS_S: Final = 45.0
"""The longest time without progress that is allowed (docs/reliability.md)."""
FOUND_S: Final = 30.0
"""How long a kind is looked for: workers are busy or idle, and sandboxes come and go."""
SUPERVISOR: Final = "rayloom up"
QUIET: Final = ("sandbox", "PostgreSQL session", "PostgreSQL autovacuum worker", SUPERVISOR)
"""A sandbox is part of its attempt, and an autovacuum worker of PostgreSQL may have ended by itself before it is hit.
The supervisor itself can say nothing; whoever supervises it starts it again."""


def kind_of(process: Process) -> str:
    """What a process is, for the table."""
    title = process.title
    if "rayloom.cluster.head" in title:
        return "driver of Ray"
    if "cluster.cli" in title and title.endswith(" up"):
        return SUPERVISOR
    if "bin/postgres -D" in title:
        return "PostgreSQL"
    if "redis-server" in title:
        return "Redis"
    if "bwrap" in title or "rayloom-sandbox" in title:
        return "sandbox"
    if module := re.match(r"ray-dashboard-(\w+)-", title):
        return f"dashboard module {module[1]}"
    if title.startswith("postgres: ") and "launcher" not in title and "autovacuum worker" in title:
        return "PostgreSQL autovacuum worker"
    role = role_of(title)
    if role.care == "postgres":
        return f"PostgreSQL {role.name}"
    if role.name == "worker":
        if "default_worker.py" in title or "setup_worker" in title:
            return "worker that starts"
        return "idle worker" if title.startswith("ray::IDLE") else "worker"
    return role.name


@dataclass(slots=True)
class Blow:
    """Processes killed at one instant, and what followed."""

    kinds: tuple[str, ...]
    at: float = field(default_factory=time.time)
    said: str = ""
    ready_s: float = 0.0
    pause_s: float = 0.0


def longest_pause(blow: Blow, ends: Sequence[float]) -> float:
    """The longest time without a completed subtask, of those that began within `SOON_S` of the blow."""
    pauses = (later - at for at, later in pairwise([blow.at, *ends]) if at <= blow.at + SOON_S)
    return max(pauses, default=0.0)


class Load:
    """Keeps tasks under way, and remembers them."""

    def __init__(self, instance: Instance, seed: int) -> None:
        self._instance, self._seed = instance, seed
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=OPEN)
        self._feeding: list[Future[None]] = []
        self.task_ids: list[str] = []

    def start(self) -> None:
        """Begin."""
        self._feeding = [self._pool.submit(self._feed, number) for number in range(OPEN)]

    def stop(self) -> None:
        """Submit no more; return when the last ones have ended. Raises what was not as it should be."""
        self._over.set()
        for feeding in self._feeding:
            feeding.result()

    def check(self) -> None:
        """Raise what has ended the load before its time."""
        for feeding in self._feeding:
            if feeding.done():
                feeding.result()

    def _feed(self, number: int) -> None:
        with Client(self._instance.url, self._instance.key, patience_s=PATIENCE_S, timeout_s=20) as client:
            count = 0
            while not self._over.is_set():
                seed = self._seed * 1_000_000 + number * 1_000 + count
                key = f"kills {seed}"
                body: JsonObject = {"plan": {"subtasks": [*graph(seed)]}, "title": key}
                task_id = client.submit(body, idempotency_key=key).task_id
                self.task_ids.append(task_id)
                wait_until(lambda: self._has_ended(task_id), within_s=PATIENCE_S, every_s=1)  # noqa: B023
                count += 1

    def _has_ended(self, task_id: str) -> bool:
        with suppress(*AWAY):
            rows = self._instance.sql("SELECT finished_at FROM tasks WHERE id = $1::uuid", task_id)
            return rows[0]["finished_at"] is not None
        return False


class Kills:
    """The kills and their aftermath."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._began_at = time.monotonic()
        self.blows: list[Blow] = []

    def tell(self, line: str) -> None:
        """One line for who looks on."""
        sys.stdout.write(f"[{time.monotonic() - self._began_at:6.1f} s] {line}\n")
        sys.stdout.flush()

    def kinds(self) -> dict[str, list[Process]]:
        """The processes that there are now, by their kind."""
        found: dict[str, list[Process]] = {}
        for each in sorted(self._instance.processes(), key=lambda each: each.born):
            if each.title:
                found.setdefault(kind_of(each), []).append(each)
        return found

    def kill(self, *kinds: str) -> bool:
        """`kill -9` of one process of each of these kinds at once, and wait until all is well. False: none is there."""
        there = self.kinds()
        # The youngest: after the supervisor's own death some of the old Ray live on for a moment.
        victims = [there[kind][-1] for kind in kinds if kind in there]
        if len(victims) < len(kinds):
            return False
        before = len(self._instance.said())
        blow = Blow(tuple(kinds))
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        if SUPERVISOR in kinds:
            self._instance.kill()
            before = 0
            self._instance.start()
        self._wait(blow, before)
        self.blows.append(blow)
        said = blow.said.strip().replace("\n", "\n" + " " * 12)
        self.tell(f"{' + '.join(kinds)}: first progress after {blow.pause_s:.1f} s, ready after {blow.ready_s:.1f} s")
        self.tell(f"   up said: {said or 'NOTHING'}")
        return True

    def _wait(self, blow: Blow, before: int) -> None:
        loud = not all(kind in QUIET for kind in blow.kinds)

        def said() -> str:
            return self._instance.said()[before:]

        if loud:
            with suppress(AssertionError):
                wait_until(said, within_s=SILENT_S, every_s=0.1)
        threading.Event().wait(CALM_S)
        wait_until(self._is_ready, within_s=RECOVERED_S, every_s=0.2, what=said)
        blow.ready_s = time.time() - blow.at
        wait_until(lambda: self._progressed(blow), within_s=RECOVERED_S, every_s=0.5, what=said)
        blow.said = said()
        blow.pause_s = longest_pause(blow, self._ends(blow.at))

    def _is_ready(self) -> bool:
        with suppress(*AWAY), self._instance.client() as client:
            return bool(client.get("/readyz")["status"] == "ready") and self._state() == "serving"
        return False

    def _state(self) -> str:
        return str(self._instance.run_state())

    def _ends(self, since: float) -> list[float]:
        """When subtasks have completed."""
        with suppress(*AWAY):
            rows = self._instance.sql(
                "SELECT extract(epoch FROM finished_at)::float8 AS at FROM sub_tasks "
                "WHERE status = 'COMPLETED' AND finished_at > to_timestamp($1) ORDER BY 1",
                since,
            )
            return [row["at"] for row in rows]
        return []

    def _progressed(self, blow: Blow) -> bool:
        """Whether something has completed after all was well again."""
        return bool(self._ends(blow.at + blow.ready_s))

    def table(self) -> None:
        """Print what became of each."""
        self.tell("| killed | first progress | API ready |")
        for blow in self.blows:
            self.tell(f"| {' + '.join(blow.kinds)} | {blow.pause_s:.1f} s | {blow.ready_s:.1f} s |")
        for name, values in (
            ("first progress", [blow.pause_s for blow in self.blows]),
            ("API ready", [blow.ready_s for blow in self.blows]),
        ):
            ordered = sorted(values)
            self.tell(f"{name}: median {ordered[len(ordered) // 2]:.1f} s, at most {ordered[-1]:.1f} s")


def run(rounds: int, seed: int, *, singles: bool, only: Sequence[str] = ()) -> int:
    """Kill, and judge; gives the exit code."""
    chance = random.Random(f"{seed}/kills")
    # Each of these failures is wanted, and more of them come in five minutes than a user would bear.
    with running(RAYLOOM_RAY_FAILURES="1000") as instance:
        kills, load = Kills(instance), Load(instance, seed)
        load.start()
        wait_until(lambda: kills._ends(0.0), what=instance.said)
        kinds = sorted(only or kills.kinds())
        faults: list[str] = []
        kills.tell(f"{len(kinds)} kinds of processes: {', '.join(kinds)}")
        for kind in kinds if singles else ():
            load.check()
            try:
                wait_until(partial(kills.kill, kind), within_s=FOUND_S, every_s=0.5)
            except AssertionError:
                faults.append(f"{kind}: there was none for {FOUND_S:.0f} s")
        done = 0
        while done < rounds:
            load.check()
            done += kills.kill(*chance.sample(kinds, 2))
        load.stop()
        kills.table()
        with instance.client() as client:
            for task_id in load.task_ids:
                run = Run(instance, client, task_id)
                run.completed(within_s=PATIENCE_S)
                run.expect_sound()
        kills.tell(f"{len(load.task_ids)} tasks of 300 subtasks are COMPLETED, each result committed once")
        for blow in kills.blows:
            kinds_killed = " + ".join(blow.kinds)
            if not blow.said and not all(kind in QUIET for kind in blow.kinds):
                faults.append(f"SILENT after {kinds_killed}")
            if blow.pause_s > PROGRESS_S:
                faults.append(f"no progress for {blow.pause_s:.1f} s after {kinds_killed}")
        for fault in faults:
            kills.tell(fault)
        return 1 if faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of two kinds at once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-singles", dest="singles", action="store_false", help="leave out one kind at a time")
    parser.add_argument("--only", nargs="*", default=(), help="these kinds instead of those of the process table")
    given = parser.parse_args(arguments)
    return run(given.rounds, given.seed, singles=given.singles, only=given.only)


if __name__ == "__main__":
    sys.exit(main())
