"""What a plan will use."""

from __future__ import annotations

import pytest

from rayloom.dag.model import ModelView
from rayloom.dag.plan import parse_plan
from rayloom.dag.planning.brief import Brief
from rayloom.dag.planning.estimate import UNKNOWN_TOOL_S, Estimate, Prices, estimate, lateness, over_budget
from rayloom.dag.values import JsonObject
from rayloom.dag.verify import verify
from tests.unit.dag.planning.views import VIEWS

MODEL = ModelView(name="m", model="m", context_tokens=1, answer_tokens=1, price_in=1_000_000, price_out=0)
PLAN = {
    "subtasks": [
        {"id": "a", "type": "TOOL", "tool": "any"},
        {"id": "b", "type": "TOOL", "tool": "db.get"},
        {"id": "c", "type": "REASONING", "instruction": "x", "input": {"a": {"$ref": "a.output"}}, "depends_on": ["b"]},
        {"id": "d", "type": "CODE_GEN", "instruction": "x"},
    ]
}


def of(prices: Prices) -> Estimate:
    plan = verify(parse_plan(PLAN), tools=VIEWS, nodes=(), model_available=True)
    return estimate(plan, p50_s={"any": 10.0}, prices=prices)


def test_time_is_that_of_the_slowest_chain_and_tokens_are_added_up() -> None:
    found = of(Prices(reasoner=MODEL))
    a, b, c, d = found.subtasks
    assert (a.seconds, b.seconds) == (10.0, UNKNOWN_TOOL_S)
    assert (a.tokens, a.cost_usd) == (0, 0.0)
    assert found.seconds == pytest.approx(10.0 + c.seconds)
    assert found.tokens == c.tokens + d.tokens
    assert c.cost_usd == 2_300
    assert d.cost_usd == 0.0
    assert found.as_json() == {"tokens": found.tokens, "cost_usd": 2300.0, "seconds": round(found.seconds, 3)}


@pytest.mark.parametrize(
    ("budget", "brief", "names"),
    [
        ({}, Brief(), []),
        ({"max_tokens": 10**9, "max_cost_usd": 10.0**9, "deadline_s": 10.0**9}, Brief(), []),
        ({"max_tokens": 10}, Brief(), ["`max_tokens`"]),
        ({"max_tokens": 10**9}, Brief(max_tokens=10), ["`max_tokens`"]),
        (
            {"max_cost_usd": True, "deadline_s": "x"},
            Brief(max_cost_usd=0.1, deadline_s=1),
            ["`max_cost_usd`"],
        ),
    ],
)
def test_the_stricter_of_submission_and_prompt_says_whether_it_is_too_much(
    budget: JsonObject, brief: Brief, names: list[str]
) -> None:
    said = over_budget(of(Prices(reasoner=MODEL, coder=MODEL)), budget=budget, brief=brief)
    assert [line.partition(":")[0] for line in said] == names


@pytest.mark.parametrize(
    ("budget", "brief", "is_late"),
    [
        ({}, Brief(), False),
        ({"deadline_s": 10_000}, Brief(), False),
        ({"deadline_s": 1}, Brief(), True),
        ({"deadline_s": 10_000}, Brief(deadline_s=1), True),
    ],
)
def test_a_plan_that_will_be_late_is_told_of_and_not_held(budget: JsonObject, brief: Brief, is_late: bool) -> None:
    found = of(Prices(reasoner=MODEL, coder=MODEL))
    assert lateness(found, budget=budget, brief=brief).startswith("`deadline_s`") == is_late
    assert over_budget(found, budget=budget, brief=brief) == ()
