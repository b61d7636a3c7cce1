"""Options that several commands share."""

from __future__ import annotations

import pytest
import typer

from rayloom.cluster.cli.options import budget_of


def test_a_budget_has_the_limits_that_are_given() -> None:
    assert budget_of(deadline_s=1.5, max_tokens=None, max_cost_usd=0.0) == {"deadline_s": 1.5, "max_cost_usd": 0.0}


@pytest.mark.parametrize("limit", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_refused(limit: float) -> None:
    with pytest.raises(typer.BadParameter, match="finite"):
        budget_of(deadline_s=None, max_tokens=None, max_cost_usd=limit)
