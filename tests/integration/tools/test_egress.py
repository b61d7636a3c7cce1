"""Programs that may reach something, and what they reach in spite of their list: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from rayloom.dag.errors import Refused
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from tests.integration.tools.sandboxes import DOCKER, Kind, here
from tests.unit.tools.context import KeptLog, make_context


@dataclass
class Server:
    """An HTTP server that says what it was asked."""

    port: int = 0
    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        length = int(head.lower().partition("content-length:")[2].split("\r\n")[0] or 0)
        body = await reader.readexactly(length)
        answer = b"heard " + body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


async def run(
    kind: Kind, code: str, allow: list[str], *, rules: tuple[str, ...] = (), log: KeptLog | None = None
) -> Any:
    context = make_context(log=log, sandbox=kind, docker=DOCKER, allow_addresses=rules)
    input: dict[str, Json] = {"code": code, "network": {"allow": list[Json](allow)}}
    return (await call_tool(BUILTINS["python.run"], input, context)).output


FETCH = """
import sys, urllib.error, urllib.request
def fetch(url, data=None):
    try:
        with urllib.request.urlopen(url, data, timeout=10) as answer: print(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error: print(error.code, error.read().decode().strip())
    except OSError as error: print(type(error).__name__, error)
"""


@here
async def test_what_is_allowed_is_reached_and_nothing_else(kind: Kind, server: Server) -> None:
    at = f"127.0.0.1:{server.port}"
    log = KeptLog()
    output = await run(
        kind,
        f"{FETCH}fetch('http://{at}/a?b=c', b'hello')\nfetch('http://example.com/')\nfetch('http://127.0.0.1:1/')\n"
        "fetch('https://example.com/')\n"
        "import socket\ntry: socket.create_connection(('127.0.0.1', " + str(server.port) + "), 2)\n"
        "except OSError as error: print(type(error).__name__)",
        [at],
        rules=(at,),
        log=log,
    )
    first, second, third, tunnel, direct = output["stdout"].splitlines()
    assert first == "200 heard hello"
    assert second == "403 example.com:80 is not in the allow-list of this run"
    assert third == "403 127.0.0.1:1 is not in the allow-list of this run"
    assert "403" in tunnel
    assert direct == "ConnectionRefusedError"
    (head,) = server.heads
    assert head.startswith("POST /a?b=c HTTP/1.1\r\n")
    assert "proxy-" not in head.lower()
    refusals = [line for stream, line in log.lines if stream == "tool"]
    assert refusals == [
        "network: example.com:80 is not in the allow-list",
        "network: 127.0.0.1:1 is not in the allow-list",
        "network: example.com:443 is not in the allow-list",
    ]


@here
async def test_a_tunnel_carries_whatever_is_said(kind: Kind, server: Server) -> None:
    at = f"127.0.0.1:{server.port}"
    output = await run(
        kind,
        "import http.client\nproxy = http.client.HTTPConnection('127.0.0.1', 3128, timeout=10)\n"
        f"proxy.set_tunnel('127.0.0.1', {server.port})\nproxy.request('POST', '/', b'through')\n"
        "print(proxy.getresponse().read().decode())",
        [at],
        rules=(at,),
    )
    assert output["stdout"] == "heard through\n", output["stderr"]


@pytest.mark.parametrize(
    "target", ["169.254.169.254:80", "127.0.0.1:{port}", "10.0.0.1:80", "[::1]:{port}", "[::ffff:127.0.0.1]:{port}"]
)
@here
async def test_a_private_address_is_refused_though_it_is_listed(kind: Kind, target: str, server: Server) -> None:
    asked = target.format(port=server.port)
    output = await run(kind, f"{FETCH}fetch('http://{asked}/')", [asked])
    assert output["stdout"].startswith("403 ")
    assert "not a public address" in output["stdout"]
    assert not server.heads


@here
async def test_a_name_that_points_inside_is_refused(kind: Kind, server: Server) -> None:
    """As by DNS rebinding: the name is allowed, and what it means is looked at once, by us."""
    asked = f"localhost:{server.port}"
    code = (
        "import http.client\nproxy = http.client.HTTPConnection('127.0.0.1', 3128, timeout=10)\n"
        f"proxy.request('GET', 'http://{asked}/')\nanswer = proxy.getresponse(); print(answer.status)"
    )
    assert (await run(kind, code, [asked]))["stdout"] == "403\n"
    assert not server.heads


@pytest.mark.parametrize(
    "said",
    [
        "GET / HTTP/1.1",
        "CONNECT example.com HTTP/1.1",
        "GET file:///etc/passwd HTTP/1.1",
        "GET http://user:pw@127.0.0.1:{port}/ HTTP/1.1",
        "CONNECT 2130706433:{port} HTTP/1.1",
        "CONNECT 127.0.0.1:{port}/x HTTP/1.1",
        "nonsense",
    ],
)
@here
async def test_odd_requests_lead_nowhere(kind: Kind, said: str, server: Server) -> None:
    at = f"127.0.0.1:{server.port}"
    line = said.format(port=server.port)
    code = (
        "import socket\ns = socket.create_connection(('127.0.0.1', 3128), 10)\n"
        f"s.sendall({line!r}.encode() + b'\\r\\n\\r\\n')\nprint(s.recv(99).split()[1].decode())"
    )
    assert (await run(kind, code, [at], rules=(at,)))["stdout"] == "400\n"
    assert not server.heads


@here
async def test_an_empty_list_is_no_network(kind: Kind) -> None:
    output = await run(kind, "import os\nprint(os.environ.get('http_proxy'), os.path.exists('/run/egress'))", [])
    assert output["stdout"] == "None False\n"


async def test_without_a_sandbox_no_list_could_be_kept() -> None:
    context = make_context(sandbox="unsafe-local")
    with pytest.raises(Refused) as error:
        await call_tool(BUILTINS["shell.run"], {"command": "true", "network": {"allow": ["a.example:1"]}}, context)
    assert error.value.code == "NETWORK_REFUSED"
