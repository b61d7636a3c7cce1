"""What was tried for a plan, as its record keeps it."""

from __future__ import annotations

import json

from rayloom.dag.model import ModelUse
from rayloom.dag.tried import NOTHING_KEPT, Kept, PlanCall, Tried

USE = ModelUse(tokens_in=5, tokens_out=6, cost_usd=0.1, is_estimated=True)
CALL = PlanCall(purpose="split", model="m", use=USE, began_s=0.5, duration_s=0.25, fault_count=2)


def test_what_is_kept_is_what_was_tried() -> None:
    tried = Tried(notes=("a", "b"), calls=(CALL, CALL), text="{")
    kept = Kept(tried=tried, told=Tried(notes=("a",), calls=(CALL, CALL)))
    stored = json.loads(json.dumps({"source": "model", **kept.meta()}))
    assert Kept.of_meta(stored) == kept


def test_without_an_answer_there_is_nothing_to_go_on_from() -> None:
    assert Kept(tried=Tried(notes=("a",), calls=(CALL,))).meta() == {}
    assert Kept.of_meta(None) == Kept.of_meta({"source": "model"}) == NOTHING_KEPT
