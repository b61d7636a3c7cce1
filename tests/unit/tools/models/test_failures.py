"""What endpoints say when they fail, in the shapes of several, and what it means."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.dag.errors import Transient
from rayloom.dag.model import ProviderLimits
from rayloom.tools.models.failures import EXCERPT_CHARS, Failure, provider_limits, span_s
from rayloom.tools.models.settings import ModelSettings

SETTINGS = ModelSettings(base_url="http://host/v1", model="m", api_key=SecretStr("sk-geheim"))


def failure(body: object, status: int = 400, **headers: str) -> Failure:
    return Failure.read(body, status=status, headers=headers, fallback="nothing")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no", "param": "seed", "code": "x"}}, "no"),
        ({"message": "no"}, "no"),
        ({"error": "no"}, "no"),
        ({"detail": "no"}, "no"),
        ({"object": "error", "message": "no", "code": 400}, "no"),
        ("no", "no"),
        (None, "nothing"),
        ({}, "nothing"),
        ([], "nothing"),
        ({"error": {"message": None}}, "nothing"),
    ],
    ids=["openai", "unwrapped", "ollama", "fastapi", "vllm", "text", "none", "empty", "list", "null"],
)
def test_errors_have_many_shapes(body: Any, message: str) -> None:
    assert failure(body).message == message


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "the request exceeds the available context size, try increasing it",
        "'max_tokens' is too large: 9. This model's maximum context length is 8 tokens and your request has 7",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Input length 5000 exceeds model's context window",
    ],
    ids=["openai", "llama.cpp", "vllm", "hosted", "window"],
)
def test_a_context_that_is_too_short_is_told_in_many_ways(said: str) -> None:
    found = failure({"error": {"message": said}})
    assert found.error(SETTINGS).code == "CONTEXT_TOO_LONG"
    assert not found.may_be_an_option


def test_what_is_shown_is_short_and_without_the_key() -> None:
    shown = failure({"error": "a\0sk-geheim" + "b" * 10_000}).error(SETTINGS).message
    assert "geheim" not in shown
    assert "\0" not in shown
    assert len(shown) < EXCERPT_CHARS + 100


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0), ("6m0s", 360.0), ("20ms", 0.02), ("1h2m3.5s", 3_723.5), ("12", 12.0), ("0.25", 0.25),
        ("2m", 120.0),
        ("", None), (None, None), ("soon", None), ("-1", None), ("1d", None), ("9" * 12, None), ("9" * 9, 86_400.0),
        ("1e3", None), ("١s", None),
    ],
)  # fmt: skip
def test_spans_of_time(text: str | None, seconds: float | None) -> None:
    assert span_s(text) == seconds


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "later"}, None),
        ({}, None),
    ],
    ids=["seconds", "fraction", "milliseconds", "date", "word", "none"],
)
def test_how_long_it_asks_to_be_left_alone(headers: dict[str, str], wait_s: float | None) -> None:
    error = failure(None, 429, **headers).error(SETTINGS)
    assert isinstance(error, Transient)
    assert error.retry_after_s == wait_s


def test_limits_are_read_where_they_are_told() -> None:
    assert provider_limits({}) is None
    assert provider_limits({"x-ratelimit-remaining-tokens": "many", "x-ratelimit-reset-tokens": "?"}) is None
    assert provider_limits({"x-ratelimit-remaining-tokens": "0"}) == ProviderLimits(tokens_left=0)
