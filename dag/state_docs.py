"""The page that explains the states, made from the tables of transitions so that it can't say anything else.

``docs/states.md`` is what ``page()`` returns; a test holds the two together. To write it anew, in Python:
``Path("docs/states.md").write_text(page())``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeVar

from rayloom.dag.states import (
    SUBTASK_FINAL,
    SUBTASK_MOVES,
    SUBTASK_SETTLED,
    TASK_FINAL,
    TASK_MOVES,
    TASK_TERMINAL,
    Phase,
    SubtaskEvent,
    SubtaskStatus,
    TaskEvent,
    TaskStatus,
)

_Status = TypeVar("_Status", bound=StrEnum)
_Event = TypeVar("_Event", bound=StrEnum)

TASK_MEANING: Final[Mapping[TaskStatus, str]] = {
    TaskStatus.PENDING: "Accepted and on disk; nobody has looked at it yet.",
    TaskStatus.SPLITTING: "Its prompt is being turned into a plan, or its given plan is being verified.",
    TaskStatus.READY: "The plan is stored. Lasts only while the plan waits for approval.",
    TaskStatus.PROCESSING: "Its subtasks run; the last of its plan may still be being made.",
    TaskStatus.COMPLETED: "Every subtask has completed, or the others went on without it; the result is there.",
    TaskStatus.FAILED: "It can't go on by itself. A retry takes it back to PROCESSING, without a plan to PENDING.",
    TaskStatus.CANCELLED: "Somebody stopped it, or refused its plan.",
}

TASK_WHO: Final[Mapping[TaskEvent, tuple[str, str]]] = {
    TaskEvent.SPLIT_STARTED: ("scheduler", "takes the task, best priority first, and asks the parser for a plan"),
    TaskEvent.PLAN_ACCEPTED: (
        "scheduler",
        "stores the verified plan with all its subtasks, in one transaction; or what may run of it already",
    ),
    TaskEvent.STARTED: ("API or scheduler", "the plan needs no approval, or somebody approved it"),
    TaskEvent.REJECTED: ("API or scheduler", "somebody rejects the plan, or nobody has approved it in time"),
    TaskEvent.ALL_DONE: ("scheduler", "the last subtask completes, or is missing by its policy"),
    TaskEvent.GAVE_UP: (
        "scheduler",
        "no plan can be made, the plan is refused, nothing can run any more while a subtask is BLOCKED that is not "
        "one to go on without, or the deadline has passed",
    ),
    TaskEvent.CANCEL: ("API", "somebody cancels the task"),
    TaskEvent.RETRIED: ("API", "somebody retries what is BLOCKED, or what a budget or a model kept from being planned"),
    TaskEvent.REPLANNED: ("API", "somebody retries a task without a plan: a budget, or a model, did not allow one"),
}

SUBTASK_MEANING: Final[Mapping[SubtaskStatus, str]] = {
    SubtaskStatus.PENDING: "In a plan that is not accepted yet.",
    SubtaskStatus.READY: "Waits for its dependencies.",
    SubtaskStatus.AWAITING_APPROVAL: "Could run, and waits for somebody to allow it.",
    SubtaskStatus.QUEUED: "Waits for its turn, for room on a node, or for quota.",
    SubtaskStatus.RUNNING: "An attempt is under way.",
    SubtaskStatus.COMPLETED: "Its output is on disk.",
    SubtaskStatus.FAILED: "An attempt failed; `retry_at` says when the next one is due.",
    SubtaskStatus.BLOCKED: (
        "No attempt is left, or none would help: a dead letter that waits for a person. With `on_failure` `continue` "
        "or `default` its dependents go on without it: it is missing."
    ),
    SubtaskStatus.SKIPPED: "What it depends on, at any distance, is BLOCKED, and is not to be gone on without.",
    SubtaskStatus.CANCELLED: (
        "Its task was cancelled, or ended otherwise, before it completed; or it had begun before its plan was whole, "
        "and the whole plan does without it."
    ),
}

SUBTASK_WHO: Final[Mapping[SubtaskEvent, tuple[str, str]]] = {
    SubtaskEvent.ACCEPTED: ("scheduler", "the plan is accepted"),
    SubtaskEvent.FREED: (
        "database",
        "the last dependency completes, in the statement that records its output, or is missing by its policy",
    ),
    SubtaskEvent.HELD: ("database", "the same, and the subtask wants approval"),
    SubtaskEvent.APPROVED: ("API", "somebody approves it"),
    SubtaskEvent.REJECTED: (
        "API or scheduler",
        "somebody rejects it, or nobody has approved it in time; the error has the code `REJECTED`",
    ),
    SubtaskEvent.STARTED: ("scheduler", "claims it: a new attempt number, a lease, a Ray task"),
    SubtaskEvent.SUCCEEDED: ("scheduler", "commits the outcome of the current attempt"),
    SubtaskEvent.ATTEMPT_FAILED: (
        "scheduler",
        "commits a failed or timed-out attempt, or finds that the worker, node or scheduler of the attempt is gone",
    ),
    SubtaskEvent.RETRY_DUE: ("scheduler", "attempts are left; the subtask may start when its back-off is over"),
    SubtaskEvent.FELL_BACK: (
        "database",
        "its own attempts are spent, or would not help, or its tool's breaker is open: the next ones run its fallback",
    ),
    SubtaskEvent.SPENT: (
        "scheduler",
        "the attempts are spent, those of the fallback too, or the error is one that no attempt would mend",
    ),
    SubtaskEvent.DEPENDENCY_BLOCKED: (
        "database",
        "a dependency becomes BLOCKED, and is not one to go on without, or SKIPPED",
    ),
    SubtaskEvent.RETRIED: ("API", "somebody retries the dead letter, or the task"),
    SubtaskEvent.REVIVED: ("database", "the BLOCKED subtask that it was skipped for is retried"),
    SubtaskEvent.CANCEL: (
        "API or scheduler",
        "somebody cancels the task, it ends otherwise, or the whole plan does without the subtask; a running attempt "
        "is stopped with it",
    ),
}

PHASE_MEANING: Final[Mapping[Phase, str]] = {
    Phase.PREPARE_ENV: "References are resolved, the input is checked in full, the tool is looked up.",
    Phase.EXECUTING: "The tool runs; its output lines stream to the log.",
    Phase.POST_PROCESS: "The output is checked, made fit to store, and handed over.",
}

_INTRODUCTION: Final = """\
# States

