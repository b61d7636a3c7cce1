"""One subtask on the command line, and why it is not running yet."""

from __future__ import annotations

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.output import Output, items_of, one_line, seconds
from rayloom.dag.values import JsonObject

_FIELDS = (
    "id", "name", "status", "phase", "tool", "instruction", "skills", "depends_on", "queued_at", "started_at",
    "finished_at", "retry_at",
)  # fmt: skip


def show_subtask(out: Output, task_id: str, subtask: str, *, why: bool) -> None:
    """Show a subtask with its attempts; ``why``: what it waits for."""
    with connect() as client:
        answer = client.waiting(task_id, subtask) if why else client.subtask(task_id, subtask)
    if out.as_json:
        out.json(answer)
    elif why:
        _show_reasons(out, answer)
    else:
        _show(out, answer)


def _show_reasons(out: Output, answer: JsonObject) -> None:
    reasons = items_of(answer, "reasons")
    out.fields([("status", answer.get("status"))])
    if reasons:
        out.table(("KIND", "UNTIL", "WHY"), [(one.get("kind"), one.get("until"), one.get("detail")) for one in reasons])
    elif out.rich:
        out.line("it waits for nothing")


def _show(out: Output, answer: JsonObject) -> None:
    out.fields([(name, _text(answer[name])) for name in _FIELDS if answer.get(name)])
    rows = [
        (one.get("attempt"), one.get("status"), one.get("started_at"), seconds(one.get("duration_ms")), _error(one))
        for one in items_of(answer, "attempts")
    ]
    if rows:
        out.line()
        out.table(("ATTEMPT", "STATUS", "STARTED", "TOOK", "ERROR"), rows)
    if answer.get("output") is not None:
        out.line()
        out.value(answer["output"])


def _text(value: object) -> object:
    return ", ".join(str(each) for each in value) if isinstance(value, list) else value


def _error(attempt: JsonObject) -> str:
    error = attempt.get("error")
    return f"{error.get('code')}: {one_line(error.get('message'))}" if isinstance(error, dict) else ""
