"""Calls of a model whose endpoint answers well, and of many that do not."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from rayloom.dag.errors import AnswerInvalid, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import Message, ModelUse, ProviderLimits
from rayloom.tools.models import stream
from rayloom.tools.models.client import ModelClient
from rayloom.tools.models.settings import ModelSettings
from rayloom.tools.models.tokens import count
from rayloom.tools.models.wire import prompt_tokens
from tests.integration.models.conftest import Client, Serve, question
from tests.integration.models.endpoint import PATIENCE_S, Asked, Reply, refusing

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
}
PARIS = '{"city": "Paris"}'


async def failure(client: Any, **more: Any) -> RayloomError:
    with pytest.raises(RayloomError) as error:
        await client.complete(question(**more))
    return error.value


async def test_an_answer_comes_in_pieces_with_what_it_cost(serve: Serve, client: Client) -> None:
    endpoint = serve(
        [Reply(text="Paris is the capital.", piece_chars=5, usage={"prompt_tokens": 20, "completion_tokens": 6})]
    )
    pieces: list[str] = []
    model = client(endpoint, name="big", api_key="sk-geheim", seed=7, price_in=1, price_out=10, answer_tokens=500)
    answer = await model.complete(question(max_tokens=50, temperature=0.5), on_text=pieces.append)
    assert answer.text == "Paris is the capital." == "".join(pieces)
    assert len(pieces) == 4 + 1
    assert (answer.value, answer.model, answer.finish) == (None, "big", "stop")
    assert answer.use == ModelUse(tokens_in=20, tokens_out=6, cost_usd=80 / 1_000_000)
    assert 0 < answer.first_text_s <= answer.duration_s
    asked = endpoint.asked[0]
    assert asked.headers["authorization"] == "Bearer sk-geheim"
    assert asked.body == {
        "model": "scripted",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 7,
        "max_tokens": 50,
    }


async def test_nothing_of_the_sdks_own_environment_is_read(
    serve: Serve, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "https://other.example")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-other: yes\nauthorization: Bearer other")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    endpoint = serve([Reply()])
    assert (await client(endpoint).complete(question())).text == "Good."
    sent = endpoint.asked[0].headers
    assert sent["user-agent"] == "rayloom"
    assert not {"authorization", "openai-organization", "openai-project", "x-other", "x-stainless-os"} & set(sent)


async def test_connections_are_used_again_and_closed(serve: Serve, client: Client) -> None:
    endpoint = serve()
    model = client(endpoint)
    for _ in range(3):
        await model.complete(question())
    assert {each.connection for each in endpoint.asked} == {1}
    await model.aclose()
    await model.complete(question())
    assert endpoint.asked[-1].connection == 2


def test_each_event_loop_has_connections_of_its_own(serve: Serve) -> None:
    model = ModelClient(ModelSettings(base_url=serve().url, model="m"))

    async def once() -> str:
        try:
            return (await model.complete(question())).text
        finally:
            await model.aclose()

    assert [asyncio.run(once()) for _ in range(2)] == ["Good.", "Good."]


# --- structured answers ------------------------------------------------------------------------------------------


async def test_an_endpoint_is_asked_to_see_to_the_schema(serve: Serve, client: Client) -> None:
    endpoint = serve([Reply(text=PARIS)])
    answer = await client(endpoint).complete(question(schema=SCHEMA))
    assert answer.value == {"city": "Paris"}
    assert endpoint.asked[0].schema == SCHEMA
    assert len(endpoint.asked[0].body["messages"]) == 1
    form = endpoint.asked[0].body["response_format"]["json_schema"]
    assert form["strict"] is False


@pytest.mark.parametrize(
    ("refused", "kinds"),
    [
        (["response_format.json_schema"], ["json_schema", "json_object"]),
        (["response_format"], ["json_schema", "json_object", None]),
    ],
    ids=["schema", "format"],
)
async def test_what_it_can_not_is_asked_for_in_the_next_way_and_remembered(
    serve: Serve, client: Client, refused: list[str], kinds: list[str | None]
) -> None:
    endpoint = serve(refusing(refused, Reply(text=f"Here it is:\n```json\n{PARIS}\n```")))
    model = client(endpoint)
    for _ in range(2):
        assert (await model.complete(question(schema=SCHEMA))).value == {"city": "Paris"}
    asked = [(each.body.get("response_format") or {}).get("type") for each in endpoint.asked]
    assert asked == [*kinds, kinds[-1]]
    assert json.dumps(SCHEMA, separators=(",", ":")) in endpoint.asked[-1].body["messages"][0]["content"]


@pytest.mark.parametrize(("way", "kind"), [("object", "json_object"), ("prompt", None)])
async def test_settings_say_how_to_ask(serve: Serve, client: Client, way: str, kind: str | None) -> None:
    endpoint = serve([Reply(text=PARIS)])
    request = question(schema=SCHEMA)
    system = Message(speaker="system", text="Be brief.")
    await client(endpoint, structured=way).complete(replace(request, messages=(system, *request.messages)))
    body = endpoint.asked[0].body
    assert (body.get("response_format") or {}).get("type") == kind
    assert body["messages"][0]["content"].startswith("Be brief.\n\nAnswer with one JSON value")
    assert len(body["messages"]) == 2


async def test_a_schema_that_is_too_hard_is_not_held_against_the_others(serve: Serve, client: Client) -> None:
    def script(asked: Asked) -> Reply:
        if asked.schema == SCHEMA:
            return Reply(status=400, error={"message": "Invalid schema for response_format 'answer': in context=()"})
        return Reply(text=PARIS)

    endpoint = serve(script)
    model = client(endpoint)
    await model.complete(question(schema=SCHEMA))
    await model.complete(question(schema={"type": "object"}))
    assert [(each.body["response_format"])["type"] for each in endpoint.asked] == [
        "json_schema",
        "json_object",
        "json_schema",
    ]


async def test_an_endpoint_that_does_not_say_what_it_minds(serve: Serve, client: Client) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=400, error={"message": "no"}) if "response_format" in asked.body else Reply(text=PARIS)

    assert (await client(serve(script)).complete(question(schema=SCHEMA))).value == {"city": "Paris"}
    endpoint = serve(lambda asked: Reply(status=400, error={"message": "no"}))
    model = client(endpoint)
    for asked in (3, 6):
        # Nothing helped, so nothing was learned.
        error = await failure(model, schema=SCHEMA)
        assert (error.code, error.retryable, len(endpoint.asked)) == ("MODEL_REFUSED", False, asked)


async def test_a_filter_of_contents_is_no_matter_of_options(serve: Serve, client: Client) -> None:
    endpoint = serve([Reply(status=400, error={"message": "no", "code": "content_filter"})])
    assert (await failure(client(endpoint), schema=SCHEMA)).code == "MODEL_REFUSED"
    assert len(endpoint.asked) == 1


async def test_an_endpoint_that_has_moved(serve: Serve, client: Client) -> None:
    endpoint = serve([Reply(status=308, headers={"location": "http://127.0.0.1:1/v1"})])
    assert "its base_url is another now" in (await failure(client(endpoint))).message


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ('{"city": "Par', "Unterminated string"),
        ("I would say Paris.", "Expecting value"),
        ('{"town": "Paris"}', "'city' is a required property"),
        ('{"city": "\\u0000"}', "holds a NUL character"),
        ("[" * 100_000, "recursion"),
    ],
    ids=["unfinished", "prose", "schema", "nul", "deep"],
)
async def test_what_does_not_fit_is_told_with_its_faults(serve: Serve, client: Client, said: str, fault: str) -> None:
    error = await failure(client(serve([Reply(text=said, piece_chars=10_000)])), schema=SCHEMA)
    assert isinstance(error, AnswerInvalid)
    assert error.text == said
    assert fault in error.faults[0]


async def test_a_schema_that_is_none_costs_nothing(serve: Serve, client: Client) -> None:
    endpoint = serve()
    error = await failure(client(endpoint), schema={"type": "cat"})
    assert isinstance(error, UserError)
    assert error.code == "SCHEMA_INVALID"
    assert endpoint.asked == []


# --- options -----------------------------------------------------------------------------------------------------


async def test_options_that_are_refused_are_left_out_from_then_on(serve: Serve, client: Client) -> None:
    options = ["stream_options", "seed", "temperature", "max_tokens"]
    endpoint = serve(refusing(options))
    model = client(endpoint, seed=1)
    answer = await model.complete(question())
    await model.complete(question())
    assert len(endpoint.asked) == len(options) + 2
    assert set(endpoint.asked[-1].body) == {"model", "messages", "stream", "max_completion_tokens"}
    assert answer.use.is_estimated


async def test_a_limit_that_is_too_high_is_told_and_not_dropped(serve: Serve, client: Client) -> None:
    message = "max_tokens is too large: 4096. This model supports at most 1024 completion tokens"
    endpoint = serve([Reply(status=400, error={"message": message})])
    assert "too large" in str(await failure(client(endpoint)))
    assert len(endpoint.asked) == 1


# --- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (401, Refused, "MODEL_REFUSED"),
        (403, Refused, "MODEL_REFUSED"),
        (404, Refused, "MODEL_REFUSED"),
        (413, UserError, "CONTEXT_TOO_LONG"),
        (429, Transient, "MODEL_RATE_LIMITED"),
        (500, Transient, "MODEL_UNAVAILABLE"),
        (503, Transient, "MODEL_UNAVAILABLE"),
    ],
)
async def test_a_status_says_what_to_do(
    serve: Serve, client: Client, status: int, kind: type[RayloomError], code: str
) -> None:
    endpoint = serve([Reply(status=status, error={"message": "the key sk-geheim is wrong"})])
    error = await failure(client(endpoint, api_key="sk-geheim"))
    assert isinstance(error, kind)
    assert error.code == code
    assert "sk-geheim" not in error.message
    assert len(endpoint.asked) == 1


async def test_what_to_do_is_said(serve: Serve, client: Client) -> None:
    assert "RAYLOOM_LLM_API_KEY" in (await failure(client(serve([Reply(status=401)])))).message
    assert "base_url" in (await failure(client(serve([Reply(status=404)])))).message
    poor = Reply(status=429, error={"message": "You exceeded your current quota", "code": "insufficient_quota"})
    assert isinstance(await failure(client(serve([poor]))), Refused)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_long_wait_is_left_to_the_caller(serve: Serve, client: Client, status: int) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for header, least, most in (("7", 7.0, 7.0), (at, 3_000.0, 3_600.0)):
        endpoint = serve([Reply(status=status, headers={"retry-after": header})])
        error = await failure(client(endpoint))
        assert isinstance(error, Transient)
        assert error.retry_after_s is not None
        assert least <= error.retry_after_s <= most
        assert len(endpoint.asked) == 1


async def test_a_short_wait_is_waited_here(serve: Serve, client: Client) -> None:
    late = Reply(status=429, headers={"retry-after": "0.01"})
    endpoint = serve([late, late, Reply()])
    assert (await client(endpoint).complete(question())).text == "Good."
    endpoint = serve([late] * 9)
    assert (await failure(client(endpoint))).code == "MODEL_RATE_LIMITED"
    assert len(endpoint.asked) == 3


async def test_nobody_listens(client: Client) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        error = await failure(client(f"http://127.0.0.1:{held.getsockname()[1]}/v1"))
    assert (error.code, error.retryable) == ("MODEL_UNAVAILABLE", True)


@pytest.mark.parametrize("hang", ["before", "first", "within"])
async def test_silence_has_an_end_and_the_endpoint_sees_it(serve: Serve, client: Client, hang: Any) -> None:
    endpoint = serve([Reply(text="one two three four five six", hang=hang)])
    # Longer than it takes to begin, where only the silence after that is meant.
    times = {"silence_s": 0.2} if hang == "within" else {"first_text_s": 0.2}
    error = await failure(client(endpoint, **times))
    assert (error.code, error.retryable) == ("MODEL_SILENT", True)
    assert await asyncio.to_thread(endpoint.asked[0].left.wait, PATIENCE_S)


async def test_a_whole_call_has_an_end(serve: Serve, client: Client) -> None:
    error = await failure(client(serve([Reply(hang="within")]), call_s=0.3))
    assert error.code == "MODEL_BROKE_OFF"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(text="one two three", ends="unfinished"),
        Reply(text="one two three", ends="cut"),
        Reply(raw=b"data: {not json\n\n"),
        Reply(raw=b"data: \xff\xfe\n\n"),
        Reply(raw=b"data: " + b"[" * 100_000 + b"\n\n"),
        Reply(raw=b'data: {"error": {"message": "out of memory"}}\n\n'),
        Reply(raw=b'data: 1\n\ndata: {"choices": 1}\n\ndata: {"choices": [{"delta": 3}]}\n\ndata: null\n\n'),
        Reply(raw=b""),
    ],
    ids=["unfinished", "cut", "no-json", "no-text", "deep", "error", "odd", "empty"],
)
async def test_half_an_answer_is_none(serve: Serve, client: Client, reply: Reply) -> None:
    error = await failure(client(serve([reply])))
    assert (error.code, error.retryable) == ("MODEL_BROKE_OFF", True)


async def test_an_answer_is_whole_without_the_last_word(serve: Serve, client: Client) -> None:
    assert (await client(serve([Reply(ends="undone")])).complete(question())).text == "Good."


async def test_an_answer_is_whole_whatever_comes_after_its_end(
    serve: Serve, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_AFTERWARDS_S", 0.1)
    said = b'data: {"choices": [{"delta": {"content": "Good."}, "finish_reason": "stop"}]}\n\n'
    endpoint = serve([Reply(hang="after"), Reply(raw=said + b'data: {"error": {"message": "no usage"}}\n\n')])
    model = client(endpoint)
    for _ in range(2):
        answer = await model.complete(question())
        assert (answer.text, answer.finish, answer.use.is_estimated) == ("Good.", "stop", True)
    assert await asyncio.to_thread(endpoint.asked[0].left.wait, PATIENCE_S)


async def test_a_page_is_no_stream(serve: Serve, client: Client) -> None:
    reply = Reply(raw=b"<html>", headers={"content-type": "text/html"})
    error = await failure(client(serve([reply])))
    assert error.code == "MODEL_REFUSED"
    assert "base_url" in error.message


@pytest.mark.parametrize("status", [400, 0], ids=["refused", "in-stream"])
async def test_a_context_that_is_too_short(serve: Serve, client: Client, status: int) -> None:
    said = {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}
    if status:
        reply = Reply(status=status, error=said)
    else:
        reply = Reply(raw=b"data: " + json.dumps({"error": said}).encode() + b"\n\n")
    error = await failure(client(serve([reply])))
    assert isinstance(error, UserError)
    assert error.code == "CONTEXT_TOO_LONG"


async def test_what_can_not_fit_is_not_asked(serve: Serve, client: Client) -> None:
    endpoint = serve()
    error = await failure(client(endpoint, context_tokens=1_000, answer_tokens=500), text="word " * 600)
    assert error.code == "CONTEXT_TOO_LONG"
    assert endpoint.asked == []


@pytest.mark.parametrize("finish", ["content_filter", "refusal"])
async def test_an_endpoint_that_declines(serve: Serve, client: Client, finish: str) -> None:
    delta = b'data: {"choices": [{"delta": {"refusal": "I can not."}, "finish_reason": "stop"}]}\n\n'
    reply = Reply(raw=delta) if finish == "refusal" else Reply(finish=finish)
    assert (await failure(client(serve([reply])))).code == "MODEL_REFUSED"


# --- size and use ------------------------------------------------------------------------------------------------


async def test_an_answer_that_is_too_long_is_cut_off(serve: Serve, client: Client) -> None:
    endpoint = serve(lambda _: Reply(text="blah " * 40_000, piece_chars=1_000, gap_s=0.001))
    model = client(endpoint, answer_max_bytes=10_000)
    answer = await model.complete(question())
    assert (len(answer.text), answer.finish) == (10_000, "length")
    assert answer.use.is_estimated
    assert answer.use.tokens_out == count(answer.text)
    assert await asyncio.to_thread(endpoint.asked[0].left.wait, PATIENCE_S)
    error = await failure(model, schema=SCHEMA)
    assert "cut off here" in error.message


async def test_an_endpoint_that_forgets_its_limit_is_cut_off(serve: Serve, client: Client) -> None:
    answer = await client(serve([Reply(text="blah " * 40_000, piece_chars=1_000)])).complete(question(max_tokens=10))
    assert (len(answer.text), answer.finish) == (320, "length")


async def test_200_kilobytes_are_no_matter(serve: Serve, client: Client) -> None:
    text = "blah " * 40_000
    answer = await client(serve([Reply(text=text, piece_chars=len(text))]), answer_tokens=16_384).complete(question())
    assert answer.text == text


async def test_length_is_told(serve: Serve, client: Client) -> None:
    assert (await client(serve([Reply(finish="length")])).complete(question())).finish == "length"
    error = await failure(client(serve([Reply(text='{"city": "P', finish="length")])), schema=SCHEMA)
    assert "cut off after 4096 tokens" in error.message


@pytest.mark.parametrize(
    ("usage", "believed"),
    [
        ({"prompt_tokens": 30, "completion_tokens": 9}, (30, 9)),
        (None, (None, None)),
        ({}, (None, None)),
        ({"prompt_tokens": -1, "completion_tokens": 9}, (None, 9)),
        ({"prompt_tokens": 10**9, "completion_tokens": 10**9}, (None, None)),
        ({"prompt_tokens": "30", "completion_tokens": 0}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": 2.5}, (None, None)),
        (
            {"prompt_tokens": 30, "completion_tokens": 2_009, "completion_tokens_details": {"reasoning_tokens": 2_000}},
            (30, 2_009),
        ),
    ],
    ids=["right", "none", "empty", "negative", "absurd", "zero", "odd", "thought"],
)
async def test_what_was_used_is_believed_where_it_can_be(
    serve: Serve, client: Client, usage: Any, believed: tuple[int | None, int | None]
) -> None:
    model = client(serve([Reply(text="one two three four five", usage=usage)]))
    used = (await model.complete(question())).use
    counted = (prompt_tokens(question()), count("one two three four five"))
    assert used.tokens_in == (counted[0] if believed[0] is None else believed[0])
    assert used.tokens_out == (counted[1] if believed[1] is None else believed[1])
    assert used.is_estimated == (None in believed)


async def test_thoughts_are_no_part_of_the_answer_but_paid_for(serve: Serve, client: Client) -> None:
    thought = b'data: {"choices": [{"delta": {"reasoning_content": "Hm, let me think about it."}}]}\n\n'
    said = b'data: {"choices": [{"delta": {"content": "Paris"}, "finish_reason": "stop"}]}\n\n'
    answer = await client(serve([Reply(raw=thought + said)])).complete(question())
    assert answer.text == "Paris"
    assert answer.use.tokens_out == count("Hm, let me think about it.Paris")


async def test_limits_of_the_endpoint_are_told(serve: Serve, client: Client) -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": "6m0.5s",
    }
    told: list[ProviderLimits] = []
    model = client(serve([Reply(headers=headers), Reply(status=429, headers={"retry-after": "9"})]))
    await (await model.prepare(question(), on_limits=told.append)).run()
    with pytest.raises(Transient):
        await (await model.prepare(question(), on_limits=told.append)).run()
    assert told == [
        ProviderLimits(requests_left=59, tokens_left=149_984, requests_reset_s=1.0, tokens_reset_s=360.5),
        ProviderLimits(retry_after_s=9.0),
    ]


# --- cancellation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hang", ["before", "first", "within"])
async def test_a_cancelled_call_leaves_at_once(serve: Serve, client: Client, hang: Any) -> None:
    endpoint = serve([Reply(text="one two three four", hang=hang)])
    call = await client(endpoint).prepare(question())
    running = asyncio.ensure_future(call.run())
    asked = await asyncio.to_thread(endpoint.wait_asked, 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.to_thread(asked.left.wait, PATIENCE_S)
    used = await call.use()
    assert used.is_estimated
    assert used.tokens_in == call.tokens_in


async def test_who_is_told_may_stop_it(serve: Serve, client: Client) -> None:
    def stop(_: str) -> None:
        raise ValueError("enough")

    endpoint = serve([Reply(text="one two three four", hang="within")])
    with pytest.raises(ValueError, match="enough"):
        await client(endpoint).complete(question(), on_text=stop)
    assert await asyncio.to_thread(endpoint.asked[0].left.wait, PATIENCE_S)


async def test_lone_surrogates_are_mended(serve: Serve, client: Client) -> None:
    reply = Reply(raw=b'data: {"choices": [{"delta": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}\n\n')
    assert (await client(serve([reply])).complete(question())).text == "a\N{REPLACEMENT CHARACTER}b"
