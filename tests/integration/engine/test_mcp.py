"""An assistant and a whole rayloom: work is submitted over MCP, runs on Ray, and is read over MCP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import jsonschema
import pytest
from mcp import Client
from mcp_types.version import LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION

from rayloom.dag.values import JsonObject
from tests.integration.instance import Instance
from tests.integration.runs import echo, python, step
from tests.integration.serve.assistants import ask, at
from tests.integration.waiting import GENEROUS_S

Use = Callable[[Client], Coroutine[Any, Any, None]]


def _with(instance: Instance, revision: str, use: Use) -> None:
    async def main() -> None:
        async with at(instance.url, instance.key, revision) as client:
            await use(client)

    asyncio.run(main())


@pytest.mark.parametrize("revision", [LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION])
def test_an_assistant_gets_its_work_done(instance: Instance, revision: str) -> None:
    plan: JsonObject = {
        "subtasks": [
            echo("names", ["a", "b"]),
            python("count", "print('counting'); import json; print(len(json.loads('''${names.output}''')))"),
            step("say", "text.template", {"template": "{{ n }}", "values": {"n": {"$ref": "names.output[1]"}}}),
        ]
    }

    async def use(client: Client) -> None:
        told = await ask(client, "submit_task", plan=plan, title="counting", wait_s=GENEROUS_S)
        assert told["status"] == "COMPLETED", told
        task_id = told["task_id"]
        assert (await ask(client, "get_result", task_id=task_id))["result"]["say"] == {"text": "b"}
        count = await ask(client, "get_result", task_id=task_id, subtask="count")
        assert count["result"]["stdout"].split() == ["counting", "2"]
        lines = (await ask(client, "get_logs", task_id=task_id, subtask="count"))["items"]
        assert any("counting" in line["message"] for line in lines)

    _with(instance, revision, use)


def test_what_failed_is_told_and_can_be_tried_again(instance: Instance) -> None:
    plan: JsonObject = {"subtasks": [step("fail", "core.fail", {"times": 1, "kind": "user", "then": "well"})]}

    async def use(client: Client) -> None:
        failed = await ask(client, "submit_task", plan=plan, wait_s=GENEROUS_S)
        assert failed["status"] == "FAILED", failed
        task_id = failed["task_id"]
        assert failed["task"]["subtasks"][0]["status"] == "BLOCKED"
        assert (await ask(client, "get_logs", task_id=task_id, level=["ERROR"]))["items"]
        assert (await ask(client, "retry_task", task_id=task_id))["retried"] == ["fail"]
        ended = await ask(client, "wait_for_task", task_id=task_id, timeout_s=GENEROUS_S)
        assert ended["task"]["status"] == "COMPLETED", ended
        assert (await ask(client, "get_result", task_id=task_id))["result"] == "well"

    _with(instance, LATEST_MODERN_VERSION, use)


def test_every_tool_is_told_with_a_schema_that_holds(instance: Instance) -> None:
    async def use(client: Client) -> None:
        names = [tool["name"] for tool in (await ask(client, "list_tools"))["items"]]
        assert {"core.echo", "http.request", "python.run", "sql.query"} <= set(names)
        for name in names:
            (tool,) = (await ask(client, "list_tools", name=name))["items"]
            jsonschema.Draft202012Validator.check_schema(tool["input_schema"])

    _with(instance, LATEST_MODERN_VERSION, use)
