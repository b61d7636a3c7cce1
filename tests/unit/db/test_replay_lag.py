"""How far behind a replica is, told by one clock."""

from __future__ import annotations

from rayloom.db.replay_lag import MAX_SAMPLES, ReplayLag


def test_nothing_is_known_before_the_primary_was_seen() -> None:
    assert ReplayLag().of(5.0, 100).lag_s is None


def test_one_that_has_all_is_not_late_however_long_nothing_was_written() -> None:
    lag = ReplayLag()
    for now in (0.0, 1.0, 500.0):
        lag.note(now, 100)
        assert (lag.of(now, 100).lag_s, lag.of(now, 100).lag_bytes) == (0.0, 0)


def test_it_is_as_late_as_the_oldest_that_it_lacks() -> None:
    lag = ReplayLag()
    lag.note(0.0, 100)
    lag.of(0.0, 100)
    for now, written in ((1.0, 200), (2.0, 300), (3.0, 400)):
        lag.note(now, written)
    assert lag.of(4.0, 250).lag_s == 2.0
    assert lag.of(4.0, 250).lag_bytes == 150
    assert lag.of(5.0, 399).lag_s == 2.0
    assert lag.of(6.0, 400).lag_s == 0.0


def test_the_first_position_must_be_reached_before_it_is_said() -> None:
    lag = ReplayLag()
    lag.note(0.0, 100)
    assert lag.of(0.0, 50).lag_s is None, "it may be hours late"
    lag.note(1.0, 200)
    assert lag.of(1.0, 99).lag_s is None
    assert lag.of(1.5, 100).lag_s == 0.5


def test_another_primary_begins_anew() -> None:
    lag = ReplayLag()
    lag.note(0.0, 1000)
    assert lag.of(0.0, 1000).lag_s == 0.0
    lag.note(1.0, 500)
    assert lag.of(1.0, 400).lag_s is None
    assert lag.of(1.0, 500).lag_s == 0.0


def test_what_it_remembers_is_bounded_and_the_oldest_stays() -> None:
    lag = ReplayLag()
    lag.note(0.0, 0)
    lag.of(0.0, 0)
    for second in range(1, 3 * MAX_SAMPLES):
        lag.note(float(second), second)
    assert len(lag._samples) == MAX_SAMPLES
    assert lag.of(3.0 * MAX_SAMPLES, 0).lag_s == 3 * MAX_SAMPLES - 1
