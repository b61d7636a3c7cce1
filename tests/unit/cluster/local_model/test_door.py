"""The door of a local model, with a stand-in behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
import pytest

from rayloom.cluster.local_model import door
from rayloom.cluster.local_model.look import seen

KEY = "the key of the model"
HERE = {"Authorization": f"Bearer {KEY}"}


@dataclass
class Behind:
    at: str | None = None
    why: str | None = None

    def address(self) -> str | None:
        return self.at

    def trouble(self) -> str | None:
        return self.why


class Server:
    """Answers each request with what it is asked, once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.heads: list[str] = []
        self.came = asyncio.Semaphore(0)
        self.gone = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        self.came.release()
        waiting = asyncio.create_task(self.may.wait())
        closed = asyncio.create_task(reader.read(1_000_000))
        while not waiting.done():
            await asyncio.wait([waiting, closed], return_when=asyncio.FIRST_COMPLETED)
            if closed.done() and not closed.result():
                self.gone.set()
                waiting.cancel()
                break
            if closed.done():
                closed = asyncio.create_task(reader.read(1_000_000))
        closed.cancel()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: [DONE]\n\n")
        writer.close()


@asynccontextmanager
async def opened(behind: Behind) -> AsyncIterator[httpx2.AsyncClient]:
    app = door.build_door(behind, KEY)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://door") as client,
    ):
        yield client


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    made = Server()
    listening = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield made, f"http://127.0.0.1:{port}"


async def test_without_the_key_nothing_is_said() -> None:
    async with opened(Behind(at="http://127.0.0.1:1")) as client:
        for key in (b"", b"Bearer x", "Bearer ä".encode()):
            for path in ("/health", "/v1/models", "/v1/chat/completions"):
                answer = await client.get(path, headers=[(b"authorization", key)])
                assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


async def test_while_it_loads_the_answer_is_503_and_when_to_come_again() -> None:
    async with opened(Behind()) as client:
        answer = await client.post("/v1/chat/completions", headers=HERE)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert seen(answer).state == "loading"


async def test_what_keeps_it_from_loading_is_said() -> None:
    async with opened(Behind(why="no memory: end something")) as client:
        answer = await client.get("/health", headers=HERE)
        assert answer.status_code == 503
        assert (seen(answer).state, seen(answer).detail) == ("down", "no memory: end something")


async def test_a_server_that_is_gone_is_503_and_not_a_fault(server: tuple[Server, str]) -> None:
    async with opened(Behind(at="http://127.0.0.1:1")) as client:
        answer = await client.post("/v1/chat/completions", headers=HERE, json={})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


async def test_other_paths_are_404_in_json() -> None:
    async with opened(Behind()) as client:
        for path in ("/", "/slots", "/props", "/v1/embeddings"):
            answer = await client.get(path, headers=HERE)
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_request_is_passed_on_and_answered_as_the_answer_comes(server: tuple[Server, str]) -> None:
    async with opened(Behind(at=server[1])) as client:
        answer = await client.post("/v1/chat/completions", headers=HERE | {"Cookie": "a=b"}, json={"stream": True})
        assert answer.text == "data: [DONE]\n\n"
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert "access-control-allow-origin" not in answer.headers
        assert "cookie" not in server[0].heads[0].lower()
        assert (await client.get("/health", headers=HERE)).json() == {"status": "ok"}


async def test_a_caller_that_goes_away_is_gone_behind_the_door_too(server: tuple[Server, str]) -> None:
    server[0].may.clear()
    async with opened(Behind(at=server[1])) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", headers=HERE, json={}))
        await server[0].came.acquire()
        asking.cancel()
        await server[0].gone.wait()


async def test_so_many_wait_and_no_more(server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_AT_ONCE", 2)
    server[0].may.clear()
    async with opened(Behind(at=server[1])) as client:
        asking = [asyncio.create_task(client.post("/v1/completions", headers=HERE, json={})) for _ in range(2)]
        for _ in asking:
            await server[0].came.acquire()
        refused = await client.post("/v1/completions", headers=HERE, json={})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "10")
        server[0].may.set()
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200, 200]
        # Each has left: there is room again, also after refusals.
        for _ in range(3):
            assert (await client.post("/v1/completions", headers=HERE, json={})).status_code == 200


async def test_a_request_that_is_too_large_is_413(server: tuple[Server, str]) -> None:
    async with opened(Behind(at=server[1])) as client:
        answer = await client.post("/v1/completions", headers=HERE, content=b" " * (door.MOST_BODY_BYTES + 1))
        assert answer.status_code == 413
