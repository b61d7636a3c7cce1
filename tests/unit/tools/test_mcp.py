"""What a tool of an MCP server becomes here: its name, schemas and level, its output, and its secrets' absence."""

from __future__ import annotations

from typing import Any

import pytest
from mcp_types import CallToolResult, ImageContent, TextContent, Tool, ToolAnnotations

from rayloom.dag.errors import UserError
from rayloom.dag.mcp import McpServer, is_repeatable
from rayloom.tools.mcp.content import output_of
from rayloom.tools.mcp.naming import NAME_MAX_CHARS, described, level, modern, names
from rayloom.tools.mcp.opening import check
from rayloom.tools.mcp.redaction import Redaction

SERVER = McpServer(name="s", transport="stdio", command=("x",))
ANY: dict[str, Any] = {"type": "object"}


@pytest.mark.parametrize(
    ("own", "ours"),
    [
        ("add", "s.add"),
        ("get-sum", "s.get-sum"),
        ("a.b", "s.a.b"),
        ("files/read", "s.files_read"),
        ("..", "s._"),
        ("über", "s._ber"),
        ("a..b.", "s.a.b"),
    ],
)
def test_a_tool_gets_a_name_that_ours_may_have(own: str, ours: str) -> None:
    assert names("s", [own]) == [ours]


def test_names_that_would_be_the_same_are_kept_apart_whatever_their_order() -> None:
    listed = ["a b", "a/b", "a_b", "c"]
    made = dict(zip(listed, names("s", listed), strict=True))
    assert made["a_b"] == "s.a_b"
    assert made["c"] == "s.c"
    assert len(set(made.values())) == 4
    assert all(made[name].startswith("s.a_b_") for name in ("a b", "a/b"))
    assert dict(zip(listed[::-1], names("s", listed[::-1]), strict=True)) == made


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    first, second = names("s", ["x" * 200 + "1", "x" * 200 + "2"])
    assert first != second
    assert len(first) == len(second) == NAME_MAX_CHARS


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (None, "write"),
        (ToolAnnotations(), "write"),
        (ToolAnnotations(read_only_hint=True, destructive_hint=True), "read"),
        (ToolAnnotations(destructive_hint=True), "execute"),
        (ToolAnnotations(destructive_hint=False), "write"),
    ],
)
def test_hints_give_the_permission_level(hints: ToolAnnotations | None, expected: str) -> None:
    assert level(hints) == expected


def test_a_tool_is_described_with_all_that_the_registry_keeps() -> None:
    tool = Tool(name="t", title="T", input_schema=ANY, annotations=ToolAnnotations(idempotent_hint=True))
    [made] = described(SERVER, [tool], "1.2").tools
    assert (made.name, made.type, made.endpoint, made.description) == ("s.t", "MCP", "mcp:s/t", "T")
    assert made.version.startswith("1.2-")
    assert is_repeatable(made.config)
    [changed] = described(SERVER, [Tool(name="t", input_schema={**ANY, "required": ["x"]})], "1.2").tools
    assert changed.version != made.version
    assert not is_repeatable(changed.config)


def test_a_schema_that_is_invalid_is_told_with_its_place() -> None:
    tools = [Tool(name="good", input_schema=ANY), Tool(name="bad", input_schema={"type": "object", "required": "x"})]
    found = described(SERVER, tools, "")
    assert [tool.name for tool in found.tools] == ["s.good"]
    assert [fault.pointer for fault in found.faults] == ["/tools/1/inputSchema/required"]
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"items": deep}
    assert described(SERVER, [Tool(name="deep", input_schema=deep)], "").tools == ()


def test_of_tools_with_the_same_name_the_first_one_is_taken() -> None:
    tools = [Tool(name=name, input_schema=ANY, description=str(at)) for at, name in enumerate(("a", "b", "a", "a/b"))]
    found = described(SERVER, tools, "")
    assert [(tool.name, tool.description) for tool in found.tools] == [("s.a", "0"), ("s.b", "1"), ("s.a_b", "3")]
    assert [fault.pointer for fault in found.repeats] == ["/tools/2"]
    assert found.faults == ()


