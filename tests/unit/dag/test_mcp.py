"""MCP servers as values: what must not be shown, and what may be done twice."""

from __future__ import annotations

import pytest

from rayloom.dag.mcp import CallLine, McpAnswer, McpCall, McpServer, is_repeatable
from rayloom.dag.values import JsonObject


def test_no_secret_of_a_server_is_in_its_words() -> None:
    server = McpServer(
        name="far",
        transport="http",
        url="https://there/mcp",
        env={"TOKEN": "secret-1"},
        headers={"x-key": "secret-2"},
        auth={"type": "bearer", "token": "secret-3"},
    )
    assert "far" in repr(server)
    assert "secret" not in repr(server)


@pytest.mark.parametrize(
    ("config", "repeatable"),
    [
        ({}, False),
        ({"hints": None}, False),
        ({"hints": {}}, False),
        ({"hints": {"readOnlyHint": "true"}}, False),
        ({"hints": {"readOnlyHint": True}}, True),
        ({"hints": {"idempotentHint": True, "destructiveHint": True}}, True),
        ({"hints": {"readOnlyHint": False, "idempotentHint": False}}, False),
    ],
)
def test_only_who_says_so_in_so_many_words_may_be_called_twice(config: JsonObject, repeatable: bool) -> None:
    assert is_repeatable(config) is repeatable


def test_an_answer_has_no_lines_unless_some_were_said() -> None:
    call = McpCall(id="1", server="far", tool="t", arguments={}, idempotency_key="k")
    assert (call.server, McpAnswer(output=1).lines, CallLine(message="m").level) == ("far", (), "INFO")
