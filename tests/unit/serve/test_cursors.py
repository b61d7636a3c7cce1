"""Cursors and query words, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.serve import cursors
from rayloom.serve.problems import Problem

MOMENTS = st.integers(0, 2**52).map(lambda micros: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros))


@given(at=MOMENTS, id_=st.uuids())
def test_a_cursor_of_a_moment_is_read_back(at: datetime, id_: UUID) -> None:
    assert cursors.decode_moment("tasks", cursors.encode_moment("tasks", at, id_)) == (at, id_)


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        cursors.decode("tasks", text, (int, str))
    assert caught.value.status == 422
    assert caught.value.errors[0].pointer == "/query/cursor"


def test_a_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(Problem):
        cursors.decode("keys", cursors.encode("tasks", 1), (int,))
    with pytest.raises(Problem):
        cursors.decode("tasks", cursors.encode("tasks", 2**63), (int,))
    with pytest.raises(Problem):
        cursors.decode_moment("tasks", cursors.encode("tasks", 1, "not a uuid"))


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-01-31T12:00:00Z", 12),
        ("2026-01-31t12:00:00z", 12),
        ("2026-01-31 12:00:00Z", 12),
        ("2026-01-31T12:00:00.0000000001Z", 12),
        ("2026-01-31T11:59:60Z", 12),
        ("2026-01-31T12:00:00-00:00", 12),
        ("2026-01-31T12:00:00", 12),
        ("2026-01-31T12:00:00+02:00", 10),
        ("2026-01-31T12:00:00 02:00", 10),
        ("2026-01-31", 0),
    ],
)
def test_times_are_read_as_utc(text: str, hour: int) -> None:
    assert cursors.moment("since", text) == datetime(2026, 1, 31, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "2026", "2026-01", "2026-W05", "2026-W05-6", "20260101", "20260101T000000Z", "2026-01-31T12", "2026-01-31T12Z",
     "2026-01-31T12:00Z", "2026-01-31T12:00:00,5Z", "2026-01-31T12:00:00+02", "2026-01-31T12:00:00+0200",
     "2026-01-31T12:00:00+24:00", "2026-01-31T24:00:00Z", "2026-01-31T12:00:61Z", "2026-02-30", "2026-01-31Z",
     "2026-01-31x12:00:00Z", "0000-01-01", "0001-01-01T00:00:00+01:00", "２０２６-01-31"],
)  # fmt: skip
def test_what_is_no_time_of_rfc_3339_is_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        cursors.moment("since", text)
    assert [fault.pointer for fault in caught.value.errors] == ["/query/since"]


def test_words_are_taken_in_any_case_and_once() -> None:
    assert cursors.choices("status", ["failed,DONE", "Failed"], ("DONE", "FAILED")) == ("FAILED", "DONE")
    assert cursors.choices("status", None, ("DONE",)) == ()
    with pytest.raises(Problem, match="did you mean DONE"):
        cursors.choices("status", ["DON"], ("DONE",))
