"""The `server.json` of the MCP registry as a registration."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.tools.mcp.server_json import Invalid, expanded

NPM: dict[str, Any] = {
    "registryType": "npm",
    "identifier": "@scope/server",
    "version": "1.2.3",
    "transport": {"type": "stdio"},
    "packageArguments": [
        {"type": "positional", "value": "serve"},
        {"type": "named", "name": "--root", "default": "/data"},
        {"type": "named", "name": "--port", "value": "{port}", "variables": {"port": {"default": "80"}}},
    ],
    "environmentVariables": [
        {"name": "API_KEY", "isRequired": True, "isSecret": True, "description": "of yours"},
        {"name": "LEVEL", "default": "info"},
    ],
}
REMOTE: dict[str, Any] = {
    "type": "streamable-http",
    "url": "https://{tenant}.example.com/mcp",
    "variables": {"tenant": {"default": "main"}},
    "headers": [{"name": "X-Key", "isRequired": True}, {"name": "X-Kind", "value": "a"}],
}


def body(server: Any, **fields: Any) -> Any:
    return {"type": "MCP", "name": "s", "server": {"name": "io.example/s", "version": "1", **server}, **fields}


def test_a_package_becomes_a_command() -> None:
    made = expanded(body({"packages": [NPM]}, env={"API_KEY": "k"}, trusted=True))
    assert made == {
        "type": "MCP",
        "name": "s",
        "trusted": True,
        "transport": "stdio",
        "command": ["npx", "-y", "@scope/server@1.2.3", "serve", "--root", "/data", "--port", "80"],
        "env": {"API_KEY": "k", "LEVEL": "info"},
    }
    pypi = {"registryType": "pypi", "identifier": "mcp-server-time", "version": "1"}
    assert expanded(body({"packages": [pypi]}))["command"] == ["uvx", "mcp-server-time==1"]


def test_a_remote_goes_before_a_package() -> None:
    made = expanded(body({"packages": [NPM], "remotes": [REMOTE]}, headers={"X-Key": "k"}))
    assert made == {
        "type": "MCP",
        "name": "s",
        "transport": "http",
        "url": "https://main.example.com/mcp",
        "headers": {"X-Key": "k", "X-Kind": "a"},
    }
    assert expanded(body({"remotes": [{"type": "sse", "url": "https://x/"}]}))["transport"] == "sse"


@pytest.mark.parametrize(
    ("server", "pointer"),
    [
        ({"packages": [NPM]}, "/env/API_KEY"),
        ({"remotes": [REMOTE]}, "/headers/X-Key"),
        ({"remotes": [{"type": "sse", "url": "https://{who}/"}]}, "/server/remotes/0/url"),
        ({"packages": [{"registryType": "oci", "identifier": "x"}]}, "/server"),
        ({"packages": [{**NPM, "transport": {"type": "sse"}}]}, "/server"),
        ({"packages": [{"registryType": "npm"}]}, "/server/packages/0/identifier"),
        ({}, "/server"),
    ],
)
def test_what_is_missing_is_told_with_its_place(server: Any, pointer: str) -> None:
    with pytest.raises(Invalid) as error:
        expanded(body(server))
    assert [fault.pointer for fault in error.value.faults] == [pointer]


def test_a_required_argument_without_a_value_is_told() -> None:
    package = {**NPM, "environmentVariables": [], "packageArguments": [{"type": "positional", "isRequired": True}]}
    with pytest.raises(Invalid) as error:
        expanded(body({"packages": [package]}))
    assert error.value.faults[0].pointer == "/server/packages/0/packageArguments/0"
