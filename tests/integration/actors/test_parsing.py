"""The parser as the scheduler asks it: away, or broken by what it was asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from rayloom.actors import parsing
from rayloom.actors.parsing import APPLICATION, DEPLOYMENT, ServeParser
from rayloom.dag.answer import Answer
from rayloom.dag.errors import ErrorInfo, Transient, UserError
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import PARSER_BROKE


class _Parser:
    def __init__(self) -> None:
        self.heard = {"began": asyncio.Event(), "stopped": asyncio.Event()}

    async def plan(self, request: PlanRequest) -> Answer[Planned]:
        if request.prompt == "die":
            os._exit(1)
        if request.prompt == "hang":
            await asyncio.Event().wait()
        if request.prompt == "think":
            self.heard["began"].set()
            try:
                await asyncio.Event().wait()
            finally:
                self.heard["stopped"].set()
        if request.prompt in self.heard:
            await self.heard[request.prompt].wait()
        return "ok", Planned(plan={}, source="outline", notes=(), language="en", parsed_s=0.0, split_s=0.0)

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Answer[Early | Planned], None]:
        yield "ok", Early(subtask={"id": request.prompt})
        if request.prompt == "refuse":
            yield "error", ErrorInfo(code="PLAN_FAILED", error_class="user", message="no", retryable=False)
            return
        yield await self.plan(request)


@pytest.fixture(scope="module")
def serving(local_ray: Path) -> Iterator[None]:
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()  # type: ignore[no-untyped-call]


def _request(prompt: str) -> PlanRequest:
    return PlanRequest(task_id="t", prompt=prompt, context={}, tools={})


async def _code(parser: ServeParser, prompt: str) -> str:
    with pytest.raises(Transient) as refused:
        await parser.plan(_request(prompt))
    return refused.value.code


async def test_a_parser_that_is_away_is_told_from_one_that_broke(
    serving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = ServeParser()
    assert await _code(parser, "x") == "PARSER_UNAVAILABLE"
    deployment: Any = serve.deployment(_Parser, name=DEPLOYMENT, ray_actor_options={"num_cpus": 0})
    await asyncio.to_thread(serve.run, deployment.bind(), name=APPLICATION, route_prefix=None)
    assert (await parser.plan(_request("x"))).language == "en"
    assert await _code(parser, "die") == PARSER_BROKE
    # Waits for the replica that Serve puts in the place of the dead one.
    assert (await parser.plan(_request("x"))).language == "en"
    impatient = ServeParser(answer_s=0.0)
    assert await _code(impatient, "hang") == PARSER_BROKE
    with monkeypatch.context() as patched:
        patched.setattr(parsing, "TAKEN_S", 0.0)
        assert await _code(impatient, "x") == "PARSER_UNAVAILABLE"
    assert (await parser.plan(_request("x"))).language == "en"

    # Who gives up stops it: a model that goes on thinking costs money.
    thinking = asyncio.create_task(parser.plan(_request("think")))
    await parser.plan(_request("began"))
    thinking.cancel()
    await asyncio.wait({thinking})
    assert thinking.cancelled()
    assert (await parser.plan(_request("stopped"))).language == "en"


async def test_what_comes_before_the_plan_comes_at_once(serving: None) -> None:
    deployment: Any = serve.deployment(_Parser, name=DEPLOYMENT, ray_actor_options={"num_cpus": 0})
    await asyncio.to_thread(serve.run, deployment.bind(), name=APPLICATION, route_prefix=None)
    parser = ServeParser()
    early, planned = [given async for given in parser.stream(_request("x"))]
    assert early == Early(subtask={"id": "x"})
    assert isinstance(planned, Planned)
    with pytest.raises(UserError, match="no"):
        [given async for given in parser.stream(_request("refuse"))]
    for prompt in ("die", "hang"):
        broken = ServeParser(answer_s=2.0 if prompt == "hang" else 60.0).stream(_request(prompt))
        with pytest.raises(Transient) as refused:
            assert {str(given) async for given in broken} == {str(Early(subtask={"id": prompt}))}
        assert refused.value.code == PARSER_BROKE
    await parser.plan(_request("x"))

    # Who goes away stops it, whether it waits for more or not.
    waiting = parser.stream(_request("think"))
    assert await anext(waiting) == Early(subtask={"id": "think"})
    await parser.plan(_request("began"))
    await waiting.aclose()
    await parser.plan(_request("stopped"))
