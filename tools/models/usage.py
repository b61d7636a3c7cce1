"""What a call has used: as the endpoint says, where that can be, else as counted here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rayloom.dag.model import ModelUse, ModelView

MANY_TIMES: Final = 10
SOME: Final = 100
"""An endpoint whose numbers are more than ``MANY_TIMES`` ours and ``SOME`` is not believed."""


def use_of(view: ModelView, reported: Mapping[str, Any] | None, *, counted_in: int, counted_out: int) -> ModelUse:
    """The tokens and money of a call, whose question and answer were counted as so long.

    What a model thinks and does not say (``reasoning_tokens``) is believed up to the longest answer that it may give.
    """
    said = reported or {}
    used_in = _credible(said.get("prompt_tokens"), counted_in)
    used_out = _credible_out(said, counted_out, view.answer_tokens)
    tokens_in = counted_in if used_in is None else used_in
    tokens_out = counted_out if used_out is None else used_out
    return ModelUse(
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cost_usd=view.cost_usd(tokens_in, tokens_out),
        is_estimated=used_in is None or used_out is None,
    )


def _credible_out(said: Mapping[str, Any], counted: int, most: int) -> int | None:
    used = _number(said.get("completion_tokens"))
    details = said.get("completion_tokens_details")
    hidden = _number(details.get("reasoning_tokens")) if isinstance(details, Mapping) else None
    if used is None:
        return None
    if hidden is None or not hidden <= min(used, most):
        return _credible(used, counted)
    return None if _credible(used - hidden, counted) is None else used


def _credible(said: object, counted: int) -> int | None:
    number = _number(said)
    if number is None or number > counted * MANY_TIMES + SOME or (number == 0 and counted > 0):
        return None
    return number


def _number(value: object) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_number and isinstance(value, int) else None
