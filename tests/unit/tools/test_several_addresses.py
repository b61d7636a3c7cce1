"""A name with several addresses: each is checked before anything is sent, and the first that answers is used."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import httpx2
import pytest

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.addresses import MAX_TRIED, Address, AddressRules, first_reached
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.mcp.web import Pinned
from rayloom.tools.sandbox import egress
from tests.unit.tools.context import make_context
from tests.unit.tools.web import Web
from tests.unit.tools.web import web as serving

IPV6, IPV4 = "::1", "127.0.0.1"
ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
NEVER = float("inf")


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as site:  # on 127.0.0.1 alone
        yield site


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of every name, in their order."""
    addresses = [IPV6, IPV4]

    def answers(_host: str, port: int, *_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, 0))
            if ":" in text
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port))
            for text in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    return addresses


async def ask(port: int, *allowed: str) -> Any:
    context = make_context(allow_addresses=allowed or (f"localhost:{port}",))
    return (await call_tool(BUILTINS["http.request"], {"url": f"http://localhost:{port}/x"}, context)).output


async def test_a_tool_goes_on_to_the_next_address(web: Web) -> None:
    web.answer("/x", b"here")
    assert (await ask(web.port))["body"] == "here"
    assert len(web.asked) == 1


async def test_an_address_that_says_nothing_leaves_time_for_the_next(
    web: Web, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = asyncio.get_running_loop().create_connection

    async def silent(protocol: Any, host: str, *given: Any, **named: Any) -> Any:
        if host == IPV6:
            await asyncio.Event().wait()
        return await connect(protocol, host, *given, **named)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", silent)
    web.answer("/x", b"here")
    context = make_context(allow_addresses=(f"localhost:{web.port}",), http_timeout_s=6)
    output = (await call_tool(BUILTINS["http.request"], {"url": f"http://localhost:{web.port}/x"}, context)).output
    assert output["body"] == "here"  # type: ignore[index,call-overload]


async def test_all_of_them_must_be_allowed_before_one_is_tried(web: Web, found: list[str]) -> None:
    found[:] = [IPV4, "169.254.169.254"]
    with pytest.raises(Refused) as refusal:
        await ask(web.port, f"127.0.0.1:{web.port}")
    assert refusal.value.code == "ADDRESS_REFUSED"
    assert web.asked == []


async def test_a_name_of_which_no_address_answers_has_failed(found: list[str]) -> None:
    found[:] = [IPV6, "127.0.0.2"]
    with pytest.raises(Transient) as failure:
        await ask(9)
    assert failure.value.code == "HTTP_FAILED"


async def test_only_an_address_that_was_not_reached_is_passed_over() -> None:
    async def answered_badly(*_: object) -> None:
        tried.append(1)
        raise httpx2.ReadError("it has the request")

    tried: list[int] = []
    with pytest.raises(httpx2.ReadError):
        await first_reached([ONE, TWO], answered_badly, until=NEVER, unless=httpx2.ConnectError)
    assert tried == [1]


async def test_an_address_that_fails_at_once_leaves_its_time_to_the_others() -> None:
    within = []

    async def failing(_: Address, within_s: float) -> None:
        within.append(within_s)
        raise OSError("refused")

    until = asyncio.get_running_loop().time() + 1_200
    with pytest.raises(OSError, match="refused"):
        await first_reached([ONE, TWO, ONE], failing, until=until, unless=OSError)
    assert within == [pytest.approx(share, rel=0.1) for share in (400, 600, 1_200)]


async def test_so_many_addresses_are_tried_and_no_more() -> None:
    tried = []

    async def failing(address: Address, _: float) -> None:
        tried.append(address)
        raise OSError("refused")

    many = [ip_address(f"192.0.2.{number}") for number in range(20)]
    with pytest.raises(OSError, match="refused"):
        await first_reached(many, failing, until=NEVER, unless=OSError)
    assert tried == many[:MAX_TRIED]


async def test_the_addresses_that_are_not_tried_are_checked_all_the_same(web: Web, found: list[str]) -> None:
    found[:] = [IPV4, *(f"127.0.0.{number}" for number in range(2, 20)), "169.254.169.254"]
    with pytest.raises(Refused) as refusal:
        await ask(web.port, "127.0.0.0/8")
    assert refusal.value.code == "ADDRESS_REFUSED"
    assert web.asked == []


async def test_the_way_to_an_mcp_server_goes_on_to_the_next_address_and_comes_back_to_it(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, tried = asyncio.get_running_loop().create_connection, []

    async def counted(protocol: Any, host: str, *given: Any, **named: Any) -> Any:
        tried.append(host)
        return await connect(protocol, host, *given, **named)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", counted)
    url = web.answer("/x", b"here").replace(IPV4, "localhost")
    pinned = Pinned(AddressRules.parse([f"localhost:{web.port}"]))
    async with httpx2.AsyncClient(transport=pinned) as client:
        assert [(await client.post(url, content=b"asked")).text for _ in "ab"] == ["here", "here"]
    assert [asked.body for asked in web.asked] == [b"asked", b"asked"]
    assert tried.count(IPV6) == 1


async def test_the_way_out_of_a_sandbox_goes_on_to_the_next_address(web: Web) -> None:
    web.answer("/x", b"here")
    rules, refusals = AddressRules.parse([f"localhost:{web.port}"]), list[str]()
    targets = egress.allowed([f"localhost:{web.port}"])
    async with egress.opened(targets, rules, on_refusal=refusals.append) as folder:
        reader, writer = await asyncio.open_unix_connection(folder / egress.SOCKET)
        writer.write(f"GET http://localhost:{web.port}/x HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        said = await reader.read()
        writer.close()
    assert said.endswith(b"here")
    assert refusals == []
