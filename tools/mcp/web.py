"""The way to an MCP server over HTTP: every request goes to an address that was checked, whatever leads there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from rayloom.dag.mcp import McpServer
from rayloom.tools.addresses import Address, AddressRules, Target, addresses_of, first_reached, parse_url
from rayloom.tools.mcp import oauth
from rayloom.tools.mcp.way import BODY_MAX_BYTES, EVENTS, Bounded, Way
from rayloom.tools.tls import trust

CONNECT_S: Final = 10.0
# No limit on reading: a call may be silent for long, and one that is over its time is ended by who made it.
_TIMEOUT: Final = httpx2.Timeout(CONNECT_S, read=None, pool=None)
# As many as there are calls at a time: a call that waits for a connection would look like a slow server.
_LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=20)


class Pinned(httpx2.AsyncBaseTransport):
    """Looks up the host of each request, checks what it finds, and goes there: redirects and OAuth's servers, too."""

    def __init__(self, rules: AddressRules) -> None:
        self._rules = rules
        # One each: connections are kept by address, and two hosts of one address have different certificates.
        self._ways: dict[tuple[str, str, int], httpx2.AsyncHTTPTransport] = {}
        self._reached: dict[tuple[str, str, int], Address] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises UserError (``URL_INVALID``), Refused (``ADDRESS_REFUSED``), Transient."""
        target = parse_url(str(request.url))
        addresses = await addresses_of(target.host, target.port, self._rules)
        # Where a connection may be open already.
        addresses.sort(key=lambda address: address != self._reached.get(target.origin))
        limit_s = (request.extensions.get("timeout") or {}).get("connect") or CONNECT_S
        answer = await first_reached(
            addresses,
            partial(self._send, request, target),
            until=asyncio.get_running_loop().time() + limit_s,
            unless=(httpx2.ConnectError, httpx2.ConnectTimeout),
        )
        return await _bounded(request, answer)

    async def _send(
        self, request: httpx2.Request, target: Target, address: Address, within_s: float
    ) -> httpx2.Response:
        way = self._ways.get(target.origin)
        if way is None:
            way = self._ways[target.origin] = httpx2.AsyncHTTPTransport(verify=trust(), limits=_LIMITS)
        headers = httpx2.Headers(request.headers)
        headers["host"] = target.authority
        # What is packed small may be of any size when it is unpacked.
        headers["accept-encoding"] = "identity"
        # OAuth's own requests come with no limit on their time, and others wait until they are answered.
        timeout = request.extensions.get("timeout") or httpx2.Timeout(CONNECT_S).as_dict()
        pinned = httpx2.Request(
            request.method,
            request.url.copy_with(host=str(address)),
            headers=headers,
            stream=request.stream,
            extensions={
                **request.extensions,
                "timeout": {**timeout, "connect": within_s},
                "sni_hostname": target.host,
            },
        )
        answer = await way.handle_async_request(pinned)
        self._reached[target.origin] = address
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        for way in self._ways.values():
            await way.aclose()


async def _bounded(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        await response.aclose()
        raise httpx2.DecodingError(f"the server's answer is in the encoding {encoding[:40]!r}, which nobody asked for")
    kind = response.headers.get("content-type", "").lower()
    # A stream of events has no end; each event has a limit of its own.
    is_stream = kind.startswith(EVENTS) and EVENTS in request.headers.get("accept", "")
    if not (is_stream and response.is_success):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = Bounded(response.stream, BODY_MAX_BYTES)
    return response


@asynccontextmanager
async def web(server: McpServer, rules: AddressRules, on_end: Callable[[str], None]) -> AsyncIterator[TransportStreams]:
    """Connect to a server by streamable HTTP, or by the older SSE where it says so.

    ``on_end`` is called where nothing can be sent any more.
    """
    own, way_in = {"user-agent": "rayloom", **server.headers}, oauth.flow(server)
    if (server.auth or {}).get("type") == "bearer":
        own["Authorization"] = f"Bearer {(server.auth or {})['token']}"

    def client(
        headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None
    ) -> httpx2.AsyncClient:
        return Way(
            # The SDK's way of the older transport sends nothing more once a request has failed.
            on_broken=partial(on_end, "") if server.transport == "sse" else None,
            transport=Pinned(rules),
            headers={**own, **(headers or {})},
            auth=way_in,
            timeout=_TIMEOUT,
            trust_env=False,
            follow_redirects=False,
        )

    if server.transport == "sse":
        async with sse_client(server.url, httpx_client_factory=client) as streams:
            yield streams
    else:
        async with (
            client() as ours,
            streamable_http_client(server.url, http_client=ours, max_sse_event_size=BODY_MAX_BYTES) as streams,
        ):
            yield streams
