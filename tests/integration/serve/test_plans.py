"""Plans of prompts, over HTTP: with a model, with tools of the request, and what becomes of questions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.dag.errors import Refused, Transient
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.dag.ports import Limited
from rayloom.dag.values import JsonObject
from rayloom.serve.parser import Parser
from rayloom.serve.settings import ServeSettings
from tests.fakes.answering_models import AnsweringModels, Step
from tests.integration.serve.world import World

WEATHER: JsonObject = {
    "name": "weather.get",
    "description": "Gives the weather of a city.",
    "schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PLAN = json.dumps(
    {
        "intent": "compare",
        "subtasks": [
            {"id": "oslo", "tool": "weather.get", "input": {"city": "Oslo"}, "after": []},
            {"id": "rome", "tool": "weather.get", "input": {"city": "Rome"}, "after": []},
            {"id": "both", "tool": "think", "do": "Compare", "after": ["oslo", "rome"]},
        ],
    }
)


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(request_timeout_s=60, secret_key=SecretStr("secret"), with_models=True)


def _models(world: World, *script: Step) -> AnsweringModels:
    models = AnsweringModels(*script, price_out=1_000_000.0)
    world.fakes.parser.inner = Parser(lambda payer: models)
    return models


async def test_tools_of_the_request_are_planned_with_in_place_of_the_registered_ones(world: World) -> None:
    me = await world.user()
    models = _models(world, '{"subtasks":[{"id":"a","tool":"core.echo","input":{"value":1}}]}', PLAN)
    body = {"prompt": "Compare Oslo and Rome", "tools": [WEATHER], "budget": {"max_tokens": 10}}
    made = (await me.http.post("/api/v1/plans", json=body)).json()
    assert (made["source"], made["repairs"], made["width"]) == ("model", 1, 2)
    assert made["critical_path"] == ["oslo", "both"]
    assert made["brief"] == {"intent": "compare", "language": "en"}
    assert made["usage"] == {"tokens": 30, "cost_usd": 0.0}
    estimate = made["estimate"]
    assert (estimate["tokens"] > 0, estimate["cost_usd"] > 0, estimate["seconds"] > 0) == (True, True, True)
    assert any("`max_tokens`" in warning for warning in made["warnings"])
    assert "weather.get{city: string}" in models.asked[0].messages[1].text
    assert "core.echo" not in models.asked[0].messages[1].text
    (asked,) = world.fakes.parser.asked
    assert asked.payer.user_id
    assert asked.payer.key_id == str(me.key_id)
    assert (await me.get("/tasks"))["items"] == []


async def test_the_outline_names_tools_of_the_request_too(world: World) -> None:
    me = await world.user()
    body = {"prompt": '1. @weather.get {"city": "Oslo"}\n2. @core.noop {}', "tools": [WEATHER]}
    made = (await me.http.post("/api/v1/plans", json=body)).json()
    assert [each["tool"] for each in made["plan"]["subtasks"]] == ["weather.get", "core.echo"]
    assert made["width"] == 1


@pytest.mark.parametrize(
    ("tools", "pointers"),
    [
        ({}, ["/tools"]),
        ([{"name": "x"}], ["/tools/0/schema"]),
        ([WEATHER, WEATHER], ["/tools/1/name"]),
        ([{**WEATHER, "schema": {"type": "nonsense"}}], ["/tools/0/schema/type"]),
    ],
)
async def test_tools_that_are_none_are_refused(world: World, tools: Any, pointers: list[str]) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/plans", json={"prompt": "x", "tools": tools})
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == pointers


async def test_questions_are_422_with_the_questions(world: World) -> None:
    me = await world.user()
    _models(world, '{"questions":["Which city?","Which day?"],"subtasks":[]}')
    answer = await me.http.post("/api/v1/plans", json={"prompt": "The weather"})
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "urn:rayloom:problem:needs-clarification")
    assert problem["questions"] == ["Which city?", "Which day?"]


async def test_what_can_not_be_planned_is_422_and_a_model_that_is_away_503(world: World) -> None:
    me = await world.user()
    _models(world, "nothing")
    answer = await me.http.post("/api/v1/plans", json={"prompt": "The weather"})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:rayloom:problem:plan-failed")
    _models(world, Transient("MODEL_UNAVAILABLE", "away", retry_after_s=7))
    answer = await me.http.post("/api/v1/plans", json={"prompt": "The weather"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize("code", ["MODEL_REFUSED", "MODEL_MISSING"])
async def test_what_an_endpoint_says_to_us_is_not_said_to_the_caller(world: World, code: str) -> None:
    me = await world.user()
    _models(world, Refused(code, "HTTP 401 from the endpoint; set its api_key"))
    answer = await me.http.post("/api/v1/plans", json={"prompt": "The weather"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert answer.json()["type"] == f"urn:rayloom:problem:{code.lower().replace('_', '-')}"


async def test_a_limit_that_holds_its_user_back_is_429_before_a_model_is_asked(world: World) -> None:
    me = await world.user()
    models = _models(world, PLAN)
    for free_in_s, retry_after in ((None, "60"), (45.0, "45")):
        world.fakes.tokens.limited_at = (0, Limited(limit="tokens_per_min", free_in_s=free_in_s))
        answer = await me.http.post("/api/v1/plans", json={"prompt": "The weather"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, retry_after)
        assert "tokens_per_min" in answer.json()["detail"]
    assert models.asked == []
    world.fakes.tokens.limited_at = None
    _models(world, Transient("QUOTA_EXCEEDED", "spent"))
    answer = await me.http.post("/api/v1/plans", json={"prompt": "The weather"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")


async def test_nobody_plans_as_much_at_once_as_to_keep_others_waiting(world: World) -> None:
    begun, go = asyncio.Semaphore(0), asyncio.Event()

    class Slow(Parser):
        async def plan(self, request: PlanRequest) -> Planned:
            begun.release()
            await go.wait()
            return await super().plan(request)

    me, other = await world.user(), await world.user()
    world.fakes.parser.inner = Slow()
    body = {"prompt": "x"}
    most = ServeSettings().plannings_at_once
    under_way = [asyncio.create_task(me.http.post("/api/v1/plans", json=body)) for _ in range(most)]
    for _ in under_way:
        await begun.acquire()
    answer = await me.http.post("/api/v1/plans", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["type"] == "urn:rayloom:problem:too-many-at-once"
    waiting = asyncio.create_task(other.http.post("/api/v1/plans", json=body))
    await begun.acquire()
    go.set()
    assert [each.status_code for each in await asyncio.gather(*under_way, waiting)] == [200] * (most + 1)
    assert (await me.http.post("/api/v1/plans", json=body)).status_code == 200


async def test_thinking_is_accepted_where_a_model_is_configured(world: World) -> None:
    me = await world.user()
    plan = {"subtasks": [{"id": "a", "type": "REASONING", "instruction": "think"}]}
    answer = await me.http.post("/api/v1/tasks", json={"plan": plan})
    assert answer.status_code == 202, answer.text


class TestImpatience:
    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(secret_key=SecretStr("secret"), with_models=True, plan_timeout_s=0.05)

    async def test_a_plan_that_takes_too_long_is_503(self, world: World) -> None:
        class Silent(Parser):
            async def plan(self, request: PlanRequest) -> Planned:
                await asyncio.Event().wait()
                raise AssertionError

        me = await world.user()
        world.fakes.parser.inner = Silent()
        answer = await me.http.post("/api/v1/plans", json={"prompt": "x"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
