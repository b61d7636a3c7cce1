"""Plans that begin while a model still writes them, in a real rayloom: before the last token, and once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.engine import chaos
from tests.integration.engine.test_cancel import WITHIN_S, cancel
from tests.integration.instance import Instance
from tests.integration.models.endpoint import Asked, Endpoint, Reply
from tests.integration.models.rig import Rig
from tests.integration.runs import Run
from tests.integration.waiting import wait_until

READ: JsonObject = {"id": "read", "tool": "core.echo", "input": {"value": 7}, "do": "", "after": []}
NEXT: JsonObject = {"id": "next", "tool": "core.echo", "input": {"value": {"$ref": "read.output"}}, "after": ["read"]}
SLOW: JsonObject = {"id": "slow", "tool": "core.sleep", "input": {"seconds": 600}, "after": []}
WRITE: JsonObject = {"id": "write", "tool": "files.write", "input": {"path": "x", "content": "y"}, "after": []}
# So long that what comes before it is in the first half of the answer.
LAST: JsonObject = {**NEXT, "id": "last", "input": {"value": "${next.output}"}, "do": "x" * 390, "after": []}
BROKEN: JsonObject = {**LAST, "tool": "no.such.tool"}


def plan(*subtasks: JsonObject) -> str:
    return json.dumps({"intent": "look", "subtasks": list(subtasks)})


@dataclass
class Author:
    """Who writes the plans: by what a prompt names, the answers in turn."""

    endpoint: Endpoint
    scripts: dict[str, list[Reply]] = field(default_factory=dict)

    def say(self, asked: Asked) -> Reply:
        return next(script for name, script in self.scripts.items() if name in asked.prompt).pop(0)

    def asked(self, name: str) -> list[Asked]:
        """What was asked for a prompt."""
        return [each for each in self.endpoint.asked if name in each.prompt]


@dataclass
class Prompt:
    """A task whose plan is being written. ``open``: lets the second half of its first answer come."""

    run: Run
    author: Author
    name: str

    def open(self) -> None:
        self.author.endpoint.open_gate(self.name)

    @property
    def first(self) -> Asked:
        """The first question of its model."""
        return self.author.asked(self.name)[0]


@pytest.fixture(scope="module")
def author(model_rig: Rig) -> Iterator[Author]:
    made = Author(model_rig.endpoint)
    with model_rig.saying(made.say):
        yield made


@pytest.fixture(scope="module")
def instance(author: Author, model_instance: Instance) -> Instance:
    return model_instance


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def submit(instance: Instance, client: Client, author: Author, *answers: str, **fields: Any) -> Prompt:
    """A prompt that is answered like this; the first answer stops halfway."""
    name = f"<{uuid4().hex}>"
    first, *others = answers
    author.scripts[name] = [Reply(text=first, gate=name), *(Reply(text=text) for text in others)]
    task_id = client.submit({"prompt": f"Look at it {name}", **fields}).task_id
    return Prompt(Run(instance, client, task_id), author, name)


def begun(prompt: Prompt, id_: str, *statuses: str) -> Any:
    """A subtask as soon as it has one of these statuses, though it is not even whole which plan it belongs to."""
    subtask = wait_until(
        lambda: (found := prompt.run.subtasks().get(id_)) and found["status"] in statuses and found,
        what=prompt.run.details,
    )
    assert not prompt.first.answered.is_set()
    return subtask


@pytest.mark.exact
def test_what_reads_is_done_before_the_plan_s_last_token_and_nothing_writes_before(
    instance: Instance, client: Client, author: Author
) -> None:
    prompt = submit(instance, client, author, plan(READ, NEXT, WRITE, LAST))
    begun(prompt, "next", "COMPLETED")
    assert set(prompt.run.subtasks()) == {"read", "next"}
    assert prompt.run.status() == "PROCESSING"
    prompt.open()
    task = prompt.run.completed()
    assert task["result"] == {"write": {"path": "x", "size": 1}, "last": "7"}
    # What has begun stands first.
    assert [each["id"] for each in task["subtasks"]] == ["read", "next", "last", "write"]
    prompt.run.expect_sound()
    trace: Any = client.get(f"/api/v1/tasks/{prompt.run.task_id}/trace")
    ended = {span["name"]: span["finished_at"] for span in trace["spans"]}
    assert ended["read"] < ended["split"] < ended["write"]


@pytest.mark.exact
def test_a_plan_that_is_mended_keeps_what_has_begun(instance: Instance, client: Client, author: Author) -> None:
    prompt = submit(instance, client, author, plan(READ, NEXT, BROKEN), plan(WRITE, READ, NEXT, LAST))
    begun(prompt, "next", "COMPLETED")
    prompt.open()
    task = prompt.run.completed()
    assert [each["id"] for each in task["subtasks"]] == ["read", "next", "write", "last"]
    assert [each["attempts"] for each in task["subtasks"]] == [1, 1, 1, 1]
    assert "leave these as they are: read, next." in author.asked(prompt.name)[1].prompt
    prompt.run.expect_sound()


@pytest.mark.exact
def test_what_the_whole_plan_does_without_is_stopped(instance: Instance, client: Client, author: Author) -> None:
    prompt = submit(instance, client, author, plan(SLOW, READ, BROKEN), plan({**READ, "input": {"value": 8}}))
    begun(prompt, "slow", "RUNNING")
    workers = wait_until(lambda: instance.workers(prompt.run.task_id, "slow"))
    prompt.open()
    assert prompt.run.completed()["result"] == 8
    assert {id_: each["status"] for id_, each in prompt.run.subtasks().items()} in (
        {"slow": "CANCELLED", "read": "COMPLETED", "read_2": "COMPLETED"},
        {"slow": "CANCELLED", "read": "CANCELLED", "read_2": "COMPLETED"},
    )
    wait_until(lambda: not any(each.goes_on for each in workers))
    prompt.run.expect_legal_moves()


@pytest.mark.exact
def test_a_plan_that_never_becomes_whole_fails_with_what_has_begun(
    instance: Instance, client: Client, author: Author
) -> None:
    broken = plan(SLOW, READ, BROKEN)
    prompt = submit(instance, client, author, broken, broken, broken)
    begun(prompt, "slow", "RUNNING")
    workers = wait_until(lambda: instance.workers(prompt.run.task_id, "slow"))
    prompt.open()
    task = prompt.run.finished()
    assert (task["status"], task["error"]["code"]) == ("FAILED", "PLAN_FAILED")
    assert prompt.run.subtasks()["slow"]["status"] == "CANCELLED"
    wait_until(lambda: not any(each.goes_on for each in workers))
    with instance.http() as http:
        for what, body in (("fork", {"from": ["read"]}), ("retry", {})):
            assert http.post(f"/tasks/{prompt.run.task_id}/{what}", json=body).status_code == 409
    prompt.run.expect_sound()


def test_a_cancel_in_the_middle_stops_the_model_and_what_has_begun(
    instance: Instance, client: Client, author: Author
) -> None:
    prompt = submit(instance, client, author, plan(SLOW, READ, LAST))
    begun(prompt, "slow", "RUNNING")
    with instance.http() as http:
        cancel(http, prompt.run)
    # The promise of two seconds is about attempts; a model is stopped with the scheduler's next look.
    assert prompt.first.left.wait(10 * WITHIN_S)
    assert prompt.run.finished()["status"] == "CANCELLED"
    assert prompt.run.subtasks()["slow"]["status"] == "CANCELLED"
    prompt.run.expect_legal_moves()


@pytest.mark.exact
def test_a_deadline_in_the_middle_ends_it(instance: Instance, client: Client, author: Author) -> None:
    prompt = submit(instance, client, author, plan(SLOW, READ, LAST), budget={"deadline_s": 30})
    begun(prompt, "slow", "RUNNING")
    task = prompt.run.finished()
    assert (task["status"], task["error"]["code"]) == ("FAILED", "DEADLINE_EXCEEDED")
    assert prompt.first.left.wait(10 * WITHIN_S)
    prompt.run.expect_legal_moves()


VICTIMS: dict[str, chaos.Kill] = {
    "scheduler": chaos.process_called("ray::_SchedulerActor"),
    "parser": chaos.process_called("ray::ServeReplica:rayloom:Parser"),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_beginning_survives_the_death_of(victim: str, instance: Instance, client: Client, author: Author) -> None:
    prompt = submit(instance, client, author, plan(READ, NEXT, LAST), plan(READ, NEXT, WRITE, LAST))
    begun(prompt, "next", "COMPLETED")
    VICTIMS[victim](instance)
    task = prompt.run.completed()
    assert [each["id"] for each in task["subtasks"]] == ["read", "next", "write", "last"]
    assert "These subtasks run already" in author.asked(prompt.name)[1].prompt
    prompt.run.expect_sound()
    prompt.open()
