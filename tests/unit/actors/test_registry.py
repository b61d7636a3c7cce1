"""The tool registry against rows held in memory: what it offers, its versions, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rayloom.actors import registry as registry_module
from rayloom.actors.breakers import Breakers
from rayloom.actors.described import describe
from rayloom.actors.registry import ToolRegistry
from rayloom.dag.breaker import BreakerPolicy, Call
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.values import Json, JsonObject
from rayloom.db.catalogue import CatalogueReading, ToolRow
from rayloom.tools.tool import Tool, ToolContext, ToolResult, ToolSpec
from tests.fakes.memory_breakers import MemoryBreakers


class Echo:
    def __init__(self, name: str = "echo", *, version: str = "1", kind: str = "NATIVE") -> None:
        self.spec = ToolSpec(
            name=name,
            type=kind,  # type: ignore[arg-type]  # some tests hand in what they should not
            description="gives back",
            version=version,
            input_schema={"type": "object"},
            permission_level="read",
        )

    async def run(self, input: dict[str, Json], context: ToolContext) -> ToolResult:
        return ToolResult(output=input)


class Rows:
    """The table ``tools``, shared by every registry of a test."""

    def __init__(self) -> None:
        self.rows: dict[str, ToolRow] = {}
        self.transaction = 100
        self.away = False

    async def read(self) -> CatalogueReading:
        self._count()
        return CatalogueReading(version=self.transaction, rows=tuple(self.rows.values()))

    async def write_built_in(self, tools: Sequence[RegisteredTool]) -> None:
        self._count()
        for tool in tools:
            old = self.rows.get(tool.name)
            is_active, config = (old.tool.is_active, old.tool.config) if old else (True, {})
            made = replace(tool, is_active=is_active, config={**config, **tool.config})
            self.rows[tool.name] = ToolRow(tool=made, built_in=True)

    async def renew(self, tools: Sequence[RegisteredTool]) -> None:
        self._count()
        for tool in tools:
            old = self.rows[tool.name].tool
            made = replace(tool, is_active=old.is_active, config={**old.config, **tool.config})
            self.rows[tool.name] = ToolRow(tool=made, built_in=False)

    async def add(self, tool: RegisteredTool, contents: Sequence[str] = ()) -> None:
        self._count()
        if tool.name in self.rows:
            raise UserError("TOOL_EXISTS", tool.name)
        self.rows[tool.name] = ToolRow(tool=tool, built_in=False)

    async def set_active(self, name: str, active: bool) -> None:
        self._count()
        if name not in self.rows:
            raise UserError("TOOL_UNKNOWN", name)
        row = self.rows[name]
        self.rows[name] = replace(row, tool=replace(row.tool, is_active=active))

    async def set_config(self, name: str, changes: JsonObject) -> None:
        self._count()
        if name not in self.rows:
            raise UserError("TOOL_UNKNOWN", name)
        row = self.rows[name]
        config: JsonObject = {**row.tool.config, **changes}
        config = {key: value for key, value in config.items() if value is not None}
        self.rows[name] = replace(row, tool=replace(row.tool, config=config))

    async def remove(self, name: str) -> None:
        self._count()
        if name not in self.rows:
            raise UserError("TOOL_UNKNOWN", name)
        del self.rows[name]

    def _count(self) -> None:
        self.transaction += 1
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "away")


def _load(endpoint: str) -> Tool:
    match endpoint:
        case "weather":
            return Echo("weather")
        case "foreign":
            return Echo("foreign", kind="MCP")
        case "broken":
            raise UserError("ENDPOINT_INVALID", "it can't be imported")
    raise UserError("ENDPOINT_UNKNOWN", f"there is no entry point {endpoint!r}")


def _breakers() -> Breakers:
    return Breakers(MemoryBreakers(), BreakerPolicy(failures_in_a_row=2))


async def _registry(rows: Rows, *names: str) -> ToolRegistry:
    tools = {name: Echo(name) for name in names or ("core.echo",)}
    registry = ToolRegistry(rows, tools, _breakers(), load=_load, long_poll_s=0.01)
    assert await registry.step() > 0
    return registry


async def test_the_built_in_tools_are_there_after_the_start() -> None:
    rows = Rows()
    registry = await _registry(rows, "core.echo", "core.noop")
    snapshot = await registry.snapshot()
    assert set(snapshot.tools) == {"core.echo", "core.noop"}
    echo = snapshot.tools["core.echo"]
    assert echo == describe("core.echo", "builtin:core.echo", Echo("core.echo"))
    assert echo.is_active
    assert rows.rows["core.echo"].built_in
    assert await registry.health() == {"ok": True, "version": snapshot.version, "tools": 2, "breakers_open": 0}


async def test_a_version_grows_with_every_change_and_only_then() -> None:
    registry = await _registry(Rows())
    versions = [(await registry.snapshot()).version]
    await registry.refresh()
    assert (await registry.snapshot()).version == versions[0]
    await registry.register_native("acme.weather", "weather")
    versions.append((await registry.snapshot()).version)
    await registry.set_active("acme.weather", False)
    versions.append((await registry.snapshot()).version)
    await registry.remove("acme.weather")
    versions.append((await registry.snapshot()).version)
    assert versions == sorted(set(versions))


async def test_a_restarted_registry_has_the_same_tools_and_no_version_used_before() -> None:
    rows = Rows()
    first = await _registry(rows)
    await first.set_active("core.echo", False)
    await first.register_native("acme.weather", "weather")
    before = await first.snapshot()
    after = await (await _registry(rows)).snapshot()
    assert after.tools == before.tools
    assert after.version > before.version


async def test_who_waits_for_a_change_is_told_of_it() -> None:
    registry = ToolRegistry(Rows(), {"core.echo": Echo()}, _breakers(), load=_load, long_poll_s=30)
    await registry.start()
    now = await registry.snapshot()
    assert await registry.changed(now.version - 1) == now
    waiting = [asyncio.create_task(registry.changed(now.version)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    changed = await registry.set_active("core.echo", False)
    for told in await asyncio.gather(*waiting):
        assert told.version > now.version
        assert told.tools["core.echo"] == changed
        assert not changed.is_active


async def test_nobody_waits_for_a_change_for_ever() -> None:
    registry = await _registry(Rows())
    now = await registry.snapshot()
    assert await registry.changed(now.version) == now


async def test_a_change_made_by_another_registry_is_seen_by_the_sweep() -> None:
    rows = Rows()
    one, other = await _registry(rows), await _registry(rows)
    await one.register_native("acme.weather", "weather")
    assert "acme.weather" not in (await other.snapshot()).tools
    await other.step()
    assert (await other.snapshot()).tools == (await one.snapshot()).tools


async def test_an_older_reading_that_comes_late_is_dropped() -> None:
    rows = Rows()
    registry = await _registry(rows)
    late = await rows.read()
    await registry.set_active("core.echo", False)
    now = await registry.snapshot()

    async def read_late() -> CatalogueReading:
        return late

    rows.read = read_late  # type: ignore[method-assign]
    await registry.refresh()
    assert await registry.snapshot() == now


async def test_a_built_in_tool_of_another_release_is_not_offered() -> None:
    rows = Rows()
    await _registry(rows, "core.echo", "core.old")
    assert set((await (await _registry(rows, "core.echo")).snapshot()).tools) == {"core.echo"}


@pytest.mark.parametrize(
    ("name", "endpoint", "code"),
    [
        ("core.echo", "weather", "TOOL_EXISTS"),
        ("acme.weather", "nothing", "TOOL_UNKNOWN"),
        ("acme.weather", "builtin:core.echo", "TOOL_UNKNOWN"),
        ("acme.weather", "broken", "TOOL_INVALID"),
        ("acme.weather", "foreign", "TOOL_INVALID"),
        ("", "weather", "TOOL_NAME_INVALID"),
        ("9lives", "weather", "TOOL_NAME_INVALID"),
        ("acme..weather", "weather", "TOOL_NAME_INVALID"),
        ("acme.weather\n", "weather", "TOOL_NAME_INVALID"),
        ("../weather", "weather", "TOOL_NAME_INVALID"),
        ("wetter.für.alle", "weather", "TOOL_NAME_INVALID"),
        ("a" * 129, "weather", "TOOL_NAME_INVALID"),
        ("skill.weather", "weather", "TOOL_NAME_INVALID"),
    ],
)
async def test_what_can_not_be_registered(name: str, endpoint: str, code: str) -> None:
    rows = Rows()
    registry = await _registry(rows)
    with pytest.raises(UserError) as refused:
        await registry.register_native(name, endpoint)
    assert refused.value.code == code
    assert set(rows.rows) == {"core.echo"}


async def test_a_tool_keeps_the_name_that_it_was_registered_under() -> None:
    registry = await _registry(Rows())
    tool = await registry.register_native("acme.weather-2", "weather")
    assert (tool.name, tool.endpoint, tool.type, tool.is_active) == ("acme.weather-2", "weather", "NATIVE", True)
    assert (await registry.snapshot()).tools["acme.weather-2"] == tool


async def test_an_upgraded_package_brings_its_new_schema_and_a_missing_one_stays_listed() -> None:
    rows = Rows()
    first = await _registry(rows)
    await first.register_native("acme.weather", "weather")
    await first.register_native("acme.more", "weather")
    await first.set_active("acme.weather", False)
    rows.rows["acme.more"] = replace(
        rows.rows["acme.more"], tool=replace(rows.rows["acme.more"].tool, endpoint="gone", version="0")
    )

    def upgraded(endpoint: str) -> Tool:
        return Echo("weather", version="2") if endpoint == "weather" else _load(endpoint)

    second = ToolRegistry(rows, {"core.echo": Echo()}, _breakers(), load=upgraded)
    await second.start()
    tools = (await second.snapshot()).tools
    assert (tools["acme.weather"].version, tools["acme.weather"].is_active) == ("2", False)
    assert tools["acme.more"].version == "0"


async def test_while_the_database_is_away_after_a_start_callers_are_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "START_PATIENCE_S", 0.01)
    rows = Rows()
    rows.away = True
    registry = ToolRegistry(rows, {"core.echo": Echo()}, _breakers(), load=_load)
    with pytest.raises(Transient, match="away"):
        await registry.step()
    assert (await registry.health())["ok"] is False
    with pytest.raises(Transient) as told:
        await registry.snapshot()
    assert told.value.code == "REGISTRY_STARTING"
    rows.away = False
    await registry.step()
    assert isinstance(await registry.snapshot(), ToolSnapshot)


async def _told(registry: ToolRegistry, version: int) -> ToolSnapshot:
    """The first snapshot after this version."""
    async with asyncio.timeout(60):
        while (snapshot := await registry.changed(version)).version <= version:
            pass
    return snapshot


def _failed(key: str, count: int) -> list[Call]:
    return [Call(key=key, by=f"s{n}", succeeded=False) for n in range(count)]


async def test_only_a_breaker_that_changes_makes_a_new_version() -> None:
    registry = await _registry(Rows())
    first = await registry.snapshot()
    await registry.report([Call(key="core.echo", by="s", succeeded=True)] * 100)
    await registry.report(_failed("core.echo", 1))
    assert await registry.changed(first.version) == first
    await registry.report(_failed("core.echo", 1))
    told = await _told(registry, first.version)
    assert told.breaker_of("core.echo") is not None
    assert told.tools == first.tools


async def test_while_the_database_is_away_calls_are_still_counted_and_told_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "TELL_AGAIN_S", 0.001)
    rows = Rows()
    registry = await _registry(rows)
    version = (await registry.snapshot()).version
    rows.away = True
    await registry.report(_failed("core.echo", 2))
    assert not await registry.probe("core.echo", "s")
    assert (await registry.changed(version)).version == version
    rows.away = False
    assert (await _told(registry, version)).breaker_of("core.echo") is not None


async def test_a_breaker_is_set_by_hand_and_switched_off_for_good() -> None:
    rows = Rows()
    registry = await _registry(rows)
    await registry.set_breaker("core.echo", "open")
    view = (await registry.snapshot()).breaker_of("core.echo")
    assert view is not None
    assert view.retry_at is None
    assert (await registry.set_breaker("core.echo", "closed")).has_breaker
    assert (await registry.snapshot()).breaker_of("core.echo") is None
    assert not (await registry.set_breaker("core.echo", "off")).has_breaker
    # It is so for every life of the registry.
    assert not (await (await _registry(rows)).snapshot()).tools["core.echo"].has_breaker
    with pytest.raises(UserError) as refused:
        await registry.set_breaker("nothing", "off")
    assert refused.value.code == "TOOL_UNKNOWN"


async def test_an_alternative_is_known_no_stronger_and_leads_not_back() -> None:
    registry = await _registry(Rows(), "a", "b", "c")
    await registry.set_alternative("a", "b")
    assert (await registry.set_alternative("b", "c")).alternative == "c"
    snapshot = await registry.snapshot()
    assert list(snapshot.stand_ins("a")) == ["b", "c"]
    for name, chosen in (("c", "a"), ("a", "a"), ("a", "nothing")):
        with pytest.raises(UserError) as refused:
            await registry.set_alternative(name, chosen)
        assert refused.value.code == "ALTERNATIVE_INVALID", (name, chosen)
    await registry.set_breaker("b", "open")
    assert list((await registry.snapshot()).stand_ins("a")) == ["c"]
    await registry.set_alternative("a", None)
    assert list((await registry.snapshot()).stand_ins("a")) == []


async def test_an_alternative_may_do_no_more() -> None:
    tools = {"reads": Echo("reads"), "writes": Echo("writes")}
    tools["writes"].spec = replace(tools["writes"].spec, permission_level="write")
    registry = ToolRegistry(Rows(), tools, _breakers())
    await registry.start()
    with pytest.raises(UserError, match="above read"):
        await registry.set_alternative("reads", "writes")
    assert (await registry.set_alternative("writes", "reads")).alternative == "reads"
