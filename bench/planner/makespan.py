"""How long plans take with each call simulated to take a second, beside the same calls one after the other.

The gold graphs of the records in which anything can run side by side go through a whole rayloom. What a record's tools
would do is a call over HTTP (`slow`), reading or writing as the tool would, or a question to a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from threading import Event
from typing import Any, Final

from bench.planner.records import GoldNode, Record, records
from bench.planner.slow import SlowWorld
from bench.server import Server
from rayloom.dag import graph
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import TERMINAL, Client

CALL_S: Final = 1.0
_WAIT_S: Final = 600
_THOUGHT: Final = ("think", "code")
WRITES: Final = frozenset(
    {
        "alerts.silence", "calendar.create", "chart.plot", "chat.post", "ci.run", "deploy.release",
        "docs.create", "files.write", "git.clone", "image.generate", "issues.create", "k8s.rollout",
        "k8s.scale", "ledger.post", "mail.send", "sheet.append", "slides.create", "tests.run", "tickets.reply",
        "video.clip",
    }
)  # fmt: skip
"""Of the records' tools those that do more than read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One task that has run. ``calls``: its subtasks, each of one call; ``longest``: of them in a row at least.

    ``took_s``: from its submission to its end. ``planned_s``: until the last of its plan was written, and ``lead_s``
    how long before that its first subtask was started; both 0 where the plan was given.
    """

    record: str
    calls: int
    longest: int
    took_s: float
    planned_s: float = 0.0
    lead_s: float = 0.0

    @property
    def sequential_s(self) -> float:
        """Its plan, and then its calls one after the other, by themselves."""
        return self.planned_s + self.calls * CALL_S

    @property
    def ratio(self) -> float:
        """How many times longer that takes."""
        return self.sequential_s / self.took_s

    @property
    def possible(self) -> float:
        """What that would be if nothing but the calls took any time, and all began as soon as it could."""
        return self.calls / self.longest


def parallel() -> list[Record]:
    """The records in which at least two subtasks can run side by side."""
    return [record for record in records().values() if graph.width(_levels(record)) >= 2]


def given_plan(record: Record, url: str) -> JsonObject:
    """Its gold graph as a plan of calls."""
    subtasks: list[Json] = [_subtask(node, _needs(record, node), record.id, url) for node in _ordered(record)]
    return {"subtasks": subtasks}


def written_plan(record: Record, url: str) -> str:
    """The same as a model writes it."""
    steps = []
    for node in _ordered(record):
        subtask, is_thought = _subtask(node, [], record.id, url), node.tool in _THOUGHT
        steps.append(
            {
                "id": node.id, "tool": "think" if is_thought else subtask["tool"], "input": subtask["input"],
                "do": " ".join(node.words) or "think" if is_thought else "", "after": _needs(record, node),
            }
        )  # fmt: skip
    return json.dumps({"intent": record.prompt[:60], "subtasks": steps}, ensure_ascii=False, separators=(",", ":"))


def measure(chosen: Sequence[Record]) -> dict[str, list[Timed]]:
    """Plans that are given, one task at a time and all at once; and prompts, with early starts and without."""
    plans: dict[str, str] = {}
    with SlowWorld(plans, call_s=CALL_S) as world:
        plans.update({f"<{record.id}>": written_plan(record, world.url) for record in chosen})
        found: dict[str, list[Timed]] = {}
        with _rayloom(world, early=True) as client:
            _warm_up(client, chosen, world)
            found["given"] = [_run(client, record, {"plan": given_plan(record, world.url)}) for record in chosen]
            found["together"] = _together(client, chosen, world)
            found["prompt"] = [_prompted(client, record, world) for record in chosen]
        with _rayloom(world, early=False) as client:
            _warm_up(client, chosen, world)
            found["prompt, early start off"] = [_prompted(client, record, world) for record in chosen]
    return found


def table(found: dict[str, list[Timed]]) -> str:
    """The figures, as Markdown."""
    rows = [
        "| tasks | count | calls | took: median s | one after the other: median s | ratio: median (least to most) | "
        "possible: median | ratio 2 or more, of those that allow it | "
        "first start before the last token: median s (least) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, timed in found.items():
        ratios = sorted(each.ratio for each in timed)
        leads = [each.lead_s for each in timed if each.planned_s]
        lead = f"{median(leads):.1f} ({min(leads):.1f})" if leads else ""
        if name == "together":
            # They share one clock: what is compared is all of them.
            took_s, in_a_row_s = max(each.took_s for each in timed), sum(each.sequential_s for each in timed)
            cells = f"{took_s:.1f} (all) | {in_a_row_s:.1f} (all) | {in_a_row_s / took_s:.2f} | | "
        else:
            cells = (
                f"{median(each.took_s for each in timed):.1f} | {median(each.sequential_s for each in timed):.1f} | "
                f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | "
                f"{median(each.possible for each in timed):.2f} | "
                f"{sum(ratio >= 2 for ratio in ratios)} of {sum(each.possible >= 2 for each in timed)}"
            )
        rows.append(f"| {name} | {len(timed)} | {sum(each.calls for each in timed)} | {cells} | {lead} |")
    return "\n".join(rows)


@contextmanager
def _rayloom(world: SlowWorld, *, early: bool) -> Iterator[Client]:
    settings = {
        "RAYLOOM_LLM_BASE_URL": f"{world.url}/v1",
        "RAYLOOM_LLM_MODEL": "slow",
        "RAYLOOM_ALLOW_ADDRESSES": "127.0.0.1/32",
        "RAYLOOM_EARLY_START": "1" if early else "0",
    }
    server = Server(settings)
    try:
        with server.running(), Client(server.url, server.api_key, patience_s=60) as client:
            yield client
    finally:
        server.remove()


def _warm_up(client: Client, chosen: Sequence[Record], world: SlowWorld) -> None:
    """Until the workers are there that the widest of them needs."""
    for _ in range(3):
        _together(client, sorted(chosen, key=lambda record: len(record.nodes))[-3:], world)


def _together(client: Client, chosen: Sequence[Record], world: SlowWorld) -> list[Timed]:
    bodies: list[JsonObject] = [{"plan": given_plan(record, world.url)} for record in chosen]
    began_at = None
    timed = []
    tasks = [client.submit(body).task_id for body in bodies]
    for record, task_id in zip(chosen, tasks, strict=True):
        task = _ended(client, task_id)
        began_at = began_at or _at(task["created_at"])
        timed.append(_timed(record, (_at(task["finished_at"]) - began_at).total_seconds()))
    return timed


def _prompted(client: Client, record: Record, world: SlowWorld) -> Timed:
    name = f"<{record.id}>"
    task_id = client.submit({"prompt": f"{name} {record.prompt}"}).task_id
    task = _ended(client, task_id)
    last_token_at = datetime.fromtimestamp(world.last_token_at[name]).astimezone()
    first_at = min(_at(subtask["started_at"]) for subtask in task["subtasks"])
    return _timed(
        record,
        (_at(task["finished_at"]) - _at(task["created_at"])).total_seconds(),
        planned_s=(last_token_at - _at(task["created_at"])).total_seconds(),
        lead_s=(last_token_at - first_at).total_seconds(),
    )


def _run(client: Client, record: Record, body: JsonObject) -> Timed:
    task = _ended(client, client.submit(body).task_id)
    return _timed(record, (_at(task["finished_at"]) - _at(task["created_at"])).total_seconds())


def _timed(record: Record, took_s: float, **more: float) -> Timed:
    return Timed(record=record.id, calls=len(record.nodes), longest=len(_levels(record)), took_s=took_s, **more)


def _ended(client: Client, task_id: str) -> Any:
    for _ in range(int(_WAIT_S / 0.1)):
        task: Any = client.task(task_id)
        if task["status"] in TERMINAL:
            assert task["status"] == "COMPLETED", (task["status"], task["error"])
            return task
        Event().wait(0.1)
    raise TimeoutError(f"task {task_id} has not ended after {_WAIT_S} s")


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _subtask(node: GoldNode, after: list[str], record: str, url: str) -> JsonObject:
    after_: list[Json] = [*after]
    own: JsonObject = {"id": node.id, "depends_on": after_}
    if node.tool in _THOUGHT:
        return own | {"type": "REASONING", "instruction": " ".join(node.words) or "think", "input": {}}
    call: JsonObject = {"url": f"{url}/call/{record}/{node.id}"}
    if node.tool in WRITES:
        return own | {"type": "API_CALL", "tool": "http.request", "input": {**call, "method": "POST", "json": {}}}
    return own | {"type": "API_CALL", "tool": "http.fetch_text", "input": call}


def _needs(record: Record, node: GoldNode) -> list[str]:
    return sorted(needed for needed, needing in record.edges if needing == node.id)


def _levels(record: Record) -> list[list[int]]:
    place = {node.id: ordinal for ordinal, node in enumerate(record.nodes)}
    return graph.levels([tuple(place[name] for name in _needs(record, node)) for node in record.nodes])


def _ordered(record: Record) -> list[GoldNode]:
    """As a model writes them: nothing before what it needs."""
    return [record.nodes[ordinal] for level in _levels(record) for ordinal in level]
