"""Messages offer what was probably meant."""

from __future__ import annotations

from rayloom.dag.nearest import did_you_mean, nearest


def test_the_nearest_names_come_first() -> None:
    assert nearest("http.requst", ["sql.query", "http.request", "http.fetch_text"])[0] == "http.request"


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["abc"]) == ""
    assert did_you_mean("abd", ["abc"]) == "; did you mean abc?"


def test_many_names_do_not_make_a_message_slow() -> None:
    assert nearest("n1", (f"n{i}" for i in range(10**9)), count=1) == ["n1"]
