"""Requests at random: whatever is asked is answered, in JSON, and never with a fault of ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

import pytest
from pydantic import SecretStr

from rayloom.dag.errors import Refused, Transient
from rayloom.dag.values import JsonObject
from rayloom.serve.parser import Parser
from rayloom.serve.settings import ServeSettings
from tests.fakes.answering_models import AnsweringModels, Step
from tests.integration.serve.world import Person, World

COUNT: Final = 300
SAID: Final[tuple[Step, ...]] = (
    '{"subtasks":[{"id":"a","tool":"core.echo","input":{"value":1}},{"id":"b","do":"x","after":["a"]}]}',
    '{"subtasks":[{"id":"a","tool":"none.such","after":["zz"]}]}',
    '{"questions":["Which?"],"subtasks":[]}',
    '{"subtasks": [[[[',
    "",
    Transient("MODEL_UNAVAILABLE", "away"),
    Transient("QUOTA_EXCEEDED", "spent"),
    Refused("MODEL_REFUSED", "HTTP 401"),
)
GOOD: Final = ("plan it", "1. @core.echo {}\n2. think", "${a.output}", "\u202e", "a" * 3_000, "分三步做")
BAD: Final = ("", " ", "\0")
NUMBERS: Final = (0, -1, 1, 1.5, 2**63, 10**30, 1e308, True, None, "5")


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(request_timeout_s=60, secret_key=SecretStr("secret"), with_models=True)


class Dice:
    """Bodies of requests, most of whose members are what they should be."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, *of: Any) -> Any:
        return self._random.choice(of)

    def often(self) -> bool:
        return self._random.random() < 0.95

    def text(self) -> str:
        return str(self.one(*GOOD) if self.often() else self.one(*BAD))

    def anything(self, depth: int = 0) -> Any:
        kind = self.one("text", "number", "list", "object") if depth < 3 else "text"
        if kind == "text":
            return self.text()
        if kind == "number":
            return self.one(*NUMBERS)
        inner = [self.anything(depth + 1) for _ in range(self.one(0, 1, 2))]
        return (
            inner if kind == "list" else {self.one("$ref", "$literal", "$secret", "a", "type"): each for each in inner}
        )

    def some(self, **members: Callable[[], Any]) -> JsonObject:
        chosen = {name: make for name, make in members.items() if self.one(True, False)}
        return {name: make() if self.often() else self.anything() for name, make in chosen.items()}

    def limits(self, *names: str) -> JsonObject:
        return self.some(**dict.fromkeys(names, lambda: 1 if self.often() else self.one(*NUMBERS)))

    def schema(self, depth: int = 0) -> Any:
        def inner() -> Any:
            return self.schema(depth + 1) if depth < 2 else {}

        return self.some(
            **{
                "type": lambda: self.one("object", "string", "nonsense"),
                "properties": lambda: {"a": inner()},
                "pattern": lambda: self.one("^(a+)+$", "("),
                "not": inner,
                "oneOf": lambda: [inner(), inner()],
                "$ref": lambda: self.one("#", "#/$defs/a%20b", "#/oneOf/0", "#name", "https://a.example/"),
                "$defs": lambda: {"a b": inner()},
            }
        )

    def tool(self) -> JsonObject:
        return {"name": self.one("a.b", "core.echo", "c"), "description": self.text()[:100], "schema": self.schema()}

    def prompted(self) -> JsonObject:
        budget = ("max_tokens", "max_cost_usd", "deadline_s")
        return self.some(context=lambda: {"a": self.anything()}, budget=lambda: self.limits(*budget)) | {
            "prompt": self.text()
        }

    def subtask(self) -> JsonObject:
        thinks = self.some(
            output_schema=self.schema, use_tools=lambda: ["core.*"], max_steps=lambda: 3, x=lambda: {"$ref": "a.output"}
        )
        return {"id": self.one("a", "b"), "type": self.one("REASONING", "CODE_GEN", "TOOL")} | self.some(
            instruction=self.text, input=lambda: self.one(thinks, {"value": 1}), tool=lambda: "core.echo",
            depends_on=lambda: [] if self.often() else ["a"],
        )  # fmt: skip


def _request(dice: Dice, me: Person) -> tuple[str, str, Any]:
    what = dice.one("plan", "plan", "prompt", "subtasks", "quota", "key")
    if what == "plan":
        return "POST", "/plans", dice.prompted() | dice.some(tools=lambda: [dice.tool()])
    if what == "prompt":
        return "POST", "/tasks", dice.prompted() | dice.some(tools=lambda: {"deny": ["core.*"]}, priority=lambda: 5)
    if what == "subtasks":
        return "POST", "/tasks", {"plan": {"subtasks": [dice.subtask() for _ in range(dice.one(1, 2))]}}
    limits = dice.limits("max_tokens", "max_cost_usd", "tokens_per_min", "requests_per_min", "max_concurrent", "x")
    path = f"/quotas/{dice.one(me.id, 'x', '%00')}" if what == "quota" else f"/keys/{dice.one(me.key_id, 'x')}/quota"
    return "PUT", path, limits


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_that_is_asked_is_a_fault_of_ours(world: World, seed: int) -> None:
    me, dice = await world.user("admin"), Dice(seed)
    said: dict[int, int] = {}
    for _ in range(COUNT):
        world.fakes.parser.inner = Parser(lambda payer: AnsweringModels(*dice.one(*((each,) for each in SAID))))
        method, path, body = _request(dice, me)
        async with asyncio.timeout(120):
            answer = await me.http.request(method, f"/api/v1{path}", json=body)
        said[answer.status_code] = said.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 202, 404, 422, 429, 503), (method, path, body, answer.text)
        assert isinstance(answer.json(), dict)
        if answer.status_code in (429, 503):
            assert int(answer.headers["retry-after"]) >= 1
        if answer.status_code == 422:
            assert answer.json()["errors"], answer.text
    # Not all of it was refused at the door.
    assert said.get(200, 0) + said.get(202, 0) >= COUNT // 10
