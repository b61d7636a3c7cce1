"""Tasks that a test runs on an instance, and what must hold of every one of them afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rayloom.dag.states import SUBTASK_MOVES, TASK_MOVES, legal_pairs
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import TERMINAL, Client
from tests.integration.instance import Instance
from tests.integration.waiting import GENEROUS_S, wait_until

LEGAL = {"subtask": set(legal_pairs(SUBTASK_MOVES)), "task": set(legal_pairs(TASK_MOVES))}


def step(id_: str, tool: str, input_: JsonObject, *after: str, **fields: Json) -> JsonObject:
    """A subtask that runs a tool after others."""
    return {"id": id_, "type": "TOOL", "tool": tool, "input": input_, "depends_on": list(after), **fields}


def echo(id_: str, value: Json, *after: str, **fields: Json) -> JsonObject:
    """A subtask that gives back a value."""
    return step(id_, "core.echo", {"value": value}, *after, **fields)


def sleep(id_: str, seconds: float, *after: str, **fields: Json) -> JsonObject:
    """A subtask that waits."""
    return step(id_, "core.sleep", {"seconds": seconds}, *after, **fields)


def python(id_: str, code: str, *after: str, **fields: Json) -> JsonObject:
    """A subtask that runs Python in the sandbox."""
    return {**step(id_, "python.run", {"code": code}, *after, **fields), "type": "CODE_GEN"}


@dataclass(frozen=True, slots=True)
class Run:
    """A task that was submitted."""

    instance: Instance
    client: Client
    task_id: str

    @classmethod
    def submit(cls, instance: Instance, client: Client, subtasks: Sequence[JsonObject], **fields: Json) -> Run:
        """Submit a plan."""
        plan: JsonObject = {"subtasks": list(subtasks)}
        return cls(instance, client, client.submit({"plan": plan, **fields}).task_id)

    def details(self) -> Any:
        """The task as the API shows it."""
        return self.client.task(self.task_id)

    def status(self) -> str:
        """The task's status."""
        return str(self.details()["status"])

    def progress(self) -> Any:
        """How many subtasks are in which status."""
        return self.details()["progress"]

    def finished(self, *, within_s: float = GENEROUS_S) -> Any:
        """The task, as soon as it has ended."""

        def ended() -> Any:
            task = self.details()
            return task if task["status"] in TERMINAL else None

        return wait_until(ended, within_s=within_s, every_s=0.2, what=lambda: self.details()["progress"])

    def completed(self, *, within_s: float = GENEROUS_S) -> Any:
        """The task, which must have ended well."""
        task = self.finished(within_s=within_s)
        assert task["status"] == "COMPLETED", (task["status"], task["error"], task["progress"])
        return task

    def subtasks(self) -> dict[str, Any]:
        """Every subtask as lists show it, by its id."""
        pages = self.client.pages(f"/api/v1/tasks/{self.task_id}/subtasks", {"limit": 200})
        return {item["id"]: item for page in pages for item in _items(page)}

    def subtask(self, id_: str) -> Any:
        """One subtask with its attempts."""
        return self.client.subtask(self.task_id, id_)

    def until(self, id_: str, *statuses: str) -> Any:
        """One subtask, as soon as it has one of these statuses."""

        def there() -> Any:
            found = self.subtask(id_)
            return found if found["status"] in statuses else None

        return wait_until(there, what=lambda: self.subtask(id_))

    def until_executing(self, id_: str) -> Any:
        """One subtask, as soon as its tool runs."""

        def there() -> Any:
            found = self.subtask(id_)
            return found if found["status"] == "RUNNING" and found["phase"] == "EXECUTING" else None

        return wait_until(there, what=lambda: self.subtask(id_))

    # -- what must hold ------------------------------------------------------------------------------------------------

    def expect_sound(self) -> None:
        """No illegal transition, every result committed once, no dependency violated. Of a task that has ended."""
        self.expect_legal_moves()
        self.expect_committed_once()
        expect_order(self.subtasks())

    def expect_legal_moves(self) -> None:
        """Every event goes on where the last one of the same thing ended, by a transition that exists.

        What a fork takes over comes from nowhere, and is COMPLETED.
        """
        rows = self.instance.sql(
            "SELECT kind, subtask, from_status, to_status, phase FROM task_events "
            "WHERE task_id = $1::uuid AND kind IN ('task', 'subtask') ORDER BY id",
            self.task_id,
        )
        assert rows
        at: dict[tuple[str, str | None], str | None] = {}
        for row in rows:
            who = (row["kind"], row["subtask"])
            source, target = row["from_status"], row["to_status"]
            is_taken = row["kind"] == "subtask" and who not in at and (source, target) == (None, "COMPLETED")
            first = "PENDING" if row["kind"] == "subtask" and not is_taken else None
            assert source == at.get(who, first), (who, at.get(who), dict(row))
            if source == target:
                assert row["phase"], dict(row)
            elif source is not None:
                assert f"{source}>{target}" in LEGAL[row["kind"]], dict(row)
            at[who] = target

    def expect_committed_once(self) -> None:
        """A subtask that is COMPLETED has exactly one attempt that is, its last one; any other has none.

        One that a fork has taken over was never begun here.
        """
        rows = self.instance.sql(
            "SELECT s.key, s.status, s.attempt, "
            "array_agg(e.attempt ORDER BY e.attempt) FILTER (WHERE e.status = 'COMPLETED') AS done "
            "FROM sub_tasks s LEFT JOIN execution_logs e ON e.sub_task_id = s.id "
            "WHERE s.parent_id = $1::uuid GROUP BY s.id",
            self.task_id,
        )
        assert rows
        wrong = [dict(row) for row in rows if (row["done"] or []) != ([row["attempt"]] if _is_done(row) else [])]
        assert not wrong, wrong[:5]

    def attempts(self) -> Counter[int]:
        """How many subtasks were begun how often."""
        rows = self.instance.sql(
            "SELECT count(e.attempt) AS n FROM sub_tasks s LEFT JOIN execution_logs e ON e.sub_task_id = s.id "
            "WHERE s.parent_id = $1::uuid GROUP BY s.id",
            self.task_id,
        )
        return Counter(row["n"] for row in rows)


def _is_done(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] == "COMPLETED" and row["attempt"])


def _items(page: JsonObject) -> list[Any]:
    items = page["items"]
    assert isinstance(items, list)
    return items


def expect_order(subtasks: Mapping[str, Any]) -> None:
    """Nothing was started before everything that it depends on had been finished."""
    early = [
        (dependency, id_)
        for id_, subtask in subtasks.items()
        for dependency in subtask["depends_on"]
        if subtask["started_at"] is not None and not _before(subtasks[dependency], subtask)
    ]
    assert not early, early[:5]


def _before(dependency: Any, subtask: Any) -> bool:
    return bool(
        dependency["finished_at"] is not None
        and datetime.fromisoformat(dependency["finished_at"]) <= datetime.fromisoformat(subtask["started_at"])
    )
