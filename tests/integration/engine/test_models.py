"""Models in a real rayloom: they think, write code and mend it, and are stopped, kept waiting and lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import Client
from tests.integration.engine.test_cancel import WITHIN_S, cancel
from tests.integration.instance import Instance
from tests.integration.models.endpoint import Asked, Reply
from tests.integration.models.rig import Rig
from tests.integration.runs import Run, echo
from tests.integration.waiting import wait_until

BUGGY = "import json\nprint(sum(json.load(open('input.json'))['nombres']))"
MENDED = """import json
numbers = json.load(open('input.json'))['numbers']
json.dump(sum(numbers), open('result.json', 'w'))"""
TOTAL: JsonObject = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
CALL = '{"call": "core.echo", "input": {"value": "x7"}}'


def say(asked: Asked) -> Reply:
    """What is answered, by what is asked."""
    prompt = asked.prompt
    if "You write one complete Python program" in prompt:
        return Reply(text=f"```python\n{MENDED if 'KeyError' in prompt else BUGGY}\n```")
    if "Never end." in prompt:
        return Reply(text="On and on and on.", hang="within")
    if "use the tools" in prompt:
        found = re.findall(r'"result":"(.*?)"', prompt)
        return Reply(
            text=json.dumps({"answer": found[-1]} if found else {"call": "core.echo", "input": {"value": "x7"}})
        )
    if '"sum":6' in prompt:
        return Reply(text='{"total": 6}')
    return Reply(text="Good.")


@pytest.fixture(scope="module")
def rig(model_rig: Rig) -> Iterator[Rig]:
    with model_rig.saying(say):
        yield model_rig


@pytest.fixture(scope="module")
def instance(rig: Rig, model_instance: Instance) -> Instance:
    return model_instance


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def reasoning(id_: str, instruction: str, input_: JsonObject | None = None, **fields: Json) -> JsonObject:
    return {"id": id_, "type": "REASONING", "instruction": instruction, "input": input_ or {}, **fields}


@pytest.mark.exact
def test_data_becomes_code_becomes_a_conclusion(instance: Instance, client: Client, rig: Rig) -> None:
    code: JsonObject = {"numbers": {"$ref": "data.output"}}
    plan: list[JsonObject] = [
        echo("data", [1, 2, 3]),
        {"id": "code", "type": "CODE_GEN", "instruction": "Add the numbers.", "input": code},
        reasoning("end", "Say the total.", {"sum": {"$ref": "code.output.result"}, "output_schema": TOTAL}),
    ]
    run = Run.submit(instance, client, plan)
    task = run.completed()
    assert task["result"] == {"total": 6}
    outputs = {subtask["id"]: subtask for subtask in task["subtasks"]}
    wrote = outputs["code"]
    assert (wrote["output"]["result"], wrote["output"]["repairs"], wrote["tool"]) == (6, 1, None)
    assert wrote["output"]["code"].strip() == MENDED
    assert [tried["exit_code"] for tried in wrote["output"]["attempts"]] == [1, 0]
    assert wrote["tokens_used"] > outputs["end"]["tokens_used"] > 0
    assert run.subtask("end")["instruction"] == "Say the total."
    run.expect_sound()
    trace: Any = client.get(f"/api/v1/tasks/{run.task_id}/trace")
    models = [(span["subtask"], span["name"]) for span in trace["spans"] if span["kind"] == "model"]
    assert models == [("code", "coding"), ("code", "code"), ("code", "mend"), ("end", "reasoning"), ("end", "reason")]
    span = next(span for span in trace["spans"] if span["name"] == "mend")
    assert span["attributes"]["model"] == "scripted"
    assert span["attributes"]["tokens_in"] > 0
    assert span["attributes"]["cost_usd"] > 0
    lines: Any = client.get(f"/api/v1/tasks/{run.task_id}/logs", {"stream": "model"})
    said = "\n".join(line["message"] for line in lines["items"])
    assert "KeyError" in said
    assert MENDED in said


@pytest.mark.exact
def test_a_model_uses_the_tools_of_its_task(instance: Instance, client: Client) -> None:
    step_ = reasoning("a", "Do use the tools.", {"use_tools": ["core.*"], "max_steps": 2})
    run = Run.submit(instance, client, [step_], tools={"allow": ["core.echo"]})
    assert run.completed()["result"] == {"text": "x7"}
    trace: Any = client.get(f"/api/v1/tasks/{run.task_id}/trace")
    assert [span["name"] for span in trace["spans"] if span["kind"] == "tool"] == ["core.echo"]


@pytest.mark.timed
def test_a_stop_closes_the_stream(instance: Instance, client: Client, rig: Rig) -> None:
    run = Run.submit(instance, client, [reasoning("a", "Never end."), echo("after", 1, "a")])
    asked = wait_until(lambda: [each for each in rig.endpoint.asked if "Never end." in each.prompt])[-1]
    run.until_executing("a")
    with instance.http() as http:
        cancel(http, run)
    # The promise is about the two seconds after the answer.
    assert asked.left.wait(WITHIN_S)
    assert run.finished()["status"] == "CANCELLED"


@pytest.mark.exact
def test_who_is_told_to_come_later_does(instance: Instance, client: Client, rig: Rig) -> None:
    rig.replies.append(Reply(status=429, headers={"retry-after": "7"}))
    run = Run.submit(instance, client, [reasoning("a", "Wait your turn.")])
    assert run.completed()["result"] == {"text": "Good."}
    first, second = run.subtask("a")["attempts"]
    assert first["error"]["code"] == "MODEL_RATE_LIMITED"
    waited = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["finished_at"])
    assert waited.total_seconds() >= 7


@pytest.mark.exact
def test_an_endpoint_that_is_gone_is_waited_for(instance: Instance, client: Client, rig: Rig) -> None:
    rig.stop()
    try:
        run = Run.submit(instance, client, [reasoning("a", "Are you there?", max_retries=100)])
        wait_until(lambda: len(run.subtask("a")["attempts"]) > 1, what=lambda: run.subtask("a"))
        assert run.subtask("a")["attempts"][0]["error"]["code"] == "MODEL_UNAVAILABLE"
    finally:
        rig.start()
    assert run.completed()["result"] == {"text": "Good."}


@pytest.mark.exact
def test_a_refusal_blocks_and_a_fallback_helps(instance: Instance, client: Client, rig: Rig) -> None:
    rig.replies += [Reply(status=401)]
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": "without a model"}}
    plan = [reasoning("a", "May I?", max_retries=0, on_failure="fallback", fallback=fallback)]
    run = Run.submit(instance, client, plan)
    assert run.completed()["result"] == "without a model"
    assert run.subtask("a")["attempts"][0]["error"]["code"] == "MODEL_REFUSED"


@pytest.mark.exact
def test_a_task_whose_budget_runs_out_keeps_what_it_has_and_goes_on_with_more(
    instance: Instance, client: Client, rig: Rig
) -> None:
    # The longest answer is reserved with the question: room for the first, and not for the second beside what it used.
    plan = [reasoning("a", "Be brief."), reasoning("b", "Be patient with a long word. " * 100, None, depends_on=["a"])]
    run = Run.submit(instance, client, plan, budget={"max_tokens": 4_500})
    task = run.finished()
    assert task["status"] == "FAILED"
    a, b = task["subtasks"]
    assert (a["status"], a["output"]) == ("COMPLETED", {"text": "Good."})
    assert (b["status"], b["error"]["code"], b["error"]["class"]) == ("BLOCKED", "BUDGET_EXCEEDED", "refused")
    asked = len(rig.endpoint.asked)
    client.post(f"/api/v1/tasks/{run.task_id}/retry", {"budget": {"max_tokens": 50_000}})
    assert run.completed()["result"] == {"text": "Good."}
    assert len(rig.endpoint.asked) == asked + 1
