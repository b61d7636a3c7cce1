"""What the tools of the MCP server take. What they have in common with routes is checked where the routes check it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from rayloom.serve.bodies import Body
from rayloom.serve.cursors import MAX_CURSOR_CHARS
from rayloom.serve.intake import MAX_KEY_CHARS, Submission
from rayloom.serve.routes.retries import RetryBody

MAX_WAIT_S: Final = 300.0
"""Nobody waits longer in one call; who wants to know asks again."""
DEFAULT_WAIT_S: Final = 30.0
_MAX_ID_CHARS: Final = 128

_TaskId = Annotated[str, Field(max_length=_MAX_ID_CHARS, description="as `submit_task` gave it")]
_Subtask = Annotated[str, Field(max_length=_MAX_ID_CHARS, description="the id of a subtask in the task's plan")]
_Cursor = Annotated[
    str | None, StringConstraints(max_length=MAX_CURSOR_CHARS), Field(description="`next_cursor` of the page before")
]
_Wait = Annotated[
    float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="wait so many seconds for the task's end")
]


class HowToSubmit(Body):
    """What ``submit_task`` takes beside the submission itself."""

    wait_s: _Wait = 0.0
    idempotency_key: Annotated[str, StringConstraints(max_length=MAX_KEY_CHARS)] | None = Field(
        default=None, description="a second call with the same key and the same arguments gives the first one's task"
    )


class SubmitTask(HowToSubmit, Submission):
    """Arguments of ``submit_task``: the body of a submission, and how it is called."""


class OneTask(Body):
    """Arguments that name a task."""

    task_id: _TaskId


class WaitForTask(OneTask):
    """Arguments of ``wait_for_task``."""

    timeout_s: _Wait = DEFAULT_WAIT_S


class ListSubtasks(OneTask):
    """Arguments of ``list_subtasks``."""

    status: list[str] = Field(default=[], max_length=32, description="only these, such as BLOCKED; empty: all")
    limit: int = Field(default=50, ge=1, le=500)
    cursor: _Cursor = None


class GetResult(OneTask):
    """Arguments of ``get_result``."""

    subtask: _Subtask | None = Field(default=None, description="give the output of this subtask instead")


class GetLogs(OneTask):
    """Arguments of ``get_logs``."""

    subtask: _Subtask | None = None
    level: list[str] = Field(default=[], max_length=32, description="only these, such as ERROR; empty: all")
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: _Cursor = None


class RetryTask(RetryBody, OneTask):
    """Arguments of ``retry_task``: what is retried, and with which budget."""


class ListTasks(Body):
    """Arguments of ``list_tasks``."""

    status: list[str] = Field(default=[], max_length=32, description="only these, such as PROCESSING; empty: all")
    q: str | None = Field(default=None, max_length=1000, description="text in title or prompt")
    limit: int = Field(default=20, ge=1, le=500)
    cursor: _Cursor = None


class ListTools(Body):
    """Arguments of ``list_tools``."""

    name: str | None = Field(default=None, max_length=_MAX_ID_CHARS, description="one tool, with its schemas")
    limit: int = Field(default=100, ge=1, le=500)
    cursor: _Cursor = None
