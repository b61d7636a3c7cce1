"""What the parser proposes, as it is stored."""

from __future__ import annotations

from dataclasses import replace

from rayloom.dag.model import ModelUse
from rayloom.dag.planned import Planned
from rayloom.dag.planning.estimate import Estimate
from rayloom.dag.tried import PlanCall, Tried
from rayloom.dag.values import JsonObject

COMMON: JsonObject = {"source": "model", "language": "en", "notes": ["n"], "parsed_s": 0.0, "split_s": 1.0}


def test_what_was_not_found_is_not_stored() -> None:
    planned = Planned(plan={}, source="model", notes=("n",), language="en", parsed_s=0.0, split_s=1.0)
    assert planned.meta() == COMMON
    assert planned.use == ModelUse()


def test_what_was_tried_is_told_without_a_plan() -> None:
    use = ModelUse(tokens_in=1, tokens_out=2, cost_usd=0.5)
    call = PlanCall(purpose="repair", model="m", use=use, began_s=0.1, duration_s=0.2, fault_count=1)
    tried = Tried(notes=("n",), calls=(call, replace(call, purpose="split", fault_count=0)))
    meta = tried.meta()
    assert (meta["notes"], meta["repairs"]) == (["n"], 1)
    assert meta["usage"] == {"tokens": 6, "cost_usd": 1.0}
    assert Tried().meta() == {}
    assert [each.line for each in tried.calls] == [
        "repair: m, 1 + 2 tokens, 0.500000 USD, 0.2 s: 1 faults",
        "split: m, 1 + 2 tokens, 0.500000 USD, 0.2 s",
    ]


def test_everything_that_was_found_is_stored() -> None:
    use = ModelUse(tokens_in=1, tokens_out=2, cost_usd=0.5)
    call = PlanCall(purpose="split", model="m", use=use, began_s=0.1, duration_s=0.2, fault_count=1)
    planned = Planned(
        plan={},
        source="model",
        notes=("n",),
        language="en",
        parsed_s=0.0,
        split_s=1.0,
        repairs=1,
        brief={"intent": "x"},
        calls=(call, call),
        estimate=Estimate(tokens=1, cost_usd=0.0, seconds=2.0, subtasks=()),
        over_budget=("too much",),
        joiner="answer",
    )
    told: JsonObject = {
        "purpose": "split",
        "model": "m",
        "tokens_in": 1,
        "tokens_out": 2,
        "cost_usd": 0.5,
        "is_estimated": False,
        "began_s": 0.1,
        "duration_s": 0.2,
        "faults": 1,
    }
    assert planned.meta() == COMMON | {
        "repairs": 1,
        "usage": {"tokens": 6, "cost_usd": 1.0},
        "calls": [told, told],
        "brief": {"intent": "x"},
        "estimate": {"tokens": 1, "cost_usd": 0.0, "seconds": 2.0},
        "over_budget": ["too much"],
        "joiner": "answer",
    }
