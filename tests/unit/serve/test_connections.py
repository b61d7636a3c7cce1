"""Connections of Serve's proxy, on a real uvicorn with short time-outs, and raw bytes from the client."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.serve.connections import Connection
from rayloom.serve.proxy import JsonAnswers
from tests.integration.waiting import GENEROUS_S

SHORT_S = 0.3
NEVER_S = 600
SOUND = b"GET /sound HTTP/1.1\r\nHost: x\r\n\r\n"


class _Hasty(Connection):
    headers_s: ClassVar[float] = SHORT_S
    drain_s: ClassVar[float] = SHORT_S


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body, once it is here; at once for /early; in two parts, with a wait between, for /parts."""
    headers = [(b"content-type", b"text/html")]
    body = b""
    if scope["path"] != "/early":
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/parts":
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.sleep(2 * SHORT_S)
    await send({"type": "http.response.body", "body": b"<" + body + b">"})


@asynccontextmanager
async def _serving(
    app: ASGIApp = _echo, http: type[Connection] = _Hasty, keep_alive_s: int = NEVER_S
) -> AsyncIterator[int]:
    """Give the port of a uvicorn like that of Serve's proxy."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        JsonAnswers(app), http=http, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        async with asyncio.timeout(GENEROUS_S):
            await task


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def rest(self) -> bytes:
        """Read until the server closes the connection; nothing when it was reset."""
        with suppress(ConnectionResetError):
            async with asyncio.timeout(GENEROUS_S):
                return await self._reader.read()
        return b""

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(GENEROUS_S):
            return await self._reader.readuntil(mark)

    async def dribble(self, data: bytes, size: int = 1) -> bytes:
        """Send ``size`` bytes each 20 ms until the server closes the connection."""
        closed = asyncio.create_task(self.rest())
        for start in range(0, len(data), size):
            if closed.done():
                break
            self._writer.write(data[start : start + size])
            await asyncio.wait([closed], timeout=0.02)
        return await closed

    async def close(self) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def _client(port: int) -> AsyncIterator[_Client]:
    client = _Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield client
    finally:
        await client.close()


def _problem(answer: bytes, status: int) -> dict[str, Any]:
    """The only answer in ``answer``, which must be a problem document of that status that closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status} "), answer
    assert "content-type: application/problem+json" in lines
    assert "connection: close" in lines
    problem: dict[str, Any] = json.loads(body)
    assert {"type", "title", "status", "detail", "instance"} <= set(problem)
    assert problem["status"] == status
    return problem


async def _still_serves(port: int) -> None:
    async with _client(port) as client:
        await client.send(SOUND)
        assert (await client.until(b"<>")).startswith(b"HTTP/1.1 200 ")


async def test_headers_that_do_not_arrive_in_time_are_answered_408() -> None:
    async with _serving() as port, _client(port) as client:
        await client.send(b"GET /late?key=secret HTTP/1.1\r\nHost: x\r\n")
        problem = _problem(await client.rest(), 408)
        assert problem["type"] == "urn:rayloom:problem:headers-too-slow"
        assert problem["instance"] == "/late"
        await _still_serves(port)


@pytest.mark.parametrize("data", [b"GET /" + b"x" * 1000, b"GET / HTTP/1.1\r\nX: " + b"x" * 1000])
async def test_headers_that_dribble_are_answered_408(data: bytes) -> None:
    async with _serving() as port, _client(port) as client:
        _problem(await client.dribble(data), 408)


@pytest.mark.parametrize("data", [b"", b"\r\n" * 500])
async def test_connection_without_a_request_is_closed_without_an_answer(data: bytes) -> None:
    async with _serving() as port, _client(port) as client:
        assert await client.dribble(data) == b""


@pytest.mark.parametrize("data", [b"GET /" + b"x" * 1000, b"\r\n" * 500])
async def test_headers_of_a_later_request_have_the_same_time_out(data: bytes) -> None:
    async with _serving() as port, _client(port) as client:
        await client.send(SOUND)
        await client.until(b"<>\r\n0\r\n\r\n")
        answer = await client.dribble(data)
        if data.startswith(b"GET"):
            _problem(answer, 408)
        else:
            assert answer == b""


