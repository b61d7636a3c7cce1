"""Messages offer what was probably meant."""

from __future__ import annotations

from rayloom.dag.nearest import MAX_HINTS, Hints, did_you_mean, nearest


def test_the_nearest_names_come_first() -> None:
    assert nearest("http.requst", ["sql.query", "http.request", "http.fetch_text"])[0] == "http.request"


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["abc"]) == ""
    assert did_you_mean("abd", ["abc"]) == "; did you mean abc?"


def test_many_names_do_not_make_a_message_slow() -> None:
    assert nearest("n1", (f"n{i}" for i in range(10**9)), count=1) == ["n1"]


def test_long_names_are_fewer_names() -> None:
    assert nearest("n" * 1_000, ["n" * 128, *["m" * 128] * 200, "n" * 127]) == ["n" * 128]


def test_only_so_many_hints_are_given() -> None:
    hints = Hints()
    assert [hints("abd", ["abc"]) for _ in range(MAX_HINTS + 2)] == ["; did you mean abc?"] * MAX_HINTS + [""] * 2
