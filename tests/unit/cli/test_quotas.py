"""`rayloom usage` and `rayloom quotas`: what they ask for, and what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from tests.unit.cli.api import FakeApi

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]
USED: dict[str, Any] = {
    "items": [{"day": "2026-11-26", "model": "m", "tool": None, "tokens_in": 3, "tokens_out": 4, "cost_usd": 0.5}],
    "total": {"tokens_in": 3, "tokens_out": 4, "cost_usd": 0.5},
    "reserved": {"tokens": 9, "cost_usd": 0.0},
    "warnings": ["max_tokens: 85% of it is used"],
    "alerts": [
        {"at": "t1", "level": "user", "id": "u", "limit": "max_tokens", "share": 0.85, "over_at": None},
        {"at": "t0", "level": "key", "id": "k", "limit": "tokens_per_min", "share": 0.9, "over_at": "t1"},
    ],
}
QUOTA = {
    "max_tokens": 5, "max_cost_usd": None, "tokens_per_min": 7, "requests_per_min": None, "max_concurrent": None,
}  # fmt: skip


def test_what_was_used_is_shown_with_what_is_nearly_used_up(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    api.script["GET /api/v1/usage"] += [JSONResponse(USED), JSONResponse(USED)]
    assert rayloom("usage", "--user-id", "u") == 0
    assert api.sent[-1][0] == "user_id=u"
    assert capsys.readouterr().out.splitlines() == [
        "2026-11-26\tm\t\t3\t4\t0.5",
        "total\t3 + 4 tokens, 0.5 USD",
        "reserved\t9 tokens, 0.0 USD",
        "warning\tmax_tokens: 85% of it is used",
        "alert\tt1: 85% of max_tokens of user u",
        "alert\tt0, until t1: 90% of tokens_per_min of key k",
    ]
    assert rayloom("usage", "--json") == 0
    assert json.loads(capsys.readouterr().out) == USED


def test_limits_are_shown_and_those_that_are_given_changed(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    api.script["GET /api/v1/quotas/u"] += [JSONResponse(QUOTA)] * 2
    changed = {**QUOTA, "max_tokens": None, "max_cost_usd": 1.5, "max_concurrent": 2}
    api.script["PUT /api/v1/quotas/u"].append(JSONResponse(changed))
    assert rayloom("quotas", "u") == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["max_tokens\t5", "max_cost_usd\t"]
    given = ["--max-tokens", "none", "--max-cost-usd", "1.5", "--max-concurrent", "2"]
    assert rayloom("quotas", "u", *given, "--json") == 0
    assert json.loads(api.sent[-1][1]) == json.loads(capsys.readouterr().out) == changed
    api.script["GET /api/v1/keys/k/quota"].append(JSONResponse(QUOTA))
    assert rayloom("quotas", "k", "--key") == 0


@pytest.mark.parametrize(
    ("option", "text"),
    [("--max-tokens", "many"), ("--max-tokens", "-1")]
    + [("--max-cost-usd", text) for text in ("nan", "inf", "-inf", "1e999", "-0.5")],
)
def test_what_is_no_limit_is_a_usage_error(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, option: str, text: str
) -> None:
    """JSON would say null of what is not finite, and so take the limit away."""
    assert rayloom("quotas", "u", option, text) == 2
    assert f"`{text}` is no " in capsys.readouterr().err
    assert api.sent == []