async def test_idle_connection_is_kept_between_requests() -> None:
    async with _serving() as port, _client(port) as client:
        for _ in range(2):
            await client.send(SOUND)
            await client.until(b"<>\r\n0\r\n\r\n")
            await asyncio.sleep(2 * SHORT_S)
    async with _serving(keep_alive_s=1) as port, _client(port) as client:
        await client.send(SOUND)
        assert (await client.rest()).endswith(b"<>\r\n0\r\n\r\n")


async def test_answer_is_not_cut_by_the_start_of_another_request() -> None:
    async with _serving() as port, _client(port) as client:
        await client.send(b"GET /parts HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\n")
        answer = await client.rest()
        first, _, second = answer.partition(b"0\r\n\r\n")
        assert first.endswith(b"first\r\n2\r\n<>\r\n")
        _problem(second, 408)


async def test_body_may_take_longer_than_headers() -> None:
    async with _serving() as port, _client(port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
        await asyncio.sleep(2 * SHORT_S)
        await client.send(b"b")
        await client.until(b"<ab>")


async def test_rest_of_a_body_that_was_answered_early_may_arrive_for_a_short_time() -> None:
    head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    async with _serving() as port:
        async with _client(port) as client:
            await client.send(head)
            await client.until(b"<>\r\n0\r\n\r\n")
            assert await client.dribble(b"x" * 900) == b""
        async with _client(port) as client:
            await client.send(head)
            await client.until(b"<>\r\n0\r\n\r\n")
            await client.send(b"x" * 1000 + SOUND)
            await client.until(b"<>\r\n0\r\n\r\n")


MALFORMED: dict[str, bytes] = {
    "garbage": b"\x00\x01\x02 nonsense\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "unknown method": b"NONSENSE / HTTP/1.1\r\nHost: x\r\n\r\n",
    "version 9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "header without colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "NUL in header": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length and encoding": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunk without end": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "last encoding is not chunked": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]),
    "TLS": bytes.fromhex("16030100c5010000c10303") + bytes(range(186)),
    "long URL": b"GET /" + b"x" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 66_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 66 + b"\r\n",
    "long trailer": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 66_000 + b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_request_is_answered_400_as_json(name: str) -> None:
    async with _serving(http=Connection) as port:
        async with _client(port) as client:
            await client.send(MALFORMED[name])
            assert _problem(await client.rest(), 400)["type"] == "urn:rayloom:problem:malformed"
        await _still_serves(port)


async def test_endless_header_is_refused_before_it_ends() -> None:
    async with _serving(http=Connection) as port, _client(port) as client:
        await client.send(b"GET / HTTP/1.1\r\nX: ")
        _problem(await client.dribble(b"x" * 1_000_000, size=10_000), 400)


async def test_malformed_request_behind_another_one_gets_no_answer_in_its_place() -> None:
    garbage = MALFORMED["garbage"]
    async with _serving() as port:
        async with _client(port) as client:
            await client.send(b"GET /parts HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.until(b"first")
            await client.send(garbage)
            assert b"HTTP/1.1" not in await client.rest()
        async with _client(port) as client:
            await client.send(b"POST /early HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            await client.until(b"<>\r\n0\r\n\r\n")
            await client.send(b"zz\r\n")
            assert await client.rest() == b""
        async with _client(port) as client:
            await client.send(SOUND)
            await client.until(b"<>\r\n0\r\n\r\n")
            await client.send(garbage)
            _problem(await client.rest(), 400)


async def test_request_to_upgrade_is_answered_like_any_other() -> None:
    head = b"GET /sound HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"
    socket_headers = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    async with _serving() as port:
        for request in (head % b"websocket" + b"\r\n", head % b"websocket" + socket_headers, head % b"h2c" + b"\r\n"):
            async with _client(port) as client:
                await client.send(request)
                assert (await client.until(b"<>")).startswith(b"HTTP/1.1 200 ")


def _saying(status: int, kind: bytes, *more: tuple[bytes, bytes]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *more]})
        await send({"type": "http.response.body", "body": b"success"})

    return app


async def _ask(app: ASGIApp, path: str = "/x") -> tuple[bytes, bytes]:
    """The head and the body of what the proxy answers."""
    async with _serving(app) as port, _client(port) as client:
        await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        return head.lower(), body


