"""Whoever makes a batch fail is found by halves, and only when the database can't be to blame."""

from __future__ import annotations

import pytest

from rayloom.actors.suspects import PATIENCE, Suspects


@pytest.mark.parametrize("culprit", [0, 1, 100, 254, 255])
def test_a_culprit_is_found_among_many_with_few_failures(culprit: int) -> None:
    suspects, waiting, failures, given_up = Suspects(), list(range(256)), 0, []
    while waiting:
        batch = waiting[: suspects.limit(256)]
        if culprit in batch:
            failures += 1
            if suspects.failed(len(batch)):
                given_up.append(waiting.pop(0))
        else:
            suspects.written(len(batch))
            del waiting[: len(batch)]
    assert given_up == [culprit]
    assert failures <= 1 + PATIENCE + 8 + PATIENCE


def test_what_succeeds_in_the_end_was_not_suspect() -> None:
    suspects = Suspects()
    for _ in range(5):
        assert [suspects.failed(8) for _ in range(PATIENCE)] == [False] * PATIENCE
        assert suspects.limit(256) == 256
        suspects.written(8)
        assert not suspects.alert


def test_after_the_suspects_batches_are_as_large_as_ever() -> None:
    suspects = Suspects()
    for _ in range(1 + PATIENCE):
        suspects.failed(8)
    assert suspects.limit(256) == 4
    suspects.written(4)
    assert (suspects.limit(256), suspects.alert) == (4, True)
    suspects.written(4)
    assert (suspects.limit(256), suspects.alert) == (256, False)
