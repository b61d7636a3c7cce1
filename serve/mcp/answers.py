"""What the tools of the MCP server give: models that clients are told of, and that an answer is held against."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Told(BaseModel):
    """A part of an answer: just these fields, nothing else of what the API knows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Error(Told):
    """Why a task or a subtask failed."""

    model_config = ConfigDict(frozen=True, extra="allow")

    code: str
    message: str = ""


class Progress(Told):
    """Subtasks counted by status, and the share that is COMPLETED; a plan that is open counts in it like one more."""

    total: int
    completed: int
    running: int
    queued: int
    ready: int
    pending: int
    awaiting_approval: int
    failed: int
    blocked: int
    skipped: int
    cancelled: int
    percent: float


class Subtask(Told):
    """A subtask without its output."""

    id: str
    name: str
    status: str
    phase: str | None
    tool: str | None
    depends_on: list[str]
    attempts: int
    error: Error | None


class Task(Told):
    """A task and how far it is."""

    task_id: str
    title: str
    status: str = Field(description="COMPLETED, FAILED and CANCELLED are ends; READY waits for a person's approval")
    priority: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    deadline_at: str | None
    plan_open: bool = Field(description="more subtasks may come: the plan is still being made, or never became whole")
    progress: Progress
    subtasks: list[Subtask] = Field(description="the first of them, without their outputs")
    subtasks_next_cursor: str | None = Field(description="where `list_subtasks` goes on; null: these are all")
    missing: list[str] = Field(description="subtasks that failed and that the task went on without")
    error: Error | None


class Submitted(Told):
    """A task that is on disk."""

    task_id: str
    status: str
    replayed: bool = Field(description="it is the task of an earlier call with this idempotency key")
    callback_secret: str | None = Field(default=None, description="what the webhook is signed with")
    task: Task | None = Field(default=None, description="the task after `wait_s`")


class Awaited(Told):
    """A task, after somebody waited for its end."""

    ended: bool = Field(description="false: it goes on; ask again")
    waited_s: float
    task: Task


class Subtasks(Told):
    """A page of subtasks, in the order of the plan."""

    items: list[Subtask]
    next_cursor: str | None


class Result(Told):
    """What a task, or one subtask of it, gave."""

    task_id: str
    subtask: str | None = None
    status: str
    result: Any = Field(
        description="null until it is COMPLETED. More than 256 KiB are {$blob: path, size, sha256}: "
        "GET that path of the API, with the same key"
    )
    missing: list[str] = Field(default=[], description="subtasks that failed and that the task went on without")
    error: Error | None


class LogLine(Told):
    """A line of a task's log."""

    id: str
    at: str
    level: str
    stream: str
    subtask: str | None
    attempt: int | None
    message: str
    fields: dict[str, Any]


class Log(Told):
    """A page of a task's log, oldest first."""

    items: list[LogLine]
    next_cursor: str | None


class Stopped(Told):
    """An attempt that is stopped, and where it was."""

    sub_task_id: str
    subtask: str
    attempt: int
    status: str
    phase: str | None


class Completed(Told):
    """What was done already: counted, and the first of it by name."""

    count: int
    subtasks: list[str]


class Cancelled(Told):
    """A task that is CANCELLED, and what was under way."""

    task_id: str
    status: str
    stopped: list[Stopped]
    withdrawn: dict[str, int]
    completed: Completed


class Retried(Told):
    """A task that goes on, and which of its subtasks run again."""

    task_id: str
    status: str
    retried: list[str]


class Settled(Told):
    """How many subtasks there are, and how many of them have come to an end."""

    total: int
    settled: int


class TaskItem(Told):
    """A task in a list."""

    task_id: str
    title: str
    status: str
    priority: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    subtasks: Settled
    error: Error | None


class Tasks(Told):
    """A page of tasks, newest first."""

    items: list[TaskItem]
    next_cursor: str | None


class Breaker(Told):
    """Whether calls of a tool are stopped after too many failures."""

    state: str
    retry_at: str | None


class ToolItem(Told):
    """A tool that a subtask may call. Its schemas are told where it was asked for by name."""

    name: str
    type: str
    description: str
    version: str
    permission_level: str
    is_active: bool
    health: str
    breaker: Breaker
    input_schema: dict[str, Any] | bool | None = Field(default=None, description="JSON Schema of a subtask's `input`")
    output_schema: dict[str, Any] | bool | None = Field(default=None, description="JSON Schema of what it gives")


class Tools(Told):
    """A page of tools, by name."""

    items: list[ToolItem]
    next_cursor: str | None
