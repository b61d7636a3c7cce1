"""The slow world of `python -m bench.planner --makespan`: its model writes the plans, and all else takes its time."""

from __future__ import annotations

import time

import httpx2

from bench.planner.slow import CHARS_PER_S, SlowWorld
from rayloom.dag.model import Message, ModelRequest
from rayloom.tools.models.client import ModelClient
from rayloom.tools.models.settings import ModelSettings

PLAN = '{"subtasks": []}' * 4


def question(*texts: str) -> ModelRequest:
    messages = tuple(Message(speaker="user", text=text) for text in texts)
    return ModelRequest(role="planner", messages=messages, purpose="split")


async def test_it_writes_plans_thinks_and_answers_calls() -> None:
    with SlowWorld({"<a>": PLAN}, call_s=0.05) as world:
        client = ModelClient(ModelSettings(base_url=f"{world.url}/v1", model="slow"))
        pieces: list[str] = []
        began_at = time.time()
        answer = await client.complete(question("You plan work.", "<a> do it"), on_text=pieces.append)
        assert (answer.text, "".join(pieces)) == (PLAN, PLAN)
        assert world.last_token_at["<a>"] - began_at >= 0.9 * len(PLAN) / CHARS_PER_S
        assert (await client.complete(question("<a> think"))).text == "Done."
        await client.aclose()
        async with httpx2.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{world.url}/call/a/b")).json() == {"ok": True}
            assert (await http.post(f"{world.url}/call/a/b", json={})).json() == {"ok": True}
            assert (await http.get(f"{world.url}/v1/models")).json()["data"][0]["id"] == "slow"