def test_a_schema_of_draft_7_is_read_as_one_of_today() -> None:
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [ANY, ANY], "additionalItems": False}
    assert modern({"properties": {"a": old}, **old}) == {  # type: ignore[dict-item]
        "properties": {"a": {"$schema": old["$schema"], "prefixItems": [ANY, ANY], "items": False}},
        "prefixItems": [ANY, ANY],
        "items": False,
    }


def test_structured_content_is_the_output_and_else_the_text_or_all_items() -> None:
    text, image = TextContent(text="hello"), ImageContent(data="aGk=", mime_type="image/png")
    assert output_of(CallToolResult(content=[text], structured_content={"a": 1}), structured=True) == {"a": 1}
    assert output_of(CallToolResult(content=[text]), structured=False) == "hello"
    assert output_of(CallToolResult(content=[text], structured_content=None), structured=True) is None
    assert output_of(CallToolResult(content=[text, image]), structured=False) == {
        "content": [
            {"type": "text", "text": "hello"},
            {"type": "image", "data": "aGk=", "mimeType": "image/png"},
        ]
    }


def test_a_tool_that_says_it_failed_has_failed() -> None:
    with pytest.raises(UserError, match="no such city") as error:
        output_of(CallToolResult(content=[TextContent(text="no such city")], is_error=True), structured=True)
    assert error.value.code == "MCP_TOOL_FAILED"
    with pytest.raises(UserError, match="did not say why"):
        output_of(CallToolResult(content=[], is_error=True), structured=False)


def test_secrets_are_hidden_in_messages_and_in_outputs() -> None:
    server = McpServer(
        name="s",
        transport="http",
        url="http://x/",
        headers={"Authorization": "Bearer horse-battery"},
        auth={"type": "oauth_client_credentials", "client_id": "visible-id", "client_secret": "staple-secret"},
        env={"API_KEY": "key-of-mine", "LOG_LEVEL": "verbose", "N": "1"},
    )
    redaction = Redaction(server)
    said = "got horse-battery, staple-secret, key-of-mine at visible-id, 1, verbose"
    assert redaction.message(said) == "got ***, ***, *** at visible-id, 1, ***"
    assert redaction.output({"key-of-mine": [said, 1]}) == {"***": ["got ***, ***, *** at visible-id, 1, verbose", 1]}
    nothing = Redaction(SERVER)
    assert (nothing.message(said), nothing.output([said])) == (said, [said])
    for secret in ("horse", "staple", "key-of-mine"):
        assert secret not in repr(server)


@pytest.mark.parametrize(
    "server",
    [
        McpServer(name="s", transport="stdio"),
        McpServer(name="s", transport="stdio", command=("x",), headers={"a": "b"}),
        McpServer(name="s", transport="stdio", command=("x",), readable=("/a\0b",)),
        McpServer(name="s", transport="http", url="http://x/", command=("x",)),
        McpServer(name="s", transport="http", url="http://x/", trusted=True),
        McpServer(name="s", transport="http", url="ftp://x/"),
        McpServer(name="s", transport="sse", url="http://user:word@x/"),
    ],
)
def test_a_server_that_can_not_be_meant_is_refused(server: McpServer) -> None:
    with pytest.raises(UserError):
        check(server)


@pytest.mark.parametrize("before", range(1_990, 2_003))
def test_a_message_is_cut_after_its_secrets_are_hidden(before: int) -> None:
    redaction = Redaction(McpServer(name="s", transport="stdio", command=("x",), env={"API_KEY": "key-of-mine"}))
    said = redaction.message("." * before + "key-of-mine" * 2 + "." * 100)
    assert said.strip(".").replace("***", "") == ""
    assert len(said) <= 2_003


def test_a_line_of_a_log_may_be_any_json() -> None:
    redaction = Redaction(
        McpServer(name="s", transport="stdio", command=("x",), env={"API_KEY": 'a"b\\c\nd', "N": "123456"})
    )
    assert redaction.line('said a"b\\c\nd') == "said ***"
    assert redaction.line({"text": ['a"b\\c\nd', 123456]}) == '{"text":["***",***]}'
    assert redaction.line(2**70) == str(2**70)
    assert Redaction(SERVER).line({"a": None}) == '{"a":null}'
