"""Attempts by models at an endpoint that misbehaves, with programs in a real sandbox: each case ends as it should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from rayloom.actors.attempt import run_attempt
from rayloom.actors.attempt_record import ModelCallTold
from rayloom.actors.order import AttemptOrder, Thought
from rayloom.dag.model import ModelPort, Payer
from rayloom.dag.outcome import Outcome
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.metered import MeteredModels
from rayloom.tools.models.settings import ModelSettings, ModelsSettings
from tests.fakes.tools import tool
from tests.integration.models.endpoint import PATIENCE_S, Asked, Endpoint, Reply
from tests.integration.models.test_metered import Account
from tests.unit.actors.test_attempt import Place, order, waits

NUMBER: Json = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ROWS: Json = [{"name": f"row {n}", "words": "lorem ipsum " * 30} for n in range(60)]


@dataclass
class RealPlace(Place):
    """With models behind an endpoint, and the built-in tools that tests name."""

    clients: ModelClients | None = None
    account: Account = field(default_factory=Account)

    def models(self, order: AttemptOrder, on_call: Callable[[ModelCallTold], None]) -> ModelPort:
        assert self.clients is not None
        return MeteredModels(self.clients, self.account, Payer(user_id=order.user_id), on_call=on_call)

    def expect_settled(self) -> None:
        # Several at once are settled in the order of their ends.
        assert sorted(asked.id for asked in self.account.asked) == sorted(asked.id for asked, _ in self.account.settled)


Make = Callable[..., RealPlace]


@pytest.fixture
async def place() -> AsyncIterator[Make]:
    made: list[ModelClients] = []

    def make(endpoint: Endpoint, **settings: Any) -> RealPlace:
        model = ModelSettings(base_url=endpoint.url, model="scripted", price_in=1, **settings)
        made.append(ModelClients(ModelsSettings(models=(model,))))
        found = RealPlace(waits, clients=made[-1])
        for name in ("python.run", "core.echo"):
            found.registry[name] = (tool(name), BUILTINS[name])
        return found

    yield make
    for clients in made:
        await clients.aclose()


async def attempt(where: Place, input_: Json = None, kind: str = "REASONING", **more: Any) -> Outcome:
    told = Thought(task_type=kind, instruction="Do what is wanted.")
    return await run_attempt(order(input_, tool="", thought=told, **{"timeout_s": 120.0} | more), where)


def code_of(outcome: Outcome) -> str:
    return "" if outcome.error is None else outcome.error.code


@pytest.mark.parametrize(
    ("replies", "code", "asked"),
    [
        ([Reply(text='{"n": 1}')], "", 1),
        ([Reply(text='```json\n{"n": 1}\n```')], "", 1),
        ([Reply(text='{"n": "one"}'), Reply(text="{"), Reply(text='{"n": 1}')], "", 3),
        ([Reply(text="no")] * 3, "ANSWER_UNFIT", 3),
        ([Reply(text='{"n": 1}', ends="unfinished")] * 9, "MODEL_BROKE_OFF", None),
        ([Reply(status=401)], "MODEL_REFUSED", 1),
        ([Reply(status=429, headers={"retry-after": "60"})], "MODEL_RATE_LIMITED", 1),
        ([Reply(status=500)] * 9, "MODEL_UNAVAILABLE", None),
        ([Reply(text='{"n": 1}', usage={"prompt_tokens": 10**9, "completion_tokens": -5})], "", 1),
    ],
    ids=["good", "fenced", "mended", "unfit", "unfinished", "forbidden", "later", "failing", "absurd usage"],
)
async def test_an_endpoint_that_misbehaves(place: Make, replies: list[Reply], code: str, asked: int | None) -> None:
    with Endpoint(replies) as endpoint:
        where = place(endpoint)
        outcome = await attempt(where, {"output_schema": NUMBER})
        assert code_of(outcome) == code
        assert outcome.output == (None if code else '{"n":1}')
        assert asked is None or len(endpoint.asked) == asked
        assert outcome.tokens_used < 100_000
    where.expect_settled()


@pytest.mark.parametrize("hang", ["before", "within"])
async def test_the_time_of_the_attempt_bounds_a_model_that_hangs(place: Make, hang: Any) -> None:
    with Endpoint([Reply(), Reply(hang=hang)]) as endpoint:
        where = place(endpoint)
        # The client is there by then, and its connection: only the answer is waited for.
        assert (await attempt(where)).verdict == "succeeded"
        running = asyncio.ensure_future(attempt(where, timeout_s=4.0))
        asked = await asyncio.to_thread(endpoint.wait_asked, 2)
        outcome = await running
        assert outcome.verdict == "timed_out"
        assert await asyncio.to_thread(asked.left.wait, PATIENCE_S)
    where.expect_settled()


async def test_a_long_list_is_summarised_in_pieces(place: Make) -> None:
    def say(asked: Asked) -> Reply:
        return Reply(text="Rows of lorem." if "THE PART:" in asked.prompt else "All is lorem.")

    with Endpoint(say) as endpoint:
        where = place(endpoint, context_tokens=2_000, answer_tokens=200)
        outcome = await attempt(where, {"rows": ROWS, "which": "all"})
        assert outcome.output == '{"text":"All is lorem."}'
        *parts, last = (asked.prompt for asked in endpoint.asked)
        assert len(parts) > 2
        # No row is lost on the way, and none is divided.
        assert all(sum(f'"name":"row {n}"' in part for part in parts) == 1 for n in range(60))
        assert '"which":"all"' in last
        assert "Rows of lorem." in last
        assert any("'rows' has" in message for _, message in where.log.lines)
    where.expect_settled()


async def test_a_program_is_written_run_and_mended(place: Make) -> None:
    programs = iter(
        [
            "for",
            "raise SystemExit('not yet')",
            "import json; json.load(open('elsewhere.json'))",
            "import json; print(len(json.load(open('input.json'))['rows'])); open('made.txt', 'w').write('x')",
        ]
    )
    with Endpoint(lambda _asked: Reply(text=f"Here:\n```python\n{next(programs)}\n```\n")) as endpoint:
        where = place(endpoint)
        given: Json = {"rows": ROWS, "max_repairs": 3, "output_schema": {"type": "integer"}}
        outcome = await attempt(where, given, "CODE_GEN")
        assert outcome.output is not None, outcome.error
        output = orjson.loads(outcome.output)
        assert (output["result"], output["repairs"], list(output["files"])) == (60, 3, ["made.txt"])
        faults = [tried["fault"].partition(":")[0] for tried in output["attempts"]]
        assert faults == ["it is no Python", "it ended with exit code 1", "it ended with exit code 1", ""]
        assert "not yet" in endpoint.asked[2].prompt
    where.expect_settled()


async def test_a_program_that_can_not_be_mended_is_told(place: Make) -> None:
    with Endpoint(lambda _asked: Reply(text="```python\nraise SystemExit(3)\n```")) as endpoint:
        outcome = await attempt(place(endpoint), None, "CODE_GEN")
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("CODE_FAILED", False)
    assert "exit code 3" in outcome.error.message


async def test_steps_go_over_the_wire(place: Make) -> None:
    replies = [
        Reply(text='{"call": "core.echo", "input": {"value": {"n": 4}}}'),
        Reply(text='{"call": "core.nothing", "input": {}}'),
        Reply(text='{"answer": {"n": 4}}'),
    ]
    with Endpoint(replies) as endpoint:
        where = place(endpoint)
        outcome = await attempt(where, {"use_tools": ["core.*"], "output_schema": NUMBER})
        assert outcome.output == '{"n":4}'
        assert '{"result":{"n":4}}' in endpoint.asked[1].prompt
    spans = [(span["kind"], span["name"]) for span in orjson.loads(outcome.spans)]
    assert spans.count(("tool", "core.echo")) == 1
    where.expect_settled()
