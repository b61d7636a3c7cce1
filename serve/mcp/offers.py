"""The tools that the MCP server offers: name, words for the assistant, schemas, hints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp_types import Tool, ToolAnnotations

from rayloom.serve.bodies import Body
from rayloom.serve.mcp import answers, arguments, calls
from rayloom.serve.mcp.answers import Told
from rayloom.serve.mcp.calls import Run

_PLAN: Final = (
    'A plan is {"subtasks": [{"id": "fetch", "type": "TOOL", "tool": "http.request", "input": {"url": "https://…"}}, '
    '{"id": "count", "type": "TOOL", "tool": "json.query", "input": {"data": {"$ref": "fetch.output.json"}, "query": '
    '"length(@)"}}]}. A `$ref` to `id.output` (a JMESPath may follow) makes that subtask a dependency, as `depends_on` '
    "does; what depends on nothing unfinished runs at the same time. `list_tools` names the tools, and gives the "
    "schema of one tool's input."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool of ours. ``is_safe``: it changes nothing; ``is_repeatable``: a second call changes nothing more."""

    name: str
    title: str
    description: str
    arguments: type[Body]
    answer: type[Told]
    run: Run
    is_safe: bool = True
    is_destructive: bool = False
    is_repeatable: bool = True

    def as_tool(self) -> Tool:
        """As clients are told of it."""
        return Tool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=_schema(self.arguments),
            output_schema=_schema(self.answer),
            annotations=ToolAnnotations(
                title=self.title,
                read_only_hint=self.is_safe,
                destructive_hint=self.is_destructive,
                idempotent_hint=self.is_repeatable,
                # What tasks do may reach anything; looking at them reaches nothing but rayloom.
                open_world_hint=not self.is_safe and not self.is_destructive,
            ),
        )


def _schema(model: type[Body] | type[Told]) -> dict[str, Any]:
    schema = model.model_json_schema()
    # What it says is for readers of the code.
    schema.pop("description", None)
    return schema


_ALL: Final = (
    Offer(
        name="submit_task",
        title="Submit a task",
        description="Submit work to rayloom, which runs it durably as a DAG of subtasks on a cluster. Give a `plan`, "
        "or a `prompt`: it is planned by a model where one is configured, else split by its structure (lists, 'then', "
        "'meanwhile', `@tool {…}`). Returns at once with the task's id, or after its end with `wait_s`. "
        f"{_PLAN}",
        arguments=arguments.SubmitTask,
        answer=answers.Submitted,
        run=calls.submit_task,
        is_safe=False,
        is_repeatable=False,
    ),
    Offer(
        name="get_task",
        title="Look at a task",
        description="Status, progress, error and first subtasks of a task. Its result is given by `get_result`.",
        arguments=arguments.OneTask,
        answer=answers.Task,
        run=calls.get_task,
    ),
    Offer(
        name="wait_for_task",
        title="Wait for a task",
        description="Wait until a task has ended, or for `timeout_s`; tells of its progress meanwhile. The task goes "
        "on whatever becomes of the wait. One that is READY waits for a person's approval, which can't be given here.",
        arguments=arguments.WaitForTask,
        answer=answers.Awaited,
        run=calls.wait_for_task,
    ),
    Offer(
        name="list_subtasks",
        title="List subtasks",
        description="The subtasks of a task in the order of its plan, without their outputs.",
        arguments=arguments.ListSubtasks,
        answer=answers.Subtasks,
        run=calls.list_subtasks,
    ),
    Offer(
        name="get_result",
        title="Get a result",
        description="The result of a task: the output of its last subtask, or {subtask: output} where several end it. "
        "With `subtask`, the output of that one.",
        arguments=arguments.GetResult,
        answer=answers.Result,
        run=calls.get_result,
    ),
    Offer(
        name="get_logs",
        title="Read a task's log",
        description="The log of a task over all its subtasks, oldest first: transitions, what tools printed, errors.",
        arguments=arguments.GetLogs,
        answer=answers.Log,
        run=calls.get_logs,
    ),
    Offer(
        name="cancel_task",
        title="Cancel a task",
        description="Cancel a task for good: what runs is stopped, what waits never begins.",
        arguments=arguments.OneTask,
        answer=answers.Cancelled,
        run=calls.cancel_task,
        is_safe=False,
        is_destructive=True,
    ),
    Offer(
        name="retry_task",
        title="Retry a task",
        description="Run again what is BLOCKED of a task, and what was SKIPPED for it; what has completed is kept.",
        arguments=arguments.RetryTask,
        answer=answers.Retried,
        run=calls.retry_task,
        is_safe=False,
        is_repeatable=False,
    ),
    Offer(
        name="list_tasks",
        title="List tasks",
        description="My tasks, newest first.",
        arguments=arguments.ListTasks,
        answer=answers.Tasks,
        run=calls.list_tasks,
    ),
    Offer(
        name="list_tools",
        title="List rayloom's tools",
        description="The tools that subtasks of a plan may call. With `name`, one of them with its schemas.",
        arguments=arguments.ListTools,
        answer=answers.Tools,
        run=calls.list_tools,
    ),
)

OFFERS: Final[Mapping[str, Offer]] = {offer.name: offer for offer in _ALL}
