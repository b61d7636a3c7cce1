"""Budgets and quotas that run out in the middle, in a real rayloom: what is done stays, and with more it goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import Client
from tests.integration.engine.test_models import reasoning, say
from tests.integration.instance import Instance
from tests.integration.models.endpoint import Asked, Reply
from tests.integration.models.rig import Rig
from tests.integration.runs import Run, echo
from tests.integration.waiting import wait_until

LONG = "Be patient with a long word. " * 100
"""With the longest answer it asks for more than is left of `FIRST_ONLY`, once another was asked."""
FIRST_ONLY = 4_600
MUCH = 1_000_000
PLAN: JsonObject = {
    "intent": "look", "subtasks": [{"id": "only", "goal": "say it", "tool": "core.echo", "input": {"value": "planned"}}]
}  # fmt: skip


def answer(asked: Asked) -> Reply:
    """What is answered, by what is asked."""
    if asked.schema is not None and "subtasks" in json.dumps(asked.schema):
        return Reply(text=json.dumps(PLAN))
    if "Wait for the gate." in asked.prompt:
        return Reply(text="It is open now, and all is said.", gate="open")
    return say(asked)


@pytest.fixture(scope="module")
def rig(model_rig: Rig) -> Iterator[Rig]:
    with model_rig.saying(answer):
        yield model_rig


@pytest.fixture(scope="module")
def instance(rig: Rig, model_instance: Instance) -> Instance:
    return model_instance


@pytest.fixture(scope="module")
def admin(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


class Person:
    """A user with a key of its own, whose limits are set by an admin."""

    def __init__(self, instance: Instance, client: Client, made: Any) -> None:
        self._instance, self.client = instance, client
        self._paths = {"user": f"/quotas/{made['user_id']}", "key": f"/keys/{made['id']}/quota"}

    def limit(self, of: str, **quota: Json) -> None:
        """Set all limits of the user, or of the key, as an admin."""
        with self._instance.http() as http:
            assert http.put(self._paths[of], json=quota).status_code == 200


@pytest.fixture
def person(instance: Instance, admin: Client, request: pytest.FixtureRequest) -> Iterator[Person]:
    made: Any = admin.post("/api/v1/keys", {"user": f"{request.node.name[:40]}-{uuid7()}", "role": "user"})
    with instance.client(key=made["key"]) as client:
        yield Person(instance, client, made)


def held(run: Run, id_: str) -> Any:
    """Why a subtask waits for a limit, as soon as it is QUEUED for that."""

    def found() -> Any:
        told: Any = run.client.get(f"/api/v1/tasks/{run.task_id}/subtasks/{id_}/waiting")
        why = [each for each in told["reasons"] if each["kind"] in ("quota", "limit")]
        return why[0] if told["status"] == "QUEUED" and why else None

    return wait_until(found, what=lambda: run.subtask(id_))


@pytest.mark.exact
@pytest.mark.parametrize(
    ("of", "spent", "kind", "has_end"),
    [
        ("user", {"max_tokens": FIRST_ONLY}, "quota", False),
        ("user", {"max_cost_usd": 0.0008}, "quota", False),
        ("user", {"tokens_per_min": FIRST_ONLY}, "limit", False),
        ("user", {"tokens_per_min": 4_900}, "limit", True),
        ("user", {"requests_per_min": 1}, "limit", True),
        ("key", {"max_tokens": FIRST_ONLY}, "quota", False),
        ("key", {"max_cost_usd": 0.0008}, "quota", False),
        ("key", {"tokens_per_min": 4_900}, "limit", True),
        ("key", {"requests_per_min": 1}, "limit", True),
    ],
)
def test_a_quota_that_runs_out_keeps_the_rest_queued_and_a_higher_one_lets_it_go_on(
    instance: Instance, rig: Rig, person: Person, of: str, spent: dict[str, Json], kind: str, has_end: bool
) -> None:
    person.limit(of, **spent)
    plan = [reasoning("a", "Be brief."), reasoning("b", LONG, None, depends_on=["a"]), echo("c", 1, "a")]
    run = Run.submit(instance, person.client, plan)
    why = held(run, "b")
    (limit,) = spent
    assert (why["kind"], limit in why["detail"], why["until"] is not None) == (kind, True, has_end)
    assert [run.subtask(id_)["status"] for id_ in "ab"] == ["COMPLETED", "QUEUED"]
    if limit != "requests_per_min" or of != "user":
        # What needs no model is not held for that.
        run.until("c", "COMPLETED")
    asked = len(rig.endpoint.asked)
    person.limit(of, **dict.fromkeys(spent, MUCH))
    task = run.completed(within_s=30)
    assert len(rig.endpoint.asked) == asked + 1
    assert {each["id"]: each["attempts"] for each in task["subtasks"] if each["id"] != "b"} == {"a": 1, "c": 1}
    lines: Any = person.client.get(f"/api/v1/tasks/{run.task_id}/logs")
    if of != "user" or limit != "requests_per_min":
        assert any(limit in line["message"] for line in lines["items"])
    run.expect_sound()


@pytest.mark.exact
def test_calls_at_once_wait_for_each_other_and_a_higher_limit_lets_them_go(
    instance: Instance, rig: Rig, person: Person
) -> None:
    person.limit("key", max_concurrent=1)
    first = Run.submit(instance, person.client, [reasoning("a", "Wait for the gate.")])
    wait_until(lambda: [each for each in rig.endpoint.asked if "Wait for the gate." in each.prompt])
    second = Run.submit(instance, person.client, [reasoning("a", "Be brief.")])
    assert "max_concurrent of its key" in held(second, "a")["detail"]
    person.limit("key", max_concurrent=2)
    second.completed(within_s=30)
    assert first.status() == "PROCESSING"
    rig.endpoint.open_gate("open")
    first.completed()


def retried(run: Run, **budget: Json) -> Any:
    return run.client.post(f"/api/v1/tasks/{run.task_id}/retry", {"budget": budget})


def blocked(run: Run, id_: str) -> Any:
    """A subtask that its budget blocks, in a task that says so."""
    task = run.finished()
    assert (task["status"], task["error"]["class"]) == ("FAILED", "refused")
    found = run.subtask(id_)
    assert (found["status"], found["error"]["code"]) == ("BLOCKED", "BUDGET_EXCEEDED")
    events = run.instance.sql(
        "SELECT reason FROM task_events WHERE task_id = $1::uuid AND to_status = 'FAILED' AND subtask = $2 ORDER BY id",
        run.task_id, id_,
    )  # fmt: skip
    assert "of its task" in events[-1]["reason"]
    return found


@pytest.mark.exact
def test_a_budget_of_money_that_runs_out_keeps_what_is_done(instance: Instance, rig: Rig, person: Person) -> None:
    plan = [reasoning("a", "Be brief."), reasoning("b", LONG, None, depends_on=["a"])]
    run = Run.submit(instance, person.client, plan, budget={"max_cost_usd": 0.0008})
    blocked(run, "b")
    assert run.subtask("a")["status"] == "COMPLETED"
    asked = len(rig.endpoint.asked)
    assert retried(run, max_cost_usd=1.0)["retried"] == ["b"]
    run.completed()
    assert len(rig.endpoint.asked) == asked + 1
    run.expect_sound()


@pytest.mark.exact
@pytest.mark.parametrize(
    ("subtask", "room"),
    [
        ({"type": "CODE_GEN", "instruction": "Add the numbers.", "input": {"numbers": [1, 2, 3]}}, 4_450),
        (reasoning("b", "Do use the tools.", {"use_tools": ["core.echo"], "max_steps": 3}), 4_500),
    ],
    ids=["repair", "tool loop"],
)
def test_a_budget_that_runs_out_between_two_calls_of_an_attempt_blocks_it_and_a_higher_one_runs_it_again(
    instance: Instance, rig: Rig, person: Person, subtask: JsonObject, room: int
) -> None:
    asked = len(rig.endpoint.asked)
    run = Run.submit(instance, person.client, [echo("a", 1), {**subtask, "id": "b"}], budget={"max_tokens": room})
    blocked(run, "b")
    assert len(rig.endpoint.asked) == asked + 1
    assert run.subtask("a")["status"] == "COMPLETED"
    assert 0 < run.details()["usage"]["tokens"] < room
    retried(run, max_tokens=MUCH)
    run.completed()
    assert run.subtask("a")["attempts"][-1]["attempt"] == 1


@pytest.mark.exact
def test_a_budget_that_does_not_suffice_to_plan_is_said_and_a_higher_one_plans(
    instance: Instance, person: Person
) -> None:
    submitted = person.client.submit({"prompt": "Please say it in whatever way", "budget": {"max_tokens": 100}})
    run = Run(instance, person.client, submitted.task_id)
    task = run.finished()
    assert (task["status"], task["error"]["code"], task["subtasks"]) == ("FAILED", "BUDGET_EXCEEDED", [])
    assert "100 tokens" in task["error"]["message"]
    assert retried(run, max_tokens=MUCH)["status"] == "PENDING"
    assert run.completed()["result"] == "planned"
    run.expect_sound()


@pytest.mark.exact
def test_a_quota_that_does_not_suffice_to_plan_is_waited_for(instance: Instance, person: Person) -> None:
    person.limit("key", max_tokens=100)
    run = Run(instance, person.client, person.client.submit({"prompt": "Please say it in whatever way"}).task_id)

    def told() -> Any:
        lines: Any = person.client.get(f"/api/v1/tasks/{run.task_id}/logs")
        return [line for line in lines["items"] if line["message"].startswith("not planned yet: max_tokens of its key")]

    wait_until(told)
    assert run.status() == "SPLITTING"
    person.limit("key")
    assert run.completed(within_s=40)["result"] == "planned"


def usage(person: Person) -> Any:
    return person.client.get("/api/v1/usage")


@pytest.mark.exact
def test_a_worker_that_is_killed_in_the_middle_of_an_answer_leaves_nothing_reserved_and_its_question_counts(
    instance: Instance, rig: Rig, person: Person
) -> None:
    rig.replies.append(Reply(text="On and on.", hang="within"))
    before = len(rig.endpoint.asked)
    run = Run.submit(instance, person.client, [reasoning("a", LONG)])
    wait_until(lambda: len(rig.endpoint.asked) > before)

    def reserved() -> int:
        return int(usage(person)["reserved"]["tokens"])

    # A reservation may be granted before it is written down (docs/adr/0012), so its row may come after the question.
    wait_until(lambda: reserved() > 4_096)
    (worker,) = wait_until(lambda: instance.workers(run.task_id), what=run.details)
    os.kill(worker.pid, signal.SIGKILL)
    # Another attempt answers; and long before its lease is over nothing is reserved for the dead one.
    run.completed()

    wait_until(lambda: reserved() == 0, within_s=30)
    total = usage(person)["total"]
    dead, alive = instance.sql(
        "SELECT status, tokens_in, tokens_out, is_estimated FROM model_calls WHERE task_id = $1::uuid ORDER BY id",
        run.task_id,
    )
    assert (dead["status"], dead["is_estimated"], alive["status"], alive["is_estimated"]) == (
        "released", True, "settled", False,
    )  # fmt: skip
    assert dead["tokens_in"] > 700
    assert total["tokens_in"] == dead["tokens_in"] + alive["tokens_in"]
    assert run.details()["usage"]["tokens"] == total["tokens_in"] + total["tokens_out"]


@pytest.mark.exact
def test_a_budget_that_does_not_suffice_to_plan_on_is_said_and_a_higher_one_plans_on(
    instance: Instance, rig: Rig, person: Person
) -> None:
    steps = [
        {"id": "slow", "goal": "wait", "tool": "core.sleep", "input": {"seconds": 8}},
        {"id": "bad", "goal": "fail", "tool": "core.fail", "input": {"times": 9, "kind": "user"}, "after": ["slow"]},
    ]
    rig.replies.append(Reply(text=json.dumps({"intent": "look", "subtasks": steps})))
    submitted = person.client.submit({"prompt": "Please do it in whatever way"})
    run = Run(instance, person.client, submitted.task_id)
    wait_until(lambda: run.subtasks().get("slow", {}).get("status") == "RUNNING", what=run.details)
    # Spent meanwhile: by what is planned, and by nothing that could be seen before.
    options = "options || jsonb_build_object('budget', jsonb_build_object('max_tokens', 10))"
    instance.sql(f"UPDATE tasks SET options = {options} WHERE id = $1::uuid", run.task_id)
    task = run.finished()
    assert (task["status"], task["error"]["code"]) == ("FAILED", "BUDGET_EXCEEDED")
    assert {each["id"]: each["status"] for each in task["subtasks"]} == {"slow": "COMPLETED", "bad": "BLOCKED"}
    assert retried(run, max_tokens=MUCH) == {"task_id": run.task_id, "status": "PROCESSING", "retried": []}
    task = run.completed()
    assert task["result"] == "planned"
    assert {each["id"]: each["attempts"] for each in task["subtasks"]} == {"slow": 1, "bad": 1, "only": 1}
    run.expect_legal_moves()
