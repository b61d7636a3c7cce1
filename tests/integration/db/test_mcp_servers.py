"""The rows of MCP servers and their tools: names that are taken, secrets, and what an admin switched off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import UserError
from rayloom.dag.mcp import McpServer
from rayloom.dag.ports import RegisteredTool
from rayloom.db.catalogue import Catalogue
from rayloom.db.cipher import Cipher
from rayloom.db.mcp_servers import McpServers

SERVER = McpServer(
    name="demo",
    transport="stdio",
    command=("run", "it"),
    readable=("/data",),
    env={"TOKEN": "correct-horse"},
    headers={"A": "battery"},
    auth={"type": "bearer", "token": "staple"},
)


def tool(name: str, **fields: object) -> RegisteredTool:
    made = RegisteredTool(
        name=name,
        type="MCP",
        description="",
        version="1",
        schema={"type": "object"},
        output_schema=None,
        endpoint=f"mcp:{name.replace('.', '/', 1)}",
        config={"hints": {}},
        resources={"CPU": 0.25},
        lane="shared",
        permission_level="read",
        is_active=True,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def servers_of(engine: AsyncEngine, key: str = "key") -> McpServers:
    return McpServers(engine, Cipher(SecretStr(key)))


@pytest.fixture
async def kept(engine: AsyncEngine) -> AsyncIterator[McpServers]:
    yield servers_of(engine)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM mcp_servers"))
        await connection.execute(text("DELETE FROM tools"))


async def test_a_server_is_kept_with_its_secrets_encrypted(kept: McpServers, engine: AsyncEngine) -> None:
    await kept.add(SERVER, [tool("demo.a")])
    assert await kept.read() == {"demo": SERVER}
    async with engine.connect() as connection:
        row = str((await connection.execute(text("SELECT * FROM mcp_servers"))).one())
    assert not any(secret in row for secret in ("correct-horse", "battery", "staple"))
    assert await servers_of(engine, "another").read() == {"demo": None}
    changed = replace(SERVER, is_active=False, env={}, timeout_s=5.0)
    await kept.keep(changed)
    assert await kept.read() == {"demo": changed}
    await kept.remove("demo")
    assert await kept.read() == {}
    for gone in (kept.keep(SERVER), kept.remove("demo"), kept.set_tools("demo", [])):
        with pytest.raises(UserError) as error:
            await gone
        assert error.value.code == "TOOL_UNKNOWN"


async def test_a_name_that_is_taken_is_left_to_who_has_it(kept: McpServers, engine: AsyncEngine) -> None:
    catalogue = Catalogue(engine)
    await catalogue.add(tool("demo.taken", type="NATIVE", endpoint="x"))
    await catalogue.add(tool("other", type="NATIVE", endpoint="x"))
    for server, names in ((SERVER, ["demo.a", "demo.taken"]), (replace(SERVER, name="other"), ["other.a"])):
        with pytest.raises(UserError) as error:
            await kept.add(server, [tool(name) for name in names])
        assert error.value.code == "TOOL_EXISTS"
    assert await kept.read() == {}
    await kept.add(SERVER, [tool("demo.a")])
    for again in (kept.add(SERVER, []), catalogue.add(tool("demo", type="NATIVE", endpoint="x"))):
        with pytest.raises(UserError) as error:
            await again
        assert error.value.code == "TOOL_EXISTS"
    # A server that lists such a name later does not get it either.
    assert await kept.set_tools("demo", [tool("demo.a"), tool("demo.taken")]) == {"demo.a"}
    # A release that brings a built-in tool of that name does.
    await catalogue.write_built_in([tool("demo.a", type="NATIVE", endpoint="builtin:demo.a")])
    await kept.remove("demo")
    assert {row.tool.name for row in (await catalogue.read()).rows} == {"demo.a", "demo.taken", "other"}


async def test_the_tools_of_a_server_follow_its_list_and_its_state(kept: McpServers, engine: AsyncEngine) -> None:
    catalogue = Catalogue(engine)

    async def seen() -> dict[str, tuple[bool, object]]:
        rows = (await catalogue.read()).rows
        return {row.tool.name: (row.tool.is_active, row.tool.config["health"]) for row in rows}

    await kept.add(SERVER, [tool("demo.a"), tool("demo.b")])
    assert await seen() == {"demo.a": (True, "ok"), "demo.b": (True, "ok")}
    await catalogue.set_active("demo.a", False)
    await catalogue.set_config("demo.a", {"breaker": False})
    assert await kept.set_tools("demo", [tool("demo.a", description="new"), tool("demo.c")]) == {"demo.a", "demo.c"}
    await kept.set_health({"demo": "offline"})
    assert await seen() == {"demo.a": (False, "offline"), "demo.c": (True, "offline")}
    [first, _] = (await catalogue.read()).rows
    assert (first.tool.description, first.tool.config["breaker"]) == ("new", False)
    await kept.keep(replace(SERVER, is_active=False))
    assert {active for active, _ in (await seen()).values()} == {False}
    with pytest.raises(UserError) as error:
        await catalogue.remove("demo.c")
    assert error.value.code == "TOOL_OF_SERVER"
    await kept.remove("demo")
    assert await seen() == {}


async def test_a_tool_that_was_switched_off_stays_off_when_it_comes_back(kept: McpServers, engine: AsyncEngine) -> None:
    catalogue = Catalogue(engine)

    async def on() -> dict[str, bool]:
        return {row.tool.name: row.tool.is_active for row in (await catalogue.read()).rows}

    a, b = tool("demo.a"), tool("demo.b")
    await kept.add(SERVER, [a, b])
    await catalogue.set_active("demo.a", False)
    for listed in ([b], [], [b]):
        await kept.set_tools("demo", listed)
    await kept.set_tools("demo", [a, b])
    assert await on() == {"demo.a": False, "demo.b": True}
    # It is known by what it is called there: here two that are alike may make its name another one.
    await kept.set_tools("demo", [replace(a, name="demo.a_1"), tool("demo.a", endpoint="mcp:demo/a!"), b])
    assert await on() == {"demo.a": True, "demo.a_1": False, "demo.b": True}
    await kept.set_tools("demo", [a, b])
    assert await on() == {"demo.a": False, "demo.b": True}
    # Who switches it on switches it on.
    await catalogue.set_active("demo.a", True)
    for listed in ([b], [a, b]):
        await kept.set_tools("demo", listed)
    assert await on() == {"demo.a": True, "demo.b": True}
