"""How a token is asked for when several requests want one: once, and no request waits for another one's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from rayloom.dag.mcp import McpServer
from rayloom.dag.values import JsonObject
from rayloom.tools.mcp import oauth

HERE = "https://here.example"
AUTH: JsonObject = {
    "type": "oauth_client_credentials",
    "client_id": "rayloom",
    "client_secret": "correct-horse",
    "issuer": HERE,
}


class Guarded:
    """A server that takes the last token which it gave."""

    def __init__(self) -> None:
        self.given = 0
        self.is_revoked = False
        self.never, self.was_asked = asyncio.Event(), asyncio.Event()

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/.well-known/oauth-protected-resource/mcp":
            return httpx2.Response(200, json={"resource": f"{HERE}/mcp", "authorization_servers": [HERE]})
        if request.url.path == "/.well-known/oauth-authorization-server":
            places = {"authorization_endpoint": f"{HERE}/authorize", "token_endpoint": f"{HERE}/token"}
            return httpx2.Response(200, json={"issuer": HERE, "response_types_supported": ["code"], **places})
        if request.url.path == "/token":
            self.given, self.is_revoked = self.given + 1, False
            self.was_asked.set()
            token = {"access_token": f"token-{self.given}", "token_type": "Bearer", "expires_in": 3600}
            return httpx2.Response(200, json=token)
        if self.is_revoked or request.headers.get("authorization") != f"Bearer token-{self.given}":
            return httpx2.Response(401)
        if request.content == b"never":
            await self.never.wait()
        return httpx2.Response(403 if request.content == b"forbidden" else 200)


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


@pytest.fixture
async def client(guarded: Guarded) -> AsyncIterator[httpx2.AsyncClient]:
    server = McpServer(name="it", transport="http", url=f"{HERE}/mcp", auth=AUTH)
    transport = httpx2.MockTransport(guarded.answer)
    async with httpx2.AsyncClient(auth=oauth.flow(server), transport=transport) as client:
        yield client


async def statuses(client: httpx2.AsyncClient, count: int) -> set[int]:
    answers = await asyncio.gather(*(client.post(f"{HERE}/mcp", content=b"well") for _ in range(count)))
    return {answer.status_code for answer in answers}


async def test_a_token_is_asked_for_once_and_again_when_it_is_refused(
    guarded: Guarded, client: httpx2.AsyncClient
) -> None:
    assert await statuses(client, 5) == {200}
    assert await statuses(client, 5) == {200}
    assert guarded.given == 1
    guarded.is_revoked = True
    assert await statuses(client, 5) == {200}
    assert guarded.given == 2


async def test_a_token_that_is_over_when_it_is_refused_is_replaced(
    guarded: Guarded, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await statuses(client, 1) == {200}
    guarded.is_revoked = True
    looks = iter((True,))
    monkeypatch.setattr("mcp.client.auth.oauth2.OAuthContext.is_token_valid", lambda _: next(looks, False))
    assert await statuses(client, 1) == {200}


async def test_no_request_waits_for_the_answer_of_another(guarded: Guarded, client: httpx2.AsyncClient) -> None:
    never = asyncio.create_task(client.post(f"{HERE}/mcp", content=b"never"))
    # It is the first one, which asks for the token.
    await guarded.was_asked.wait()
    assert await statuses(client, 3) == {200}
    assert not never.done()
    guarded.never.set()
    assert (await never).status_code == 200


async def test_a_request_that_is_forbidden_is_told(guarded: Guarded, client: httpx2.AsyncClient) -> None:
    assert await statuses(client, 1) == {200}
    assert (await client.post(f"{HERE}/mcp", content=b"forbidden")).status_code == 403
    assert guarded.given == 1


def test_a_server_without_oauth_has_no_flow() -> None:
    assert oauth.flow(McpServer(name="it", transport="http", url=HERE)) is None