@pytest.mark.parametrize(("status", "path"), [(404, "/-/x"), (408, "/x"), (429, "/x"), (500, "/x"), (503, "/x")])
async def test_text_of_the_proxy_becomes_a_problem(status: int, path: str) -> None:
    text = _saying(status, b"text/plain; charset=utf-8", (b"X-Request-ID", b"7"), (b"retry-after", b"9"))
    head, body = await _ask(text, path)
    assert f"http/1.1 {status} ".encode() in head
    assert b"content-type: application/problem+json" in head
    assert b"x-request-id: 7" in head
    assert b"retry-after: 9" in head
    assert json.loads(body)["status"] == status
    assert json.loads(body)["instance"] == path


async def test_proxy_that_does_not_know_the_api_yet_answers_503() -> None:
    head, body = await _ask(_saying(404, b"text/plain"))
    assert b"http/1.1 503 " in head
    assert b"retry-after: " in head
    assert json.loads(body)["detail"] == "the API is not up; try again"


async def test_answer_of_a_replica_stays_as_it_is() -> None:
    for status, kind in ((200, b"text/plain"), (500, b"text/html"), (404, b"application/problem+json")):
        head, body = await _ask(_saying(status, kind))
        assert b"content-type: " + kind in head
        assert b"success" in body


async def test_health_of_serve_is_json_that_says_success() -> None:
    head, body = await _ask(_saying(200, b"text/plain; charset=utf-8"), "/-/healthz")
    assert b"content-type: application/json" in head
    assert json.loads(body) == {"status": "success"}


def _ending(end: Callable[[], object]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        end()

    return app


async def test_request_that_serve_does_not_answer_is_answered_as_json() -> None:
    for app, status in (
        (_ending(lambda: None), 503),
        (_ending(lambda: b"\xff".decode()), 400),
        (_ending(lambda: 1 / 0), 500),
    ):
        head, body = await _ask(app)
        assert f"http/1.1 {status} ".encode() in head
        assert json.loads(body)["status"] == status


async def test_answer_that_has_begun_is_not_followed_by_another_one() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await JsonAnswers(app)({"type": "http", "path": "/"}, receive, send)
    assert len(sent) == 1


async def test_each_pipelined_request_is_told_that_its_client_has_gone() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        told.put_nowait(scope["path"])

    async with _serving(stream) as port, asyncio.timeout(GENEROUS_S):
        async with _client(port) as client:
            await client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + SOUND)
            await client.until(b"first")
        assert await told.get() == "/stream"


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"5;x="], ids=["trailer", "extension"])
async def test_endless_bytes_that_are_no_body_are_refused(start: bytes) -> None:
    head = b"POST /sound HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with _serving(http=Connection) as port, _client(port) as client:
        await client.send(head + start)
        await client.send(b"x" * 300_000)
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def test_rest_of_a_body_and_the_next_request_in_one_piece_do_not_cut_the_answer() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/parts":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            # Longer than a connection is kept between requests.
            await asyncio.sleep(1.5)
            await send({"type": "http.response.body", "body": b"last"})
        else:
            await _echo(scope, receive, send)

    async with _serving(slow, http=Connection, keep_alive_s=1) as port, _client(port) as client:
        await client.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        await client.until(b"<>")
        await client.send(b"cdGET /parts HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"last" in await client.until(b"last")


async def _ignoring(_: Scope, receive: Receive, send: Send) -> None:
    """Begin to answer, and read without end, as Serve's proxy does."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    size = 0
    while (message := await receive())["type"] != "http.disconnect":
        size += len(message["body"])
        await send({"type": "http.response.body", "body": b"<%d>" % size, "more_body": message["more_body"]})


class _Small(_Hasty):
    max_body_bytes: ClassVar[int] = 1000


async def test_body_beyond_the_limit_is_answered_413_as_json() -> None:
    head = b"POST /sound HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with _serving(http=_Small) as port:
        async with _client(port) as client:
            await client.send(head + b"100\r\n" + b"x" * 256 + b"\r\n0\r\n\r\n")
            assert b"x>" in await client.until(b"0\r\n\r\n")
            await client.send(head + (b"100\r\n" + b"x" * 256 + b"\r\n") * 4)
            assert _problem(await client.rest(), 413)["type"] == "urn:rayloom:problem:body-too-large"
        await _still_serves(port)


async def test_body_that_goes_on_after_the_answer_has_begun_is_dropped() -> None:
    head = b"POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with _serving(_ignoring, http=_Small) as port, _client(port) as client:
        await client.send(head)
        await client.until(b"first")
        await client.send((b"100\r\n" + b"x" * 256 + b"\r\n") * 400 + b"0\r\n\r\n")
        assert b"<0>" in await client.until(b">")
