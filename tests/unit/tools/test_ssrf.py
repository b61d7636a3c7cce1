"""Server-side request forgery: whatever a URL, a redirect or a name leads to, nothing private is connected to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rayloom.dag.errors import RayloomError, Refused, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from tests.unit.tools.context import make_context
from tests.unit.tools.web import Web
from tests.unit.tools.web import web as serving

TOOLS = ("http.request", "http.fetch_text")
# Each with what answers there, where something does.
ADDRESSES = {
    "this machine": "127.0.0.1",
    "anywhere in its network": "127.9.9.9",
    "no address": "0.0.0.0",
    "private, class A": "10.0.0.1",
    "private, class B": "172.16.0.1",
    "private, class B, last": "172.31.255.255",
    "private, class C": "192.168.1.1",
    "of a provider's network": "100.64.0.1",
    "link-local, metadata of clouds": "169.254.169.254",
    "metadata of containers": "169.254.170.2",
    "metadata of another cloud": "100.100.100.200",
    "what configures Azure's machines": "168.63.129.16",
    "for benchmarks": "198.18.0.1",
    "for documents": "203.0.113.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "this machine, IPv6": "[::1]",
    "this machine, IPv6, in full": "[0:0:0:0:0:0:0:1]",
    "no address, IPv6": "[::]",
    "mapped": "[::ffff:127.0.0.1]",
    "mapped, in hexadecimal": "[::ffff:7f00:1]",
    "mapped, in full": "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "compatible": "[::127.0.0.1]",
    "translated": "[::ffff:0:127.0.0.1]",
    "NAT64": "[64:ff9b::127.0.0.1]",
    "NAT64, local": "[64:ff9b:1::7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "Teredo": "[2001:0:7f00:1::]",
    "unique local": "[fc00::1]",
    "metadata, IPv6": "[fd00:ec2::254]",
    "link-local, IPv6": "[fe80::1]",
    "site-local": "[fec0::1]",
    "multicast, IPv6": "[ff02::1]",
    "for documents, IPv6": "[2001:db8::1]",
    "a name for this machine": "localhost",
    "with a dot at its end": "localhost.",
    "in capitals": "LOCALHOST",
    "in wide digits": "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "in circled digits": "\u2460\u2461\u2466.0.0.1",
    "with an ideographic dot": "127\u30020\u30020\u30021",
}
ODD_HOSTS = {
    "octal": "0177.0.0.1",
    "octal, each part": "0177.0000.0000.0001",
    "octal, in one": "017700000001",
    "octal with zeros before": "00000177.0.0.1",
    "hexadecimal": "0x7f.0.0.1",
    "hexadecimal, each part": "0x7f.0x0.0x0.0x1",
    "hexadecimal, in one": "0x7f000001",
    "hexadecimal, more than 32 bits": "0xff7f000001",
    "decimal, in one": "2130706433",
    "decimal, of metadata": "2852039166",
    "decimal, more than 32 bits": "6425673729",
    "one part": "0",
    "two parts": "127.1",
    "three parts": "127.0.1",
    "mixed": "0x7f.1",
    "five parts": "127.0.0.1.1",
    "a zone": "[fe80::1%25lo]",
    "IPv4 in brackets": "[127.0.0.1]",
    "percent-encoded": "%31%32%37.0.0.1",
    "credentials that look like a host": "example.com@127.0.0.1",
    "a backslash": "example.com\\@127.0.0.1",
    "a tab": "127.0.0\t.1",
    "nothing": "",
}
ODD_URLS = {
    "a file": "file:///etc/passwd",
    "a file of a host": "file://localhost/etc/passwd",
    "a file in capitals": "FILE:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_INFO",
    "ftp": "ftp://127.0.0.1/",
    "dict": "dict://127.0.0.1:11211/stats",
    "ldap": "ldap://127.0.0.1/",
    "data": "data:text/plain,x",
    "a jar": "jar:http://127.0.0.1!/",
    "a socket": "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "no scheme": "127.0.0.1/",
    "another line": "http://example.com/\r\nHost: 127.0.0.1",
}
URLS = {
    **{name: f"http://{host}/latest/meta-data/" for name, host in {**ADDRESSES, **ODD_HOSTS}.items()},
    **{f"{name}, with TLS": f"https://{host}/" for name, host in list(ADDRESSES.items())[:3]},
    **{f"{name}, another port": f"http://{host}:6379/" for name, host in list(ADDRESSES.items())[:3]},
    **ODD_URLS,
}
# What comes in a header is ASCII and one line; and these two are relative there: they lead to the same host.
_NO_LOCATION = ("in wide digits", "in circled digits", "with an ideographic dot", "another line", "a tab")
_RELATIVE = ("no scheme", "nothing")
REDIRECTS = {name: url for name, url in URLS.items() if name not in (*_NO_LOCATION, *_RELATIVE)}
each_url = pytest.mark.parametrize("url", [pytest.param(url, id=name) for name, url in URLS.items()])
each_redirect = pytest.mark.parametrize("url", [pytest.param(url, id=name) for name, url in REDIRECTS.items()])
each_tool = pytest.mark.parametrize("tool", TOOLS)


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address that a socket was told to connect to."""
    seen: list[tuple[str, int]] = []

    class Watched(socket.socket):
        def connect(self, address: Any) -> None:
            seen.append(address[:2])
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Watched)
    return seen


