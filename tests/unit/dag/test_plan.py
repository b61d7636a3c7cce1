"""The shape of a plan: what is read, and the pointer of every fault."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rayloom.dag.errors import InvalidPlan
from rayloom.dag.plan import MAX_FAULTS, MAX_SUBTASKS, NO_WISHES, Budget, Subtask, TaskType, parse_plan


def _one(**fields: object) -> dict[str, Any]:
    return {"subtasks": [{"id": "a", "type": "TOOL", **fields}]}


def _faults(raw: object) -> dict[str, str]:
    with pytest.raises(InvalidPlan) as refused:
        parse_plan(raw)
    return {fault.pointer: fault.message for fault in refused.value.faults}


def test_what_is_left_out_has_its_default() -> None:
    (subtask,) = parse_plan(_one()).subtasks
    assert subtask == Subtask(id="a", name="a", type=TaskType.TOOL)
    assert (subtask.timeout_s, subtask.max_retries, subtask.on_failure, subtask.depends_on) == (300, 3, "block", ())
    assert subtask.resources is NO_WISHES


def test_everything_of_the_contract_is_read() -> None:
    fields = {
        "name": "Fetch",
        "depends_on": ["b"],
        "tool": "http.request",
        "input": {"url": "x", "list": [1, {"a": None}]},
        "instruction": "do",
        "resources": {
            "num_cpus": 1,
            "num_gpus": 0.5,
            "memory_mb": 10,
            "custom": {"sandbox": 1},
            "labels": {"ray.io/region": "eu"},
            "lane": "own",
        },
        "timeout_s": 0.5,
        "max_retries": 0,
        "cacheable": True,
        "skills": ["x"],
        "on_failure": "default",
        "default": {"a": 1},
        "fallback": {"tool": "x", "input": {"a": 1}},
        "require_approval": True,
    }
    (subtask,) = parse_plan(_one(**fields)).subtasks
    assert subtask.model_dump(mode="json", exclude={"id", "type"}) == {**fields, "fallback": None}


def test_the_sample_of_a_subtask_holds_a_fallback_that_its_policy_has_no_use_for() -> None:
    (subtask,) = parse_plan(_one(on_failure="block", fallback={"tool": "…", "input": {}}, default=1)).subtasks
    assert (subtask.fallback, subtask.default) == (None, None)


@pytest.mark.parametrize("raw", [None, 3, "x", [], [{"id": "a"}]])
def test_a_plan_is_an_object(raw: object) -> None:
    assert _faults(raw) == {"/plan": "a plan is an object with a list `subtasks`"}


def test_the_pointer_starts_where_the_caller_says() -> None:
    with pytest.raises(InvalidPlan) as refused:
        parse_plan({}, pointer="/body/plan")
    assert refused.value.faults[0].pointer == "/body/plan/subtasks"


def test_the_number_of_subtasks_is_bounded() -> None:
    assert "1 to 100,000" in _faults({"subtasks": []})["/plan/subtasks"]
    assert "has 100,001" in _faults({"subtasks": [1] * (MAX_SUBTASKS + 1)})["/plan/subtasks"]


@pytest.mark.parametrize(
    ("raw", "pointer", "message"),
    [
        ({}, "/plan/subtasks", "is missing"),
        ({"subtasks": {}}, "/plan/subtasks", "must be a list"),
        ({"subtasks": [3]}, "/plan/subtasks/0", "must be an object"),
        ({"subtasks": [{"type": "TOOL"}]}, "/plan/subtasks/0/id", "is missing"),
        ({"subtasks": [{"id": "a"}]}, "/plan/subtasks/0/type", "is missing"),
        ({**_one(), "subtask": []}, "/plan/subtask", "is not a field here; did you mean subtasks?"),
        (_one(depend_on=[]), "/plan/subtasks/0/depend_on", "is not a field here; did you mean depends_on?"),
        (_one(resources={"cpus": 1}), "/plan/subtasks/0/resources/cpus", "did you mean num_cpus"),
        (_one(fallback={"tol": 1, "tool": "x"}), "/plan/subtasks/0/fallback/tol", "did you mean tool?"),
        (_one(**{"a/b~": 1}), "/plan/subtasks/0/a~1b~0", "is not a field here"),
        (_one(id=""), "/plan/subtasks/0/id", "an id is 1 to 128 of the characters"),
        (_one(id="a b"), "/plan/subtasks/0/id", "an id is 1 to 128 of the characters"),
        (_one(id="a\n"), "/plan/subtasks/0/id", "an id is 1 to 128 of the characters"),
        (_one(id="x" * 129), "/plan/subtasks/0/id", "an id is 1 to 128 of the characters"),
        (_one(id="日"), "/plan/subtasks/0/id", "an id is 1 to 128 of the characters"),
        (_one(id=1), "/plan/subtasks/0/id", "string"),
        (_one(name=""), "/plan/subtasks/0/name", "at least 1 character"),
        (_one(type="LLM"), "/plan/subtasks/0/type", "'CODE_GEN'"),
        (_one(depends_on="b"), "/plan/subtasks/0/depends_on", "must be a list"),
        (_one(depends_on=["b", 1]), "/plan/subtasks/0/depends_on/1", "string"),
        (_one(input=[]), "/plan/subtasks/0/input", "must be an object"),
        (_one(input=None), "/plan/subtasks/0/input", "must be an object"),
        (_one(timeout_s=0), "/plan/subtasks/0/timeout_s", "greater than 0"),
        (_one(timeout_s=-1), "/plan/subtasks/0/timeout_s", "greater than 0"),
        (_one(timeout_s=86_401), "/plan/subtasks/0/timeout_s", "less than or equal to 86400"),
        (_one(timeout_s="3"), "/plan/subtasks/0/timeout_s", "number"),
        (_one(timeout_s=float("nan")), "/plan/subtasks/0/timeout_s", "is not a finite number"),
        (_one(timeout_s=float("inf")), "/plan/subtasks/0/timeout_s", "is not a finite number"),
        (_one(max_retries=-1), "/plan/subtasks/0/max_retries", "greater than or equal to 0"),
        (_one(max_retries=101), "/plan/subtasks/0/max_retries", "less than or equal to 100"),
        (_one(max_retries=1.5), "/plan/subtasks/0/max_retries", "integer"),
        (_one(max_retries=True), "/plan/subtasks/0/max_retries", "integer"),
        (_one(cacheable="yes"), "/plan/subtasks/0/cacheable", "boolean"),
        (_one(on_failure="x"), "/plan/subtasks/0/on_failure", "'block'"),
        (_one(resources={"num_cpus": -1}), "/plan/subtasks/0/resources/num_cpus", "greater than or equal to 0"),
        (_one(resources={"num_cpus": 1e300}), "/plan/subtasks/0/resources/num_cpus", "less than or equal"),
        (_one(resources={"num_gpus": 1.5}), "/plan/subtasks/0/resources/num_gpus", "whole numbers"),
        (_one(resources={"custom": {"a b": 1}}), "/plan/subtasks/0/resources/custom/a b", "not allowed here"),
        (_one(resources={"custom": {"a": "1"}}), "/plan/subtasks/0/resources/custom/a", "number"),
        (_one(resources={"custom": {"CPU": 1}}), "/plan/subtasks/0/resources/custom", "can't name CPU"),
        (_one(resources={"labels": {"k": "!x"}}), "/plan/subtasks/0/resources/labels/k", "not allowed here"),
        (_one(resources={"labels": {"k": "in(a,b)"}}), "/plan/subtasks/0/resources/labels/k", "not allowed here"),
        (_one(resources={"lane": "fast"}), "/plan/subtasks/0/resources/lane", "'auto'"),
        (_one(name="a\0"), "/plan/subtasks/0/name", "NUL"),
        (_one(input={"a": {"b/": ["\0"]}}), "/plan/subtasks/0/input/a/b~1/0", "NUL"),
        (_one(input={"a\0": 1}), "/plan/subtasks/0/input", "NUL"),
        (_one(input={"a": 2**64}), "/plan/subtasks/0/input/a", "beyond 64 bits"),
        (_one(default=float("nan")), "/plan/subtasks/0/default", "is not a finite number"),
    ],
)
def test_a_fault_has_its_pointer(raw: object, pointer: str, message: str) -> None:
    faults = _faults(raw)
    assert list(faults) == [pointer]
    assert message in faults[pointer]


def test_two_gpus_are_whole() -> None:
    assert parse_plan(_one(resources={"num_gpus": 2})).subtasks[0].resources.num_gpus == 2


def test_nesting_is_bounded() -> None:
    deep: object = 1
    for _ in range(60):  # the plan, its list, the subtask and the input are four levels more
        deep = [deep]
    assert parse_plan(_one(input={"a": deep})).subtasks[0].input == {"a": deep}
    (message,) = _faults(_one(input={"a": [deep]})).values()
    assert message == "is nested deeper than 64 levels"


def test_all_faults_are_told_but_not_without_end() -> None:
    raw = {"subtasks": [{"id": f"s{i}", "type": "X", "timeout_s": 0} for i in range(3)]}
    assert len(_faults(raw)) == 6
    raw = {"subtasks": [{"id": f"s{i}", "type": "X"} for i in range(500)]}
    assert len(_faults(raw)) == MAX_FAULTS


def test_a_plan_can_not_be_changed() -> None:
    plan = parse_plan(_one())
    with pytest.raises(ValidationError, match="frozen"):
        plan.subtasks = ()


def test_a_budget_is_positive() -> None:
    assert Budget(max_tokens=1, max_cost_usd=0.5, deadline_s=1).max_cost_usd == 0.5
    assert Budget() == Budget(max_tokens=None)
    for wrong in (
        {"max_tokens": 0},
        {"max_cost_usd": -1.0},
        {"max_cost_usd": 1e300},
        {"deadline_s": 0.0},
        {"max_tokens": 1.5},
        {"x": 1},
    ):
        with pytest.raises(ValidationError):
            Budget.model_validate(wrong)
