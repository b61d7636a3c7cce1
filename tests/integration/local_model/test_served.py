"""A whole rayloom with the real small model on it: downloaded, served by llama.cpp, asked by our own client.

The download is kept in build/models; `make test-model` makes it before these tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from pydantic import SecretStr

from rayloom.cluster.local_model.catalogue import SMALL
from rayloom.cluster.local_model.look import look
from rayloom.dag.model import Message, ModelRequest
from rayloom.tools.models.client import ModelClient
from rayloom.tools.models.settings import ModelSettings
from tests.integration.instance import Instance, prepared
from tests.integration.local_model.shelf import KEPT
from tests.integration.waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

PROGRAM = "local_model/llama.py"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


class Served:
    """The model of an instance, at its face."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.url = f"{instance.url}/local-model"
        self.key = (instance.home / "local_model_key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def answers(self) -> bool:
        return look(self.url, self.key).state == "answers"

    def measure(self, name: str) -> float:
        text = httpx2.get(f"{self.url}/metrics", headers=self.headers, timeout=60, trust_env=False).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"llamacpp:{name} "))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with prepared(
        lambda home: (home / "models").symlink_to(KEPT),
        RAYLOOM_LOCAL_MODEL="small",
        RAYLOOM_LOCAL_MODEL_LICENCE="accept",
    ) as instance:
        found = Served(instance)
        wait_until(found.answers, what=instance.said)
        yield found


@pytest.fixture
async def client(served: Served) -> AsyncIterator[ModelClient]:
    settings = ModelSettings(
        base_url=f"{served.url}/v1",
        api_key=SecretStr(served.key),
        model="small",
        context_tokens=SMALL.context_tokens,
        answer_tokens=SMALL.answer_tokens,
        first_text_s=300,
        silence_s=300,
    )
    made = ModelClient(settings)
    yield made
    await made.aclose()


def question(text: str, **more: object) -> ModelRequest:
    return ModelRequest(role="reasoner", purpose="reason", messages=(Message(speaker="user", text=text),), **more)  # type: ignore[arg-type]  # by name


def test_up_says_that_it_loads_and_when_it_answers(served: Served) -> None:
    wait_until(lambda: "the local model `small` answers (" in served.instance.said(), what=served.instance.said)
    assert "loading the local model `small`; prompts wait for it" in served.instance.said()


async def test_an_answer_comes_as_a_stream_and_what_it_used_is_counted_by_the_model(client: ModelClient) -> None:
    pieces: list[str] = []
    answer = await client.complete(question("Say hello.", max_tokens=12), on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text
    assert not answer.use.is_estimated
    assert 0 < answer.use.tokens_out <= 12
    assert answer.use.tokens_in > 0


async def test_an_answer_under_a_schema_fits_it(client: ModelClient) -> None:
    answer = await client.complete(question("A trip to Rome, in JSON.", schema=SCHEMA, max_tokens=64))
    assert isinstance(answer.value, dict)
    assert answer.value["city"] in ("Paris", "Rome")


async def test_a_call_that_is_cancelled_frees_its_slot(served: Served, client: ModelClient) -> None:
    before = served.measure("tokens_predicted_total")
    heard = asyncio.Event()
    most = SMALL.answer_tokens
    calls = [
        asyncio.create_task(
            client.complete(
                question(f"Count to {number}.", max_tokens=most, schema={"type": "array", "minItems": 2_000}),
                on_text=lambda _: heard.set(),
            )
        )
        for number in range(SMALL.slots)
    ]
    await heard.wait()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.to_thread(wait_until, lambda: served.measure("requests_processing") == 0)
    assert served.measure("tokens_predicted_total") - before < most, "it thought to the end though nobody listened"


def test_nobody_gets_in_without_the_key_which_nobody_is_shown(served: Served) -> None:
    with httpx2.Client(base_url=served.url, trust_env=False) as plain:
        for path in ("/health", "/v1/models", "/metrics"):
            assert plain.get(path).status_code == 401
        assert plain.get("/slots", headers=served.headers).status_code == 404
    process = served.instance.process(PROGRAM)
    said = served.instance.said() + served.instance.rayloom("status") + process.title
    assert served.key not in said
    assert served.key not in (served.instance.home / "logs" / "local-model.log").read_text()


def test_status_shows_it(served: Served) -> None:
    status = served.instance.json("status")
    assert status["services"]["local_model"] == "small"
    assert status["models"]["state"] == "ok"
    assert "small at 127.0.0.1" in status["models"]["detail"]


async def test_a_server_that_is_killed_comes_back_by_itself(served: Served, client: ModelClient) -> None:
    killed = served.instance.process(PROGRAM)
    os.kill(killed.pid, signal.SIGKILL)
    wait_until(lambda: not killed.is_alive)
    # Until then the face may not have noticed.
    wait_until(lambda: any(each.pid != killed.pid for each in served.instance.processes(PROGRAM)))
    wait_until(served.answers, what=served.instance.last_words)
    assert (await client.complete(question("Say hello.", max_tokens=4))).text


def test_a_replica_that_is_killed_takes_its_server_along_and_comes_back(served: Served) -> None:
    server, replica = served.instance.process(PROGRAM), served.instance.process("rayloom-local-model:LocalModel")
    os.kill(replica.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_alive)
    wait_until(served.answers, what=served.instance.last_words)
