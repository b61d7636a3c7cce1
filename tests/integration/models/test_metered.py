"""Calls that are paid for: reserved before, settled whatever becomes of them, and written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rayloom.dag.errors import AnswerInvalid, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import Denied, ModelPort, ModelUse, Payer, ProviderLimits, Reservation
from rayloom.dag.reservations import LEASE_S
from rayloom.tools.models import client, metered
from rayloom.tools.models import patience as patience_module
from rayloom.tools.models.call_record import CallRecord
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.metered import PATIENT, MeteredModels
from rayloom.tools.models.patience import Patience
from rayloom.tools.models.settings import ModelSettings, ModelsSettings
from rayloom.tools.models.tokens import count
from rayloom.tools.models.wire import prompt_tokens
from tests.integration.models.conftest import Serve, question
from tests.integration.models.endpoint import PATIENCE_S, Endpoint, Reply

PAYER = Payer(user_id="u", key_id="k", task_id="t", sub_task_id="s", attempt=2)


@dataclass(slots=True)
class Account:
    """Answers what it is told, in turn, and then grants; remembers what it was asked and told."""

    answers: list[Denied | Transient] = field(default_factory=list)
    settle_faults: int = 0
    asked: list[Reservation] = field(default_factory=list)
    settled: list[tuple[Reservation, ModelUse]] = field(default_factory=list)
    learned: list[tuple[str, ProviderLimits]] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None
    settling: asyncio.Event = field(default_factory=asyncio.Event)
    settle_gate: asyncio.Event | None = None
    renewed: list[Reservation] = field(default_factory=list)
    renewing: asyncio.Event = field(default_factory=asyncio.Event)

    async def reserve(self, reservation: Reservation) -> Denied | None:
        self.asked.append(reservation)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Transient):
            raise answer
        return answer

    async def renew(self, reservation: Reservation) -> None:
        self.renewed.append(reservation)
        self.renewing.set()

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        self.settling.set()
        if self.settle_gate is not None:
            await self.settle_gate.wait()
        if self.settle_faults:
            self.settle_faults -= 1
            raise Transient("ACTOR_UNAVAILABLE", "the token controller is away")
        self.settled.append((reservation, use))

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        self.learned.append((model, limits))


@dataclass(slots=True)
class Bench:
    models: MeteredModels
    account: Account
    records: list[CallRecord]


Setting = Callable[..., Bench]


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    """Makes metered models of an endpoint."""
    made: list[ModelClients] = []

    def make(
        endpoint: Endpoint, account: Account | None = None, *, patience: Patience = PATIENT, **settings: Any
    ) -> Bench:
        given: dict[str, Any] = {"name": "big", "model": "scripted", "price_in": 1, "price_out": 10} | settings
        clients = ModelClients(ModelsSettings(models=(ModelSettings(base_url=endpoint.url, **given),)))
        made.append(clients)
        account, records = account or Account(), list[CallRecord]()
        models = MeteredModels(clients, account, PAYER, on_call=records.append, patience=patience)
        return Bench(models, account, records)

    yield make
    for each in made:
        await each.aclose()


def denied(level: Any, retry_in_s: float | None) -> Denied:
    return Denied(level=level, limit="max_tokens", detail="1000 of 1000 tokens are used", retry_in_s=retry_in_s)


async def test_a_call_is_reserved_and_settled(serve: Serve, setting: Setting) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 3}
    bench = setting(serve([Reply(usage=usage, headers={"x-ratelimit-remaining-requests": "9"})]), answer_tokens=100)
    models: ModelPort = bench.models
    pieces: list[str] = []
    answer = await models.complete(question(), on_text=pieces.append)
    assert (answer.text, "".join(pieces)) == ("Good.", "Good.")
    [reservation] = bench.account.asked
    tokens_in = prompt_tokens(question())
    assert (reservation.payer, reservation.model, reservation.purpose) == (PAYER, "big", "reason")
    assert (reservation.tokens, reservation.cost_usd) == (tokens_in + 100, (tokens_in + 1_000) / 1_000_000)
    assert reservation.lease_s == LEASE_S
    used = ModelUse(tokens_in=20, tokens_out=3, cost_usd=50 / 1_000_000)
    assert bench.account.settled == [(reservation, used)]
    assert bench.models.use == used
    assert bench.account.learned == [("big", ProviderLimits(requests_left=9))]
    [record] = bench.records
    assert (record.id, record.is_ok, record.finish, record.use) == (reservation.id, True, "stop", used)
    assert record.attributes["tokens_in"] == 20
    assert "reason: big (scripted), 20 + 3 tokens, 0.000050 USD" in record.line


async def test_uses_add_up(serve: Serve, setting: Setting) -> None:
    bench = setting(serve(lambda _: Reply(usage={"prompt_tokens": 20, "completion_tokens": 3})))
    await asyncio.gather(*(bench.models.complete(question()) for _ in range(20)))
    assert bench.models.use.tokens == 20 * 23
    assert len({each.id for each in bench.account.asked}) == len(bench.account.settled) == 20


def test_a_view_and_a_count_cost_nothing(serve: Serve) -> None:
    models = MeteredModels(ModelClients(ModelsSettings()), Account(), PAYER)
    assert models.count("tiktoken is great!") == 6
    with pytest.raises(Refused) as error:
        models.view("planner")
    assert error.value.code == "MODEL_MISSING"


@pytest.mark.parametrize(
    ("reply", "kind", "is_used"),
    [
        (Reply(status=500), Transient, False),
        (Reply(status=401), Refused, False),
        (Reply(text="one two three four", ends="unfinished"), Transient, True),
        (Reply(text="no JSON"), AnswerInvalid, True),
        (Reply(text="one two three four", hang="within"), Transient, True),
    ],
    ids=["failing", "refused", "half", "invalid", "silent"],
)
async def test_what_fails_is_settled_too(
    serve: Serve, setting: Setting, reply: Reply, kind: type[RayloomError], is_used: bool
) -> None:
    bench = setting(serve([reply]), silence_s=0.3)
    with pytest.raises(kind) as error:
        await bench.models.complete(question(schema={"type": "object"}))
    [(_, used)] = bench.account.settled
    assert (used.tokens_in > 0, used.tokens_out > 0) == (is_used, is_used)
    [record] = bench.records
    assert record.error is not None
    assert record.error.code == error.value.code
    assert record.attributes["error"] == error.value.code


async def test_a_cancelled_call_is_settled_with_what_it_has_used(serve: Serve, setting: Setting) -> None:
    endpoint = serve([Reply(text="one two three four five six", hang="within")])
    bench = setting(endpoint)
    heard = asyncio.Event()
    running = asyncio.ensure_future(bench.models.complete(question(), on_text=lambda _: heard.set()))
    await heard.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [(_, used)] = bench.account.settled
    assert used.is_estimated
    assert used.tokens_in == prompt_tokens(question())
    assert 0 < used.tokens_out < count("one two three four five six")
    assert await asyncio.to_thread(endpoint.asked[0].left.wait, PATIENCE_S)
    [record] = bench.records
    assert record.attributes["error"] == "CANCELLED"


async def test_who_is_cancelled_while_it_reserves_releases(serve: Serve, setting: Setting) -> None:
    endpoint = serve()
    bench = setting(endpoint, Account(gate=asyncio.Event()))
    running = asyncio.ensure_future(bench.models.complete(question()))
    await bench.account.reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bench.account.settled == [(bench.account.asked[0], ModelUse())]
    assert endpoint.asked == []


async def test_who_could_not_be_told_whether_it_was_granted_releases(
    serve: Serve, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(total_s=0.0)
    # The answer was lost: whether it was granted nobody knows.
    away = Transient("ACTOR_UNAVAILABLE", "away", retry_after_s=1.0)
    bench = setting(serve(), Account(answers=[away]), patience=patience)
    with pytest.raises(Transient):
        await bench.models.complete(question())
    assert bench.account.settled == [(bench.account.asked[0], ModelUse())]
    # Nor is it waited for long that anybody hears it: the lease ends what may be reserved.
    monkeypatch.setattr(metered, "RELEASE_S", 0.05)
    silent = Account(answers=[Transient("ACTOR_UNAVAILABLE", "away")], settle_gate=asyncio.Event())
    bench = setting(serve(), silent, patience=patience)
    with pytest.raises(Transient) as error:
        await bench.models.complete(question())
    assert error.value.code == "ACTOR_UNAVAILABLE"
    assert bench.account.settled == []


async def test_what_was_heard_is_settled_before_it_is_judged(
    serve: Serve, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = setting(serve())
    settled_before: list[int] = []

    def judging(*_: object, **__: object) -> None:
        settled_before.append(len(bench.account.settled))
        raise AnswerInvalid("it does not fit", text="Good.", faults=())

    monkeypatch.setattr(client, "structured", judging)
    with pytest.raises(AnswerInvalid):
        await bench.models.complete(question(schema={"type": "object"}))
    assert settled_before == [1]
    assert bench.records[0].attributes["error"] == "ANSWER_INVALID"


async def test_a_call_that_lasts_says_that_it_lives_and_what_it_has_used_so_far(
    serve: Serve, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metered, "RENEW_EVERY_S", 0.05)
    endpoint = serve([Reply(text="one two three four five six", gate="end")])
    bench, heard = setting(endpoint), asyncio.Event()
    running = asyncio.ensure_future(bench.models.complete(question(), on_text=lambda _: heard.set()))
    await heard.wait()
    bench.account.renewing.clear()
    await bench.account.renewing.wait()
    endpoint.open_gate("end")
    await running
    [asked], [(settled, used)] = bench.account.asked, bench.account.settled
    renewed = bench.account.renewed[-1]
    assert asked.least == ModelUse(
        tokens_in=prompt_tokens(question()), cost_usd=prompt_tokens(question()) / 1e6, is_estimated=True
    )
    assert (renewed.id, renewed.lease_s, settled.id) == (asked.id, LEASE_S, asked.id)
    assert renewed.least.tokens_in == asked.least.tokens_in
    assert 0 < renewed.least.tokens_out < used.tokens_out
    count_then = len(bench.account.renewed)
    await asyncio.sleep(0.2)
    assert len(bench.account.renewed) == count_then


async def test_who_has_paid_already_waits_for_a_window_in_its_place(
    serve: Serve, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "AGAIN_MAX_S", 0.01)
    answers: list[Denied | Transient] = [denied("user", 60.0)]
    bench = setting(serve(), Account(answers=answers))
    with pytest.raises(Transient):
        await bench.models.complete(question())
    assert (await bench.models.complete(question())).text == "Good."
    answers += [denied("user", 60.0), denied("user", 59.0)]
    assert (await bench.models.complete(question())).text == "Good."
    # But not for what no window gives.
    answers += [denied("user", None)]
    with pytest.raises(Transient):
        await bench.models.complete(question())


async def test_a_settlement_that_has_begun_is_ended(serve: Serve, setting: Setting) -> None:
    gate = asyncio.Event()
    bench = setting(serve(), Account(settle_gate=gate))
    running = asyncio.ensure_future(bench.models.complete(question()))
    await bench.account.settling.wait()
    running.cancel()
    asyncio.get_running_loop().call_soon(gate.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(bench.account.settled) == len(bench.records) == 1
    assert bench.models.use.tokens > 0


async def test_what_can_not_be_asked_is_not_reserved(serve: Serve, setting: Setting) -> None:
    bench = setting(serve(), context_tokens=300, answer_tokens=250)
    with pytest.raises(UserError):
        await bench.models.complete(question("word " * 100))
    assert bench.account.asked == []


@pytest.mark.parametrize(
    ("level", "retry_in_s", "kind", "code"),
    [
        ("task", None, Refused, "BUDGET_EXCEEDED"),
        ("subtask", None, Refused, "BUDGET_EXCEEDED"),
        ("task", 6.0, Transient, "QUOTA_EXCEEDED"),
        ("user", None, Transient, "QUOTA_EXCEEDED"),
        ("key", 6.0, Transient, "QUOTA_EXCEEDED"),
        ("model", 60.0, Transient, "QUOTA_EXCEEDED"),
    ],
)
async def test_a_denial_says_who_denies(
    serve: Serve, setting: Setting, level: str, retry_in_s: float | None, kind: type[RayloomError], code: str
) -> None:
    endpoint = serve()
    bench = setting(endpoint, Account(answers=[denied(level, retry_in_s)]))
    with pytest.raises(kind) as error:
        await bench.models.complete(question())
    assert error.value.code == code
    assert "1000 of 1000 tokens are used" in error.value.message
    if isinstance(error.value, Transient):
        assert error.value.retry_after_s == retry_in_s
    assert endpoint.asked == []
    assert bench.account.settled == []


async def test_a_short_wait_for_room_is_waited(serve: Serve, setting: Setting) -> None:
    away = Transient("TOKENS_STARTING", "not yet", retry_after_s=0.01)
    bench = setting(serve(), Account(answers=[denied("user", 0.01), away, denied("model", 0.0)]))
    assert (await bench.models.complete(question())).text == "Good."
    assert len({each.id for each in bench.account.asked}) == 1
    assert len(bench.account.asked) == 4


async def test_waiting_for_room_has_an_end(serve: Serve, setting: Setting) -> None:
    away = Transient("ACTOR_UNAVAILABLE", "away", retry_after_s=0.01)
    for answer, code in ((denied("user", 0.01), "QUOTA_EXCEEDED"), (away, "ACTOR_UNAVAILABLE")):
        bench = setting(serve(), Account(answers=[answer] * 1_000), patience=Patience(total_s=0.2))
        with pytest.raises(Transient) as error:
            await bench.models.complete(question())
        assert error.value.code == code
        assert 1 < len(bench.account.asked) < 10


async def test_an_account_that_is_away_is_told_again(
    serve: Serve, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metered, "_ASK_AGAIN_S", 0.001)
    bench = setting(serve(), Account(settle_faults=2))
    await bench.models.complete(question())
    assert len(bench.account.settled) == 1
    assert bench.records[0].is_settled
    bench = setting(serve(), Account(settle_faults=100))
    # What was answered, and paid for, is not thrown away for that.
    assert (await bench.models.complete(question())).text == "Good."
    assert bench.records[0].attributes["is_settled"] is False


async def test_room_that_a_call_of_the_same_attempt_takes_is_waited_for(
    serve: Serve, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_module, "AGAIN_MAX_S", 0.01)
    account = Account(settle_gate=asyncio.Event())
    bench = setting(serve(lambda _: Reply()), account, patience=Patience(once_s=0.0, total_s=0.0, paid_s=0.0))
    first = asyncio.ensure_future(bench.models.complete(question()))
    async with asyncio.timeout(PATIENCE_S):
        await account.settling.wait()
        account.answers = [denied("model", 2.0)]
        account.reached.clear()
        second = asyncio.ensure_future(bench.models.complete(question()))
        await account.reached.wait()
        assert account.settle_gate is not None
        account.settle_gate.set()
        assert [(await each).text for each in (first, second)] == ["Good.", "Good."]
    # Once it has ended, the limits of waiting hold again.
    account.answers = [denied("model", 2.0)]
    with pytest.raises(Transient):
        await bench.models.complete(question())


async def test_waiting_for_room_is_not_what_the_time_runs_out_for(serve: Serve, setting: Setting) -> None:
    left_s = 4.0
    bench = setting(serve(), patience=Patience(left_s=lambda: left_s))
    await bench.models.complete(question())
    # So long it would wait for a window, with the time to do so; and for what another call of its own takes.
    bench.account.answers = [denied("user", 2.1)]
    with pytest.raises(Transient) as error:
        await bench.models.complete(question())
    assert error.value.code == "QUOTA_EXCEEDED"
    bench.account.answers = [denied("user", 0.01)]
    assert (await bench.models.complete(question())).text == "Good."
    # Nor is it waited until then that anybody answers at all.
    bench.account.gate, left_s = asyncio.Event(), 0.2
    with pytest.raises(Transient) as error:
        await asyncio.wait_for(bench.models.complete(question()), PATIENCE_S)
    assert error.value.code == "ACTOR_UNAVAILABLE"
