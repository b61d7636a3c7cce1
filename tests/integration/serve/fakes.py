"""The singletons as a test plays them: plain objects that remember what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from rayloom.actors.described import check_alternative, check_name
from rayloom.dag.breaker import BreakerView, Call
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.mcp import McpServer
from rayloom.dag.model import Denied, ModelUse, ProviderLimits, Reservation
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.dag.ports import (
    Ask,
    BreakerWish,
    Finished,
    Health,
    Held,
    Limited,
    Quota,
    RegisteredTool,
    ToolSnapshot,
    Waiting,
)
from rayloom.dag.resources import NodeShape
from rayloom.dag.token_port import TokenFigures
from rayloom.dag.tool_scope import Level
from rayloom.dag.values import JsonObject
from rayloom.serve.deps import Ports
from rayloom.serve.parser import Parser

ANY: JsonObject = {"type": "object"}


def tool(name: str, schema: JsonObject, *, permission_level: str = "read") -> RegisteredTool:
    return RegisteredTool(
        name=name,
        type="NATIVE",
        description=f"the tool {name}",
        version="1",
        schema=schema,
        output_schema=None,
        endpoint=f"builtin:{name}",
        config={},
        resources={"CPU": 0.25},
        lane="shared",
        permission_level=permission_level,  # type: ignore[arg-type]
        is_active=True,
    )


TOOLS = (
    tool(
        "core.echo",
        {"type": "object", "required": ["value"], "additionalProperties": False, "properties": {"value": {}}},
    ),
    tool("core.noop", {"type": "object", "additionalProperties": False}),
    tool("core.sleep", {"type": "object", "required": ["seconds"], "properties": {"seconds": {"type": "number"}}}),
    tool("secret.tool", ANY, permission_level="admin"),
)


class Down:
    """What may be away: every call of it then raises."""

    def __init__(self) -> None:
        self.is_down = False
        self.health_asked = 0

    def check(self) -> None:
        if self.is_down:
            raise Transient("AWAY", f"{type(self).__name__} is away")

    async def health(self) -> Health:
        self.health_asked += 1
        self.check()
        return {}


class FakeScheduler(Down):
    def __init__(self) -> None:
        super().__init__()
        self.woken = 0
        self.tools_version = 0
        self.stopped: list[tuple[str, int]] = []
        self.knows = Waiting(
            handed_over=False, limit=None, limit_in_s=None, is_held=False, nodes=1, room=0, fits=True,
            gives_up_in_s=None,
        )  # fmt: skip
        self.node_types: tuple[NodeShape, ...] = (NodeShape(total={"CPU": 4, "memory": 8e9}, labels={}, count_max=1),)

    async def wake(self) -> None:
        self.check()
        self.woken += 1

    async def stop(self, attempts: Sequence[tuple[str, int]]) -> None:
        self.check()
        self.stopped += attempts

    async def nodes(self) -> Sequence[NodeShape]:
        self.check()
        return self.node_types

    async def waiting(self, sub_task_id: str, user_id: str, shape: str) -> Waiting:
        self.check()
        return self.knows

    async def knows_tools(self, version: int) -> bool:
        self.check()
        self.tools_version = version
        return True


class FakeRegistry(Down):
    def __init__(self) -> None:
        super().__init__()
        self.tools: Mapping[str, RegisteredTool] = {tool.name: tool for tool in TOOLS}
        self.version = 1
        self.breakers: Mapping[str, BreakerView] = {}
        self.news = asyncio.Event()

    def change(self, tools: Mapping[str, RegisteredTool]) -> None:
        self.tools, self.version = tools, self.version + 1
        self.news.set()
        self.news = asyncio.Event()

    def relevel(self, name: str, level: Level) -> None:
        """Say that a tool does more, or less."""
        self.change({**self.tools, name: replace(self.tools[name], permission_level=level)})

    async def snapshot(self) -> ToolSnapshot:
        self.check()
        return ToolSnapshot(version=self.version, tools=self.tools, breakers=self.breakers)

    async def changed(self, version: int) -> ToolSnapshot:
        self.check()
        while self.version <= version:
            await self.news.wait()
        return await self.snapshot()

    async def register_native(self, name: str, endpoint: str) -> RegisteredTool:
        if name in self.tools:
            raise UserError("TOOL_EXISTS", f"there is a tool {name} already")
        check_name(name)
        if endpoint != "known":
            raise UserError("TOOL_UNKNOWN", f"no entry point {endpoint} is installed")
        made = replace(tool(name, ANY), endpoint=endpoint)
        self.change({**self.tools, name: made})
        return made

    async def register_skill(self, tool: RegisteredTool, contents: Sequence[str]) -> RegisteredTool:
        if tool.name in self.tools:
            raise UserError("TOOL_EXISTS", f"there is a tool {tool.name} already")
        self.change({**self.tools, tool.name: tool})
        return tool

    async def set_active(self, name: str, active: bool) -> RegisteredTool:
        made = replace(self.tools[name], is_active=active)
        self.change({**self.tools, name: made})
        return made

    async def report(self, calls: Sequence[Call]) -> None:
        self.check()

    async def probe(self, key: str, by: str) -> bool:
        self.check()
        return True

    async def set_breaker(self, name: str, state: BreakerWish) -> RegisteredTool:
        others = {key: view for key, view in self.breakers.items() if key != name}
        shut = {name: BreakerView(state="open", retry_at=None)}
        self.breakers = {**others, **(shut if state == "open" else {})}
        self.change(self.tools)
        return self.tools[name]

    async def set_alternative(self, name: str, alternative: str | None) -> RegisteredTool:
        if alternative is not None:
            check_alternative(self.tools[name], alternative, self.tools)
        made = replace(self.tools[name], config={"alternative": alternative})
        self.change({**self.tools, name: made})
        return made

    async def remove(self, name: str) -> None:
        if self.tools[name].endpoint.startswith("builtin:"):
            raise UserError("TOOL_BUILT_IN", f"{name} is built in")
        self.change({known: tool for known, tool in self.tools.items() if known != name})


class FakeTokens(Down):
    def __init__(self) -> None:
        super().__init__()
        self.quotas: dict[str, Quota] = {}
        self.limited_at: tuple[int, Limited] | None = None
        """After how often it was asked something is held back, and by what."""
        self.asked = 0
        self.counted = TokenFigures()
        self.figures_asked = 0

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Sequence[Held]:
        return ()

    async def limited(self, user_id: str) -> Limited | None:
        self.check()
        if self.limited_at is not None and self.asked >= self.limited_at[0]:
            return self.limited_at[1]
        self.asked += 1
        return None

    async def quota(self, user_id: str) -> Quota:
        self.check()
        return self.quotas.get(user_id, Quota())

    async def set_quota(self, user_id: str, quota: Quota) -> None:
        self.check()
        self.quotas[user_id] = quota

    async def key_quota(self, key_id: str) -> Quota:
        return await self.quota(key_id)

    async def set_key_quota(self, key_id: str, quota: Quota) -> None:
        await self.set_quota(key_id, quota)

    async def figures(self, user_id: str = "") -> TokenFigures:
        self.check()
        self.figures_asked += 1
        return self.counted

    async def reserve(self, reservation: Reservation) -> Denied | None:
        self.check()
        return None

    async def renew(self, reservation: Reservation) -> None:
        """Nobody looks."""

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        self.check()

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        self.check()


class FakeMcp(Down):
    """Each server has one tool, ``hello``; what is at ``http://gone/`` is not there."""

    def __init__(self, registry: FakeRegistry) -> None:
        super().__init__()
        self.servers: dict[str, McpServer] = {}
        self._registry = registry

    async def register(self, server: McpServer) -> Sequence[str]:
        self.check()
        if server.name in self.servers:
            raise UserError("TOOL_EXISTS", "there is one already")
        if server.url == "http://gone/":
            raise UserError("MCP_UNREACHABLE", "it is not there")
        self.servers[server.name] = server
        hello = replace(tool(f"{server.name}.hello", ANY), type="MCP", config={"health": "ok"})
        self._registry.change({**self._registry.tools, hello.name: hello})
        return [hello.name]

    async def show(self, name: str) -> JsonObject:
        self.check()
        if name not in self.servers:
            raise UserError("TOOL_UNKNOWN", "there is none")
        return {"name": name, "is_active": self.servers[name].is_active}

    async def change(self, name: str, changes: JsonObject) -> JsonObject:
        self.servers[name] = replace(self.servers[name], **changes)  # type: ignore[arg-type]
        return await self.show(name)

    async def remove(self, name: str) -> None:
        self.check()
        if name not in self.servers:
            raise UserError("TOOL_UNKNOWN", f"there is no MCP server {name!r}")
        del self.servers[name]
        left = {tool.name: tool for tool in self._registry.tools.values() if not tool.name.startswith(f"{name}.")}
        self._registry.change(left)


class FakeRay(Down):
    pass


class FakeParser:
    """Plans by outlines, until a test says what plans."""

    def __init__(self) -> None:
        self.inner = Parser()
        self.asked: list[PlanRequest] = []

    async def plan(self, request: PlanRequest) -> Planned:
        self.asked.append(request)
        return await self.inner.plan(request)


class Fakes:
    """All of them."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.registry = FakeRegistry()
        self.tokens = FakeTokens()
        self.mcp = FakeMcp(self.registry)
        self.ray = FakeRay()
        self.parser = FakeParser()

    def ports(self) -> Ports:
        health: Callable[[], Awaitable[Health]] = self.ray.health
        return Ports(
            scheduler=self.scheduler,
            registry=self.registry,
            tokens=self.tokens,
            mcp=self.mcp,
            parser=self.parser,
            ray=health,
        )
