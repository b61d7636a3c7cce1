"""docs/states.md says what the tables of transitions say."""

from __future__ import annotations

from pathlib import Path

from rayloom.dag.state_docs import PHASE_MEANING, SUBTASK_MEANING, SUBTASK_WHO, TASK_MEANING, TASK_WHO, page
from rayloom.dag.states import SUBTASK_MOVES, TASK_MOVES, Phase, SubtaskEvent, SubtaskStatus, TaskEvent, TaskStatus

PAGE = Path(__file__).resolve().parents[3] / "docs" / "states.md"


def test_the_page_is_the_one_that_the_tables_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write docs/states.md anew, as dag/state_docs.py says"


def test_every_status_event_and_phase_is_explained() -> None:
    assert set(TASK_MEANING) == set(TaskStatus)
    assert set(TASK_WHO) == set(TaskEvent)
    assert set(SUBTASK_MEANING) == set(SubtaskStatus)
    assert set(SUBTASK_WHO) == set(SubtaskEvent)
    assert set(PHASE_MEANING) == set(Phase)


def test_every_row_of_the_tables_is_drawn_and_told() -> None:
    text = page()
    for moves in (TASK_MOVES, SUBTASK_MOVES):
        for (source, event), target in moves.items():
            assert f"| `{source}` | {event} | `{target}` |" in text
            arrows = [line for line in text.splitlines() if line.startswith(f"    {source} --> {target}: ")]
            assert any(event in arrow.partition(": ")[2].split(", ") for arrow in arrows)
