"""The singletons as a test plays them: plain objects that remember what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from rayloom.actors.registry import check_name
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.ports import Ask, Finished, Health, Held, Limited, Quota, RegisteredTool, ToolSnapshot
from rayloom.dag.resources import NodeShape
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

    def check(self) -> None:
        if self.is_down:
            raise Transient("AWAY", f"{type(self).__name__} is away")

    async def health(self) -> Health:
        self.check()
        return {}


class FakeScheduler(Down):
    def __init__(self) -> None:
        super().__init__()
        self.woken = 0
        self.stopped: list[tuple[str, int]] = []
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


class FakeRegistry(Down):
    def __init__(self) -> None:
        super().__init__()
        self.tools: Mapping[str, RegisteredTool] = {tool.name: tool for tool in TOOLS}
        self.version = 1
        self.news = asyncio.Event()

    def change(self, tools: Mapping[str, RegisteredTool]) -> None:
        self.tools, self.version = tools, self.version + 1
        self.news.set()
        self.news = asyncio.Event()

    async def snapshot(self) -> ToolSnapshot:
        self.check()
        return ToolSnapshot(version=self.version, tools=self.tools)

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

    async def set_active(self, name: str, active: bool) -> RegisteredTool:
        made = replace(self.tools[name], is_active=active)
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


class FakeRay(Down):
    pass


class Fakes:
    """All of them."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.registry = FakeRegistry()
        self.tokens = FakeTokens()
        self.ray = FakeRay()

    def ports(self) -> Ports:
        health: Callable[[], Awaitable[Health]] = self.ray.health
        return Ports(scheduler=self.scheduler, registry=self.registry, tokens=self.tokens, parser=Parser(), ray=health)
