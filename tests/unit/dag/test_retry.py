"""The back-off: at least the promised wait, never past the cap."""

from __future__ import annotations

import pytest

from rayloom.dag.retry import delay_s


def test_the_wait_doubles() -> None:
    assert [delay_s(n, initial_s=1, max_s=60, jitter=0) for n in range(7)] == [1, 2, 4, 8, 16, 32, 60]


def test_jitter_only_adds_and_stays_under_the_cap() -> None:
    assert delay_s(1, initial_s=1, max_s=60, jitter=1) == 3
    assert delay_s(1, initial_s=1, max_s=60, jitter=0.5) == 2.5
    assert delay_s(5, initial_s=1, max_s=40, jitter=1) == 40


def test_any_number_of_retries_stays_finite() -> None:
    assert delay_s(100_000, initial_s=1, max_s=60, jitter=1) == 60


@pytest.mark.parametrize("wrong", [{"retry": -1}, {"initial_s": -1}, {"max_s": -1}, {"jitter": -0.1}, {"jitter": 1.1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    given = {"retry": 1, "initial_s": 1, "max_s": 60, "jitter": 0} | wrong
    with pytest.raises(ValueError, match="no delay for"):
        delay_s(int(given.pop("retry")), **given)
