"""What calls of models cost."""

from __future__ import annotations

import pytest

from rayloom.dag.model import ModelUse, ModelView


def test_uses_add_up() -> None:
    used = ModelUse(tokens_in=10, tokens_out=2, cost_usd=0.5) + ModelUse(tokens_in=1, tokens_out=1, cost_usd=0.25)
    assert used == ModelUse(tokens_in=11, tokens_out=3, cost_usd=0.75)
    assert used.tokens == 14
    assert (used + ModelUse(is_estimated=True)).is_estimated
    assert not used.is_estimated


def test_prices_are_for_a_million_tokens() -> None:
    view = ModelView(name="a", model="a-1", context_tokens=8_000, answer_tokens=1_000, price_in=2, price_out=8)
    assert view.cost_usd(500_000, 250_000) == pytest.approx(3.0)
