"""Injected faults: what is written as ``seed:rate``, the same dice for the same seed and role, and nothing when off."""

from __future__ import annotations

import pytest

from rayloom.db import faults
from rayloom.db.faults import SeededFaults, install, parse


@pytest.fixture(autouse=True)
def _off_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "injector", None)


def test_a_seed_and_a_rate() -> None:
    assert parse("7:0.02") == (7, 0.02)
    assert parse("-1:0") == (-1, 0.0)


@pytest.mark.parametrize("text", ["7", "7:", ":0.1", "x:0.1", "7:x", "7:1", "7:-0.1", "7:nan", "7:0.1:2", "7.5:0.1"])
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="must be seed:rate"):
        parse(text)


def test_the_same_seed_and_role_strike_at_the_same_passages() -> None:
    def strikes(seed: int, role: str) -> list[bool]:
        dice = SeededFaults(seed, 0.3, role)
        return [dice.strikes_now(faults.DATABASE, "before") for _ in range(200)]

    assert strikes(7, "worker") == strikes(7, "worker")
    assert strikes(7, "worker") != strikes(7, "scheduler")
    assert strikes(7, "worker") != strikes(8, "worker")
    assert 30 < sum(strikes(7, "worker")) < 90


def test_off_means_that_there_is_nobody_to_ask() -> None:
    install("", "worker")
    assert faults.injector is None


def test_a_rate_of_zero_never_strikes() -> None:
    install("7:0", "worker")
    assert isinstance(faults.injector, SeededFaults)
    assert not any(faults.injector.strikes_now(faults.LANE, "after") for _ in range(100))
