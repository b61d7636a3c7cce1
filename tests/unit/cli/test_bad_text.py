"""What is no UTF-8, or no text of a header: one line that says what to do, and nothing is sent."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.unit.cli.api import FakeApi

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]
BAD = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", BAD),
        ("submit", "p", "--title", BAD),
        ("submit", "p", "--idempotency-key", BAD),
        ("plan", BAD),
        ("show", BAD),
        ("show", "t", BAD),
        ("list", "-q", BAD),
        ("logs", "t", "--subtask", BAD),
        ("retry", BAD),
        ("tools", "show", BAD),
        ("keys", "delete", BAD),
        ("dead-letters", "show", BAD),
        ("quotas", BAD),
        ("no-such-command", BAD),
        (BAD,),
    ],
)
def test_an_argument_that_is_not_utf_8(rayloom: Rayloom, api: FakeApi, capsys: Capture, arguments: list[str]) -> None:
    assert rayloom(*arguments) in (1, 2)
    told = capsys.readouterr().err
    assert any(said in told for said in ("UTF-8", "ASCII", "No such command"))
    assert "unexpected" not in told
    assert api.requests == []


@pytest.mark.parametrize("key", ["schlüssel", "rl_test\n", BAD])
def test_a_key_that_no_header_can_hold(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("RAYLOOM_API_KEY", key)
    assert rayloom("list") == 1
    assert "RAYLOOM_API_KEY" in (told := capsys.readouterr().err)
    assert "ASCII" in told
    assert "unexpected" not in told
    assert api.requests == []