<!-- Made from the tables in dag/states.py by dag/state_docs.py. Change those, not this page. -->

Tasks and subtasks are state machines. A transition that is not drawn here does not exist: asking for it raises
`ILLEGAL_TRANSITION`, and the database refuses the write as well, since its guard is made from the same tables. Every
write names the state that it expects to find, and for an attempt its number. A write that finds another state changes
nothing: somebody was faster.

Three hands move things. The **API** moves them because a person asked. The **scheduler** moves them because work came
up or ended. The **database** moves what follows from another move, in the same statement, so that no crash can come
between the two. Workers move nothing: an attempt returns its outcome, and the scheduler commits it.
"""


def page() -> str:
    """The whole page, as Markdown."""
    sections = [
        _INTRODUCTION,
        "## Task\n",
        _diagram(TaskStatus, TASK_MOVES, TaskStatus.PENDING, TASK_FINAL),
        _meanings("status", TASK_MEANING),
        _transitions(TASK_MOVES, TASK_WHO),
        f"{_listed(TASK_TERMINAL)} end a task, and close its event\n"
        f"stream. {_listed(TASK_FINAL)} are final: nothing ever leaves them.\n",
        "## Subtask\n",
        _diagram(SubtaskStatus, SUBTASK_MOVES, SubtaskStatus.PENDING, SUBTASK_FINAL),
        _meanings("status", SUBTASK_MEANING),
        _transitions(SUBTASK_MOVES, SUBTASK_WHO),
        f"A subtask that is {_listed(SUBTASK_SETTLED, 'or')} waits for nothing that the system would do by itself.\n"
        f"{_listed(SUBTASK_FINAL)} are final. In a fork, what is taken over from another task begins as\n"
        f"`{SubtaskStatus.COMPLETED}`: its first event comes from no other status.\n",
        "### Phases of a running attempt\n",
        "RUNNING is one state for the machine; its `phase` says how far the attempt has come.\n",
        _meanings("phase", PHASE_MEANING),
    ]
    return "\n".join(sections)


def _diagram(
    statuses: type[_Status],
    moves: Mapping[tuple[_Status, _Event], _Status],
    first: _Status,
    final: frozenset[_Status],
) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    # One arrow for each pair of states, with all its events, so that the drawing stays readable.
    for source in statuses:
        for target in statuses:
            events = [event for (start, event), end in moves.items() if (start, end) == (source, target)]
            if events:
                lines.append(f"    {source} --> {target}: {', '.join(events)}")
    lines.extend(f"    {status} --> [*]" for status in statuses if status in final)
    return "\n".join([*lines, "```", ""])


def _meanings(title: str, meaning: Mapping[_Status, str]) -> str:
    return _table((title, "meaning"), [(f"`{status}`", text) for status, text in meaning.items()])


def _transitions(moves: Mapping[tuple[_Status, _Event], _Status], who: Mapping[_Event, tuple[str, str]]) -> str:
    rows = [
        (f"`{source}`", event, f"`{target}`", who[event][0], who[event][1]) for (source, event), target in moves.items()
    ]
    return _table(("from", "event", "to", "who", "when"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + [""])


def _listed(statuses: frozenset[_Status], last: str = "and") -> str:
    *front, end = (f"`{status}`" for status in sorted(statuses))
    return f"{', '.join(front)} {last} {end}"
