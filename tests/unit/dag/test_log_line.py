"""A line of the log says where it belongs, and is the system's own unless told otherwise."""

from __future__ import annotations

from datetime import UTC, datetime

from rayloom.dag.log_line import LogLine

AT = datetime(2026, 11, 24, tzinfo=UTC)


def test_a_line_of_the_task_itself_names_no_subtask() -> None:
    line = LogLine(at=AT, task_id="t", message="split")
    assert (line.subtask, line.attempt, line.stream, line.level, line.fields) == (None, None, "system", "INFO", {})


def test_lines_do_not_share_their_fields() -> None:
    first, second = (LogLine(at=AT, task_id="t", message="m") for _ in range(2))
    first.fields["seen"] = True
    assert second.fields == {}
