"""The whole parser against an endpoint that misbehaves: each case ends as designed, and none gives a bad plan."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from rayloom.actors import callers
from rayloom.actors.settings import EngineSettings
from rayloom.cluster.planning_models import planning_models
from rayloom.dag.errors import NeedsClarification, Transient, UserError
from rayloom.dag.model import Denied, ModelUse, Payer, ProviderLimits, Reservation
from rayloom.dag.plan import parse_plan
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.dag.verify import verify
from rayloom.serve.parser import Parser
from rayloom.tools.models import clients as model_clients
from rayloom.tools.models import patience
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.metered import MeteredModels
from rayloom.tools.models.settings import ModelSettings, ModelsSettings
from tests.integration.models.conftest import Serve
from tests.integration.models.endpoint import Endpoint, Reply, refusing
from tests.unit.dag.planning.views import VIEWS

STEPS: list[dict[str, Any]] = [
    {"id": "page", "tool": "http.fetch_text", "input": {"url": "https://a.example"}, "after": []},
    {"id": "sum", "tool": "think", "do": "Sum it up", "after": ["page"]},
]
OUTLINED = '1. @http.fetch_text {"url": "https://a.example"}\n2. Sum it up'


def said(steps: list[dict[str, Any]], **more: Any) -> str:
    return json.dumps({"intent": "look", **more, "subtasks": steps})


GOOD = said(STEPS)
CYCLE = said([{**STEPS[0], "after": ["sum"]}, STEPS[1]])
NO_TOOL = said([{**STEPS[0], "tool": "browser.open"}, STEPS[1]])


@dataclass(slots=True)
class Account:
    """Grants everything, and keeps what was reserved and settled."""

    asked: list[str] = field(default_factory=list)
    reserved: dict[str, Reservation] = field(default_factory=dict)
    settled: dict[str, ModelUse] = field(default_factory=dict)

    async def reserve(self, reservation: Reservation) -> Denied | None:
        self.asked.append(reservation.id)
        self.reserved[reservation.id] = reservation
        return None

    async def renew(self, reservation: Reservation) -> None:
        return None

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        self.settled[reservation.id] = use

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        return None


Make = Callable[..., Parser]


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
async def closing() -> AsyncIterator[list[ModelClients]]:
    """What is put here is closed."""
    made: list[ModelClients] = []
    yield made
    for clients in made:
        await clients.aclose()


@pytest.fixture
def parser(account: Account, closing: list[ModelClients]) -> Make:
    """Makes parsers that plan with an endpoint's model, on the account."""

    def make(endpoint: Endpoint, **settings: Any) -> Parser:
        model = ModelSettings(base_url=endpoint.url, model="scripted", **settings)
        clients = ModelClients(ModelsSettings(models=(model,)))
        closing.append(clients)
        return Parser(lambda payer: MeteredModels(clients, account, payer))

    return make


def request(prompt: str = "Sum the example page up") -> PlanRequest:
    return PlanRequest(task_id="t", prompt=prompt, context={}, tools=VIEWS, payer=Payer(user_id="u", task_id="t"))


async def planned(parser: Parser, prompt: str = "Sum the example page up") -> Planned:
    found = await parser.plan(request(prompt))
    verify(parse_plan(found.plan), tools=VIEWS, nodes=(), model_available=True)
    return found


@pytest.mark.parametrize(
    ("first", "heard"),
    [
        (CYCLE, "closes a cycle"),
        (NO_TOOL, "there is no tool `browser.open`"),
        ('{"subtasks": [{"id": "a"', "breaks off"),
        ("I would open the page and read it.", "no JSON"),
        ('{"unasked": true}', "no list `subtasks`"),
        (said([{**STEPS[0], "input": {"address": "https://a.example"}}, STEPS[1]]), "/subtasks/0/input/url"),
        (said([{**STEPS[0], "input": {"url": {"$secret": "admin"}}}, STEPS[1]]), "no secret `admin`"),
    ],
    ids=["cycle", "no such tool", "cut off", "prose", "wrong schema", "wrong input", "secret"],
)
async def test_what_is_wrong_is_said_and_mended(
    serve: Serve, parser: Make, account: Account, first: str, heard: str
) -> None:
    endpoint = serve([Reply(text=first), Reply(text=GOOD)])
    found = await planned(parser(endpoint))
    assert (found.source, found.repairs) == ("model", 1)
    assert heard in endpoint.asked[1].prompt
    assert first[:40] in endpoint.asked[1].prompt
    assert set(account.reserved) == set(account.settled)
    assert [each.purpose for each in account.reserved.values()] == ["split", "repair"]
    assert {each.payer.user_id for each in account.reserved.values()} == {"u"}
    # What it says that it has used is what was paid for, whatever the answers were like.
    assert found.use == sum(account.settled.values(), ModelUse())
    assert found.use.tokens > 0


