"""Who starts first."""

from __future__ import annotations

from itertools import pairwise

from rayloom.dag.order import EPOCH_MS, queue_score

NOW = EPOCH_MS + 10**10


def _score(priority: int = 5, created_ms: int = NOW, rank: int = 1) -> float:
    return queue_score(priority=priority, created_ms=created_ms, rank=rank)


def test_priority_outweighs_age_and_age_outweighs_rank() -> None:
    in_order = [
        _score(priority=10, created_ms=NOW + 10**9),
        _score(created_ms=NOW - 1, rank=1),
        _score(rank=200),
        _score(rank=2),
        _score(rank=1),
        _score(created_ms=NOW + 1, rank=255),
        _score(priority=1, created_ms=EPOCH_MS, rank=255),
    ]
    assert all(earlier < later for earlier, later in pairwise(in_order))


def test_every_score_is_a_whole_number_that_a_double_holds() -> None:
    for score in (_score(priority=1, created_ms=2**60, rank=0), _score(priority=10, created_ms=0, rank=10**9)):
        assert 0 <= score < 2**53
        assert score == int(score)


def test_ranks_and_times_beyond_the_range_count_as_its_ends() -> None:
    assert _score(rank=255) == _score(rank=100_000)
    assert _score(rank=0) == _score(rank=-1)
    assert _score(created_ms=0) == _score(created_ms=EPOCH_MS)
