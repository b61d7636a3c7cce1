"""The people of a run: they approve and reject, retry what has failed, and fork what has ended, as the work wants."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx2

from rayloom.dag.errors import Transient
from rayloom.dag.values import Json
from rayloom.serve.answers import Rejected, refusal
from rayloom.serve.client import Client
from tests.chaos.case import TERMINAL
from tests.chaos.faults import ServerFaults
from tests.chaos.record import Accepted
from tests.chaos.works import BULK, Decision, Fork, Mend, Work
from tests.integration.instance import Instance

LOOK_S: Final = 0.5
HANDS: Final = 8
HASTE: Final = 0.5
"""The share of looks at which somebody who could do something does it."""
_AWAY: Final = (Rejected, Transient, httpx2.RequestError)
"""Nobody answers, or the matter has moved on: the next look tells which."""
_Act = Callable[[], str]


@dataclass(slots=True, kw_only=True)
class _Errand:
    """One task to be looked after. ``key``: its user's."""

    task_id: str
    key: str
    title: str
    chosen: str
    decision: Decision | None = None
    mend: Mend | None = None
    fork: Fork | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """How a task stands, and which of its subtasks wait for somebody to say yes."""

    status: str
    awaiting: tuple[str, ...] = field(default=())


class Attendant:
    """See the module. It looks into the database, and acts by REST; what was answered or lost, it looks again.

    ``accept`` is told of each fork; ``away``: what the database raises while it is down; ``faults`` hears the answers.
    """

    def __init__(
        self,
        instance: Instance,
        seed: int,
        *,
        accept: Callable[[Accepted], None],
        away: tuple[type[BaseException], ...],
        faults: ServerFaults,
    ) -> None:
        self._instance, self._accept, self._away, self._faults = instance, accept, away, faults
        self._chance = random.Random(f"{seed}/attendant")
        self._errands: dict[str, _Errand] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attendant")
        self._working: Future[None] | None = None
        self.done: Counter[str] = Counter()
        """How often each thing was done that had an effect."""

    def start(self) -> None:
        """Begin."""
        self._working = self._pool.submit(self._work)

    def stop(self) -> None:
        """Do no more, whatever is left. Raises what went wrong meanwhile."""
        self._over.set()
        self._pool.shutdown()
        if self._working is not None:
            self._working.result()

    def look_after(self, work: Work, task_id: str, key: str) -> None:
        """Take on a task, if there is something to do about it."""
        if work.decision is None and work.mend is None and work.fork is None:
            return
        self._take(
            _Errand(
                task_id=task_id, key=key, title=work.title, chosen=work.chosen, decision=work.decision,
                mend=work.mend, fork=work.fork,
            )
        )  # fmt: skip

    @property
    def open(self) -> tuple[str, ...]:
        """The tasks that it still looks after. Raises what has ended its work before its time."""
        if self._working is not None and self._working.done() and not self._over.is_set():
            self._working.result()
        with self._lock:
            return tuple(self._errands)

    def _take(self, errand: _Errand) -> None:
        with self._lock:
            self._errands[errand.task_id] = errand

    def _work(self) -> None:
        with ThreadPoolExecutor(max_workers=HANDS) as hands:
            while not self._over.wait(LOOK_S):
                with self._lock:
                    errands = dict(self._errands)
                acts: list[_Act] = []
                for task_id, seen in self._look(list(errands)).items():
                    errand = errands[task_id]
                    act = self._next(errand, seen)
                    if act is not None and self._chance.random() < HASTE:
                        acts.append(act)
                    if act is None and seen.status in TERMINAL:
                        with self._lock:
                            del self._errands[task_id]
                self.done.update(what for what in hands.map(_attempt, acts) if what)

    def _look(self, ids: Sequence[str]) -> Mapping[str, _Seen]:
        if not ids:
            return {}
        try:
            rows = self._instance.sql(
                "SELECT t.id::text, t.status, coalesce((SELECT array_agg(s.key) FROM sub_tasks s WHERE "
                "s.parent_id = t.id AND s.status = 'AWAITING_APPROVAL'), '{}') AS awaiting "
                "FROM tasks t WHERE t.id = ANY ($1::uuid[])",
                ids,
            )
        except self._away:
            return {}
        return {row["id"]: _Seen(status=row["status"], awaiting=tuple(row["awaiting"])) for row in rows}

    def _next(self, errand: _Errand, seen: _Seen) -> _Act | None:
        """What is to be done about a task as it stands; None while, or when, there is nothing."""
        decision = errand.decision
        if decision is not None and (
            decision.subtask in seen.awaiting if decision.subtask is not None else seen.status == "READY"
        ):
            return partial(self._decide, errand, decision)
        if errand.mend is not None and seen.status == "FAILED":
            return partial(self._retry, errand, errand.mend)
        if errand.fork is not None and seen.status in TERMINAL:
            return partial(self._fork, errand, errand.fork)
        return None

    def _decide(self, errand: _Errand, decision: Decision) -> str:
        with self._client(errand) as client:
            if decision.approves:
                client.approve(errand.task_id, subtask=decision.subtask)
                return "approved"
            client.reject(errand.task_id, "the drill says no", subtask=decision.subtask)
            return "rejected"

    def _retry(self, errand: _Errand, mend: Mend) -> str:
        with self._client(errand) as client:
            path = f"/api/v1/tasks/{errand.task_id}/retry"
            match mend:
                case "task":
                    client.post(path, {})
                case "subtask":
                    client.post(path, {"subtasks": [errand.chosen]})
                case "letter":
                    client.post(f"/api/v1/dead-letters/{_letter(client, errand)['id']}/retry", {})
                case "input":
                    letter = _letter(client, errand)
                    input_: dict[str, Json] = {**letter["input"], "fails": 0}
                    client.post(f"/api/v1/dead-letters/{letter['id']}/retry", {"input": input_})
                case "bulk":
                    client.post("/api/v1/dead-letters/retry", {"filter": {"labels": dict(BULK)}})
        return f"retried by {mend}"

    def _fork(self, errand: _Errand, fork: Fork) -> str:
        # Sent again with the same key until it is answered: it must stay one fork.
        body: dict[str, Json] = {"from": [fork.anew], "inputs": fork.inputs}
        headers = {"Idempotency-Key": f"{errand.title} forked"}
        with self._instance.http(errand.key) as http:
            answer = http.post(f"/tasks/{errand.task_id}/fork", json=body, headers=headers, timeout=10)
        self._faults.hear(answer)
        if answer.status_code != 202:
            error = refusal(answer)
            # Nothing speaks against it; and what comes while the API is away is no refusal of ours.
            assert not isinstance(error, Rejected), answer.text
            raise error
        task_id = str(answer.json()["task_id"])
        errand.fork = None
        self._accept(
            Accepted(
                task_id=task_id, title=errand.title, ends=frozenset({"COMPLETED"}), result=fork.result,
                fork_of=errand.task_id, anew=(fork.anew,),
            )
        )  # fmt: skip
        if fork.decision is not None:
            self._take(
                _Errand(
                    task_id=task_id, key=errand.key, title=errand.title, chosen=errand.chosen, decision=fork.decision
                )
            )
        return "forked"

    def _client(self, errand: _Errand) -> Client:
        return Client(self._instance.url, errand.key, timeout_s=10, transport=self._faults.transport())


def _letter(client: Client, errand: _Errand) -> Any:
    items: Any = client.get("/api/v1/dead-letters", {"task_id": errand.task_id})["items"]
    if not items:
        raise Transient("NO_LETTER", "somebody else was faster")
    return items[0]


def _attempt(act: _Act) -> str:
    with suppress(*_AWAY):
        return act()
    return ""