async def ask(tool: str, url: str, *allowed: str) -> Any:
    input: dict[str, Json] = {"url": url}
    context = make_context(allow_addresses=allowed, http_timeout_s=20)
    return (await call_tool(BUILTINS[tool], input, context)).output


def expect_refusal(error: RayloomError) -> None:
    assert isinstance(error, Refused | UserError), error
    assert error.code in ("ADDRESS_REFUSED", "URL_INVALID")
    assert not error.retryable


@each_url
@each_tool
async def test_it_is_refused_as_a_url(tool: str, url: str, connected: list[tuple[str, int]]) -> None:
    with pytest.raises(RayloomError) as refusal:
        await ask(tool, url)
    expect_refusal(refusal.value)
    assert connected == []


@each_redirect
async def test_it_is_refused_as_a_redirect(url: str, web: Web, connected: list[tuple[str, int]]) -> None:
    start = web.answer("/start", status=302, location=url)
    with pytest.raises(RayloomError) as refusal:
        await ask("http.request", start, f"127.0.0.1:{web.port}")
    expect_refusal(refusal.value)
    assert [asked.path for asked in web.asked] == ["/start"]
    assert set(connected) == {("127.0.0.1", web.port)}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_kind_of_redirect_is_judged(status: int, web: Web) -> None:
    start = web.answer("/start", status=status, location="/next")
    web.answer("/next", status=status, location="//169.254.169.254/latest/")
    with pytest.raises(Refused, match=r"169\.254\.169\.254"):
        await ask("http.request", start, f"127.0.0.1:{web.port}")
    assert [asked.path for asked in web.asked] == ["/start", "/next"]


class Names:
    """What names are answered with: one answer after another, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): left for name, left in answers.items()}
        self.asked: list[str] = []
        self._real: Callable[..., Any] = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.answers:
            return self._real(host, port, *rest, **more)
        self.asked.append(name)
        left = self.answers[name]
        found = left.pop(0) if len(left) > 1 else left[0]
        return [self._answer(ipaddress.ip_address(address), port) for address in found]

    @staticmethod
    def _answer(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: Any) -> tuple[Any, ...]:
        if address.version == 4:
            return socket.AF_INET, socket.SOCK_STREAM, 6, "", (str(address), port)
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (str(address), port, 0, 0)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["2606:4700::1111", "::1"], ["169.254.169.254"], ["::ffff:10.0.0.1"]],
)
async def test_a_name_is_refused_for_any_of_its_addresses(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch, connected: list[tuple[str, int]]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(evil_example=[addresses]))
    with pytest.raises(Refused) as refusal:
        await ask("http.request", "http://evil.example/")
    expect_refusal(refusal.value)
    assert connected == []


async def test_a_name_that_is_rebound_leads_where_it_was_checked(
    web: Web, monkeypatch: pytest.MonkeyPatch, connected: list[tuple[str, int]]
) -> None:
    """The first answer is allowed, every later one is not: it must never be asked for again."""
    names = Names(rebind_example=[["127.0.0.1"], ["127.0.0.2"]])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    web.answer("/", b"well")
    output = await ask("http.request", f"http://rebind.example:{web.port}/", f"127.0.0.1:{web.port}")
    assert output["body"] == "well"
    assert web.asked[0].headers["host"] == f"rebind.example:{web.port}"
    assert names.asked == ["rebind.example"]
    assert set(connected) == {("127.0.0.1", web.port)}


async def test_a_name_that_is_rebound_between_redirects_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(rebind_example=[["127.0.0.1"], ["127.0.0.2"]])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    web.answer("/", status=302, location="/again")
    with pytest.raises(Refused, match=r"127\.0\.0\.2"):
        await ask("http.request", f"http://rebind.example:{web.port}/", f"127.0.0.1:{web.port}")
    assert [asked.path for asked in web.asked] == ["/"]
    assert names.asked == ["rebind.example"] * 2
