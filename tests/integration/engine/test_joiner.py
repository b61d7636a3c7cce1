"""The joiner of a model's plan in a real rayloom: it answers, or asks for more, and nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rayloom.dag.values import Json
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.models.endpoint import Asked, Reply
from tests.integration.models.rig import Rig
from tests.integration.runs import Run


class Script:
    """What the model says, in turn; everything is asked one after the other."""

    def __init__(self) -> None:
        self.left: list[Json] = []
        self.asked: list[str] = []

    def __call__(self, asked: Asked) -> Reply:
        self.asked.append(asked.prompt)
        return Reply(text=json.dumps(self.left.pop(0)))


@pytest.fixture(scope="module")
def script(model_rig: Rig) -> Iterator[Script]:
    made = Script()
    with model_rig.saying(made):
        yield made


@pytest.fixture(scope="module")
def instance(script: Script, model_instance: Instance) -> Instance:
    return model_instance


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def planned(*values: int, answer: str = "", after: Sequence[str] = ()) -> Any:
    echoes = [
        {"id": f"e{value}", "tool": "core.echo", "input": {"value": value}, "do": "", "after": list(after)}
        for value in values
    ]
    return {"intent": "echo", "subtasks": echoes, **({"answer": answer} if answer else {})}


def said(answer: str, more: str | None = None) -> Json:
    return {"answer": answer, "more": more}


def asked_for(instance: Instance, client: Client, script: Script, *answers: Json) -> Run:
    script.left, script.asked = list(answers), []
    return Run(instance, client, client.submit({"prompt": "Echo some numbers and tell of them."}).task_id)


@pytest.mark.exact
def test_it_answers_of_what_all_have_given(instance: Instance, client: Client, script: Script) -> None:
    run = asked_for(instance, client, script, planned(1, 2, answer="Tell both."), said("1 and 2"))
    task = run.completed()
    assert task["result"] == {"answer": "1 and 2", "more": None}
    assert [each["id"] for each in task["subtasks"]] == ["e1", "e2", "answer"]
    assert "Tell both." in script.asked[1]
    assert '"e1":1,"e2":2' in script.asked[1]
    assert "Echo some numbers" in script.asked[1]
    assert script.left == []
    run.expect_sound()


@pytest.mark.exact
def test_it_asks_for_more_and_another_answers_with_old_and_new(
    instance: Instance, client: Client, script: Script
) -> None:
    run = asked_for(
        instance, client, script, planned(1, 2, answer="Tell all."), said("1 and 2", "the third"),
        planned(3, after=["e1"]), said("1, 2 and 3"),
    )  # fmt: skip
    task = run.completed()
    assert task["result"] == {"answer": "1, 2 and 3", "more": None}
    assert [(each["id"], each["attempts"]) for each in task["subtasks"]] == [
        ("e1", 1), ("e2", 1), ("answer", 1), ("e3", 1), ("answer_2", 1),
    ]  # fmt: skip
    assert "the answer needs more" in script.asked[2]
    assert "the third" in script.asked[2]
    for seen in ('"e1":1', '"e2":2', '"e3":3', "1 and 2"):
        assert seen in script.asked[3]
    run.expect_sound()


@pytest.mark.exact
def test_it_can_not_ask_for_ever(instance: Instance, client: Client, script: Script) -> None:
    run = asked_for(
        instance, client, script, planned(1, answer="Tell all."), said("one", "two"), planned(2), said("two", "three"),
        planned(3), said("three", "four"),
    )  # fmt: skip
    task = run.completed()
    assert task["result"] == {"answer": "three", "more": "four"}
    assert all(each["attempts"] == 1 for each in task["subtasks"])
    assert (len(task["subtasks"]), len(script.asked)) == (6, 6)
    run.expect_sound()