@pytest.mark.parametrize("text", [CYCLE, NO_TOOL, "prose", "{}"], ids=["cycle", "no such tool", "prose", "empty"])
async def test_what_stays_wrong_is_asked_for_three_times_and_no_more(serve: Serve, parser: Make, text: str) -> None:
    endpoint = serve(lambda asked: Reply(text=text))
    with pytest.raises(UserError) as failed:
        await parser(endpoint).plan(request())
    assert failed.value.code == "PLAN_FAILED"
    assert len(endpoint.asked) == 3
    found = await planned(parser(endpoint), OUTLINED)
    assert (found.source, found.repairs) == ("outline", 2)


async def test_fences_and_prose_cost_no_round(serve: Serve, parser: Make) -> None:
    endpoint = serve(lambda asked: Reply(text=f"Here you are:\n```json\n{GOOD}\n```"))
    found = await planned(parser(endpoint))
    assert (found.source, found.repairs, len(endpoint.asked)) == ("model", 0, 1)


async def test_an_answer_of_200_kb_is_not_read_but_asked_for_again(serve: Serve, parser: Make) -> None:
    long = Reply(text='{"intent":"' + "very " * 40_000 + '"}', piece_chars=4_000)
    endpoint = serve([long, Reply(text=GOOD)])
    found = await planned(parser(endpoint))
    assert (found.source, found.repairs) == ("model", 1)
    assert len(endpoint.asked[1].prompt) < 20_000


@pytest.mark.parametrize(
    ("reply", "settings"),
    [
        (Reply(hang="before"), {"first_text_s": 0.2, "call_s": 5.0}),
        (Reply(hang="first"), {"first_text_s": 0.2, "call_s": 5.0}),
        (Reply(text=GOOD, hang="within"), {"silence_s": 0.2, "call_s": 5.0}),
        (Reply(text=GOOD, ends="cut"), {}),
        (Reply(text=GOOD, ends="unfinished"), {}),
    ],
    ids=["hangs before", "hangs at first", "hangs within", "cut", "unfinished"],
)
async def test_half_an_answer_is_none(
    serve: Serve, parser: Make, account: Account, reply: Reply, settings: dict[str, Any]
) -> None:
    endpoint = serve(lambda asked: reply)
    with pytest.raises(Transient):
        await parser(endpoint, **settings).plan(request())
    # Whoever laid the work out himself does not wait for a model.
    assert (await planned(parser(endpoint, **settings), OUTLINED)).source == "outline"
    assert set(account.reserved) == set(account.settled)


async def test_an_endpoint_without_structured_output_plans_all_the_same(serve: Serve, parser: Make) -> None:
    endpoint = serve(refusing(["response_format"], Reply(text=GOOD)))
    assert (await planned(parser(endpoint))).source == "model"


async def test_questions_come_back(serve: Serve, parser: Make) -> None:
    endpoint = serve([Reply(text=said([], questions=["Which page?"]))])
    with pytest.raises(NeedsClarification) as asked:
        await parser(endpoint).plan(request("Do it"))
    assert asked.value.questions == ("Which page?",)


@pytest.mark.parametrize("prompt", ["Sum the example page up", OUTLINED], ids=["words", "a list"])
@pytest.mark.parametrize("task_id", ["t", ""], ids=["kept", "of no task"])
async def test_who_plans_a_task_waits_no_window_for_a_repair(
    serve: Serve, closing: list[ModelClients], monkeypatch: pytest.MonkeyPatch, task_id: str, prompt: str
) -> None:
    class Full(Account):
        async def reserve(self, reservation: Reservation) -> Denied | None:
            await Account.reserve(self, reservation)
            # After the plan, and once.
            if len(self.asked) != 2:
                return None
            return Denied(level="user", limit="tokens_per_min", detail="spent", retry_in_s=6.0)

    account = Full()
    monkeypatch.setattr(patience, "AGAIN_MAX_S", 0.01)
    monkeypatch.setattr(callers, "RayAccounts", lambda engine: account)
    model = ModelSettings(base_url=serve([Reply(text=CYCLE), Reply(text=GOOD)]).url, model="scripted")
    clients = ModelClients(ModelsSettings(models=(model,)))
    closing.append(clients)
    monkeypatch.setattr(model_clients, "ModelClients", lambda settings: clients)
    parser = Parser(planning_models(ModelsSettings(), EngineSettings()))
    asked = replace(request(prompt), payer=Payer(user_id="u", task_id=task_id))
    if not task_id:
        # It would have to be paid for again: nobody keeps it.
        assert (await parser.plan(asked)).repairs == 1
        return
    with pytest.raises(Transient) as failed:
        await parser.plan(asked)
    assert failed.value.code == "QUOTA_EXCEEDED"
    assert failed.value.tried is not None
    # Who tries again goes on from it.
    found = await parser.plan(replace(asked, tried=failed.value.tried))
    assert (found.source, found.repairs, [call.purpose for call in found.calls]) == ("model", 1, ["split", "repair"])
