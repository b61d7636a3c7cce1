"""Which numbers of an endpoint are believed."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.model import ModelView
from rayloom.tools.models.usage import use_of

VIEW = ModelView(name="a", model="m", context_tokens=8_000, answer_tokens=1_000, price_in=1, price_out=2)


@pytest.mark.parametrize(
    ("reported", "used", "is_estimated"),
    [
        ({"prompt_tokens": 1_100, "completion_tokens": 1_100}, (1_100, 1_100), False),
        ({"prompt_tokens": 1_101, "completion_tokens": 1_101}, (100, 100), True),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (100, 100), True),
        ({"prompt_tokens": 90, "completion_tokens": -1}, (90, 100), True),
        ({"prompt_tokens": 90}, (90, 100), True),
        ({"prompt_tokens": 90, "completion_tokens": 1_050, "completion_tokens_details": {"reasoning_tokens": 950}},
         (90, 1_050), False),
        # More thoughts than it may have, and fewer tokens than thoughts: neither can be.
        ({"prompt_tokens": 90, "completion_tokens": 9_000, "completion_tokens_details": {"reasoning_tokens": 8_900}},
         (90, 100), True),
        ({"prompt_tokens": 90, "completion_tokens": 80, "completion_tokens_details": {"reasoning_tokens": 90}},
         (90, 80), False),
        ({"prompt_tokens": 90, "completion_tokens": 80, "completion_tokens_details": None}, (90, 80), False),
    ],
    ids=range(9),
)  # fmt: skip
def test_what_is_believed(reported: dict[str, Any], used: tuple[int, int], is_estimated: bool) -> None:
    found = use_of(VIEW, reported, counted_in=100, counted_out=100)
    assert ((found.tokens_in, found.tokens_out), found.is_estimated) == (used, is_estimated)
    assert found.cost_usd == pytest.approx((used[0] + 2 * used[1]) / 1_000_000)


def test_an_answer_of_nothing_may_have_cost_nothing() -> None:
    assert not use_of(VIEW, {"prompt_tokens": 9, "completion_tokens": 0}, counted_in=9, counted_out=0).is_estimated
