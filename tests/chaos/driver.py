"""Drives one run: submits its work over the whole time, has it looked after, and reads what has come of it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import redis

from rayloom.dag.errors import RayloomError
from rayloom.db.engine import DRIVER_ERRORS
from rayloom.serve.answers import Rejected, Unreachable
from rayloom.serve.client import Client
from tests.chaos.attendant import Attendant
from tests.chaos.case import TERMINAL
from tests.chaos.faults import ServerFaults
from tests.chaos.history import left_in_redis, look_for_leftovers, read_history, read_ledger
from tests.chaos.receiver import Receiver
from tests.chaos.record import Accepted, BackOff, Circumstances, History, Leftovers, Upset
from tests.chaos.rig import Rig
from tests.chaos.watch import Watch
from tests.chaos.works import Work, works
from tests.integration.waiting import wait_until

SUBMITTERS: Final = 4
SUBMITTING: Final = 64
DRAIN_S: Final = 600.0
PATIENCE_S: Final = DRAIN_S
SETTLE_S: Final = 120.0
AWAY: Final = (OSError, EOFError, *DRIVER_ERRORS, redis.RedisError, RayloomError)
"""What is raised while something that is asked is down, or has just been killed."""


class Driver:
    """One run, from its first submission to its history. ``span_s``: over so long the work is submitted."""

    def __init__(self, rig: Rig, receiver: Receiver, *, seed: int, subtasks: int, span_s: float) -> None:
        self._rig, self._receiver = rig, receiver
        self._seed, self._subtasks, self._span_s = seed, subtasks, span_s
        self._lock = threading.Lock()
        self._began_at = time.monotonic()
        self._over = threading.Event()
        self._keys: list[str] = []
        self.accepted: list[Accepted] = []
        self.faults = ServerFaults()
        self.watch = Watch(rig.instance, tell=self.tell, away=AWAY, faults=self.faults)
        self.attendant = Attendant(rig.instance, seed, accept=self._accept, away=AWAY, faults=self.faults)
        self.cancelled = self.again = 0

    def begin(self) -> None:
        """Its time begins now: all is there that work can be submitted to."""
        self._began_at = time.monotonic()

    def tell(self, line: str) -> None:
        """One line for who looks on."""
        sys.stdout.write(f"[{time.monotonic() - self._began_at:6.1f} s] {line}\n")
        sys.stdout.flush()

    def make_users(self) -> None:
        """The users who submit; all but one with a limit of their own, so that there are reservations to be settled.

        The limits are such that they hold back: two nodes run four attempts at once.
        """
        self._keys = [self._rig.instance.key]
        with self._rig.instance.client() as client, self._rig.instance.http() as http:
            for number in range(SUBMITTERS - 1):
                made = client.post("/api/v1/keys", {"user": f"chaos {number}", "role": "user"})
                answer = http.put(f"/quotas/{made['user_id']}", json={"max_concurrent": 2 + number})
                assert answer.status_code == 200, answer.text
                self._keys.append(str(made["key"]))

    def __enter__(self) -> Self:
        """Begin to look after what will be submitted, and to watch."""
        self.attendant.start()
        self.watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        try:
            self.watch.stop()
        finally:
            self.attendant.stop()

    def submit_all(self) -> None:
        """Submit every task in its time; return when the last one is answered 202."""
        todo = list(works(self._seed, self._subtasks, outside=self._receiver.url))
        self._submit_over(todo, self._span_s)

    def submit_at_once(self, subtasks: int) -> None:
        """Submit so much more without waiting; return when it is accepted."""
        self._submit_over(list(works(self._seed, subtasks, outside=self._receiver.url, name="more")), 0.0)

    def _submit_over(self, todo: Sequence[Work], span_s: float) -> None:
        with ThreadPoolExecutor(max_workers=SUBMITTING) as pool:
            waiting = []
            began_at = time.monotonic()
            try:
                for number, work in enumerate(todo):
                    self._pause(began_at + span_s * number / len(todo) - time.monotonic())
                    if self._over.is_set():
                        raise Unreachable("the run is over")
                    waiting.append(pool.submit(self._submit, work, self._keys[number % len(self._keys)]))
                for each in waiting:
                    each.result()
            except BaseException:
                # Who still submits, or waits to, must not go on for minutes before anybody hears of it.
                self._over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _submit(self, work: Work, key: str) -> None:
        again: list[str] = []
        with Client(
            self._rig.instance.url, key, patience_s=self._patience_s(), timeout_s=10, pause=self._pause_patiently,
            transport=self.faults.transport(),
        ) as client:  # fmt: skip
            task_id = client.submit(work.body, idempotency_key=work.title).task_id
            self.attendant.look_after(work, task_id, key)
            ends = work.ends
            if work.cancel_after_s is not None:
                self._pause(work.cancel_after_s)
                try:
                    client.cancel(task_id)
                    ends = frozenset({"CANCELLED"})
                except Rejected:
                    ends = frozenset({"COMPLETED"})
            if work.again_after_s is not None:
                self._pause(work.again_after_s)
                again.append(client.submit(work.body, idempotency_key=work.title).task_id)
        self._accept(
            Accepted(task_id=task_id, title=work.title, ends=ends, result=work.result, again=tuple(again)),
            cancelled=ends == {"CANCELLED"} and work.kind == "cancelled",
        )

    def _accept(self, accepted: Accepted, *, cancelled: bool = False) -> None:
        with self._lock:
            self.accepted.append(accepted)
            self.cancelled += cancelled
            self.again += len(accepted.again)

    def _pause(self, seconds: float) -> None:
        self._over.wait(max(0.0, seconds))

    def _pause_patiently(self, seconds: float) -> None:
        """Between two tries. Raises Unreachable when the run is over: who is left then must not try on."""
        if self._over.wait(seconds):
            raise Unreachable("the run is over")

    def _patience_s(self) -> float:
        """How long an API that is away is waited for: to the end of the submissions, and then as long as `drain` does.

        An outage is told, and is none of the promises; what was killed may need minutes on a machine that is busy.
        """
        return max(0.0, self._began_at + self._span_s - time.monotonic()) + PATIENCE_S

    # -- its end -------------------------------------------------------------------------------------------------------

    def open_tasks(self) -> int | None:
        """How many tasks have not ended; None while nobody can say."""
        try:
            (row,) = self._rig.instance.sql(
                "SELECT count(*) AS n FROM tasks WHERE status <> ALL ($1::text[])", sorted(TERMINAL)
            )
        except AWAY:
            return None
        return int(row["n"])

    def drain(self) -> float:
        """Wait until every task has ended and been looked after, bounded; answers the seconds it took.

        What is left then is the checker's. Raises what went wrong with those who looked after them.
        """
        began_at = time.monotonic()

        def left() -> object:
            return self.open_tasks(), self.attendant.open

        try:
            # Who looks after them makes open tasks of ended ones: ask in this order.
            wait_until(
                lambda: not self.attendant.open and self.open_tasks() == 0, within_s=DRAIN_S, every_s=0.5, what=left
            )
        except AssertionError as error:
            self.attendant.stop()
            self.tell(f"not drained: {error}")
        drained_s = time.monotonic() - began_at
        self.attendant.stop()
        return drained_s

    def leftovers(self) -> Leftovers:
        """What is left behind, as soon as that is nothing, or after a while."""
        seen = Leftovers(in_flight=-1)

        def clean() -> bool:
            nonlocal seen
            try:
                with self._rig.instance.client() as client:
                    checks = client.get("/readyz")["checks"]
                assert isinstance(checks, dict)
                seen = look_for_leftovers(self._rig.instance, checks, self._redis_ids())
            except AWAY:
                return False
            return seen == Leftovers()

        try:
            wait_until(clean, within_s=SETTLE_S, every_s=0.5, what=lambda: seen)
        except AssertionError as error:
            self.tell(f"not clean: {error}")
        return seen

    def _redis_ids(self) -> list[str]:
        with redis.Redis.from_url(self._rig.instance.redis_url, socket_timeout=5, decode_responses=True) as client:
            keys = {key: client.ttl(key) != -1 for key in client.scan_iter("*")}
            return left_in_redis(keys, lambda key: client.zrange(key, 0, -1))

    def history(self, leftovers: Leftovers, upsets: Sequence[Upset]) -> History:
        """All of it."""
        settings = self._rig.instance.environ
        return read_history(
            self._rig.instance.sql,
            self.accepted,
            read_ledger(self._rig.ledger),
            leftovers,
            calls=self._receiver.outside.calls,
            heard=self._receiver.outside.heard,
            circumstances=Circumstances(
                back_off=BackOff(
                    initial_s=float(settings["RAYLOOM_RETRY_INITIAL_S"]), max_s=float(settings["RAYLOOM_RETRY_MAX_S"])
                ),
                breakers=frozenset(self.watch.opened),
                upsets=upsets,
                faults=self.faults.seen,
            ),
        )
