"""One HTTP exchange with redirects followed by hand: every hop is resolved, checked and pinned anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final
from urllib.parse import urljoin

import httpx2

from rayloom.dag.decision import MAX_RETRY_AFTER_S
from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.tools.addresses import Address, AddressRules, Target, addresses_of, first_reached, parse_url
from rayloom.tools.tls import trust

MAX_REDIRECTS: Final = 10
EXCERPT_CHARS: Final = 300
RETRYABLE_STATUSES: Final = frozenset({408, 425, 429})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Any other may be a credential, whatever its name: those go to the origin that they were written for, and no further.
_HARMLESS_HEADERS: Final = frozenset(
    {
        *("accept", "accept-encoding", "accept-language", "cache-control", "content-encoding", "content-language"),
        *("content-type", "idempotency-key", "range", "user-agent"),
    }
)
_BODY_HEADERS: Final = frozenset({"content-type", "content-encoding", "content-language", "content-location"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to send. Header names are lower case."""

    method: str
    target: Target
    headers: Mapping[str, str]
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What came back, after redirects: ``url`` is the last one, ``shown`` what errors and logs may say of it."""

    url: str
    shown: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    charset: str | None


async def exchange(request: Request, rules: AddressRules, *, timeout_s: float, max_bytes: int) -> Response:
    """Send a request and read the whole answer, whatever its status.

    Raises Refused (``ADDRESS_REFUSED``, ``HTTP_TOO_LARGE``), Transient (``HTTP_TIMEOUT``, ``HTTP_FAILED``,
    ``DNS_FAILED``) and UserError (``URL_INVALID``, ``HTTP_INVALID``, ``HTTP_REDIRECTS``).
    """
    try:
        async with asyncio.timeout(timeout_s) as whole:
            for _ in range(MAX_REDIRECTS + 1):
                response, location = await _hop(request, rules, whole, timeout_s=timeout_s, max_bytes=max_bytes)
                if location is None:
                    return response
                request = _redirected(request, response.status, location)
    except TimeoutError:
        raise Transient("HTTP_TIMEOUT", f"{request.target.shown} took longer than {timeout_s:g} s") from None
    raise UserError("HTTP_REDIRECTS", f"more than {MAX_REDIRECTS} redirects, the last one to {request.target.shown}")


async def status_of(request: Request, rules: AddressRules, *, timeout_s: float) -> tuple[int, Mapping[str, str]]:
    """Send a request; answers the status and the headers of what came back. No redirect is followed, no body is read.

    Raises what `exchange` raises for a single hop.
    """
    try:
        async with (
            asyncio.timeout(timeout_s) as whole,
            _opened(request, rules, whole, timeout_s=timeout_s) as answer,
        ):
            return answer.status_code, _headers(answer)
    except TimeoutError:
        raise Transient("HTTP_TIMEOUT", f"{request.target.shown} took longer than {timeout_s:g} s") from None


def failure(method: str, response: Response) -> RayloomError | None:
    """The error that a status means: transient for 408, 425, 429 and 5xx, the user's for other 4xx, else none."""
    if response.status < 400:
        return None
    excerpt = " ".join(response.body[: 4 * EXCERPT_CHARS].decode("utf-8", "replace").split())[:EXCERPT_CHARS]
    message = f"{method} {response.shown} answered {response.status}" + (f": {excerpt}" if excerpt else "")
    code = f"HTTP_{response.status}"
    if response.status >= 500 or response.status in RETRYABLE_STATUSES:
        return Transient(code, message, retry_after_s=retry_after_s(response.headers.get("retry-after"), time.time()))
    return UserError(code, message)


def retry_after_s(header: str | None, now: float) -> float | None:
    """The seconds of a Retry-After header, in either of its forms; None for none or nonsense."""
    if header is None:
        return None
    text = header.strip()
    if text.isdecimal() and text.isascii():
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        return min(max(parsedate_to_datetime(text).timestamp() - now, 0.0), MAX_RETRY_AFTER_S)
    except (ValueError, OverflowError):
        return None


async def _hop(
    request: Request, rules: AddressRules, whole: asyncio.Timeout, *, timeout_s: float, max_bytes: int
) -> tuple[Response, str | None]:
    target = request.target
    async with _opened(request, rules, whole, timeout_s=timeout_s) as answer:
        location = answer.headers.get("location") if answer.status_code in _REDIRECTS else None
        body = b"" if location is not None else await _body(answer, target, max_bytes)
    response = Response(
        url=target.url,
        shown=target.shown,
        status=answer.status_code,
        headers=_headers(answer),
        body=body,
        charset=_charset(answer),
    )
    return response, location


@asynccontextmanager
async def _opened(
    request: Request, rules: AddressRules, whole: asyncio.Timeout, *, timeout_s: float
) -> AsyncIterator[httpx2.Response]:
    """The answer to one request, of which only the head was read. ``whole`` ends the exchange that it is a hop of."""
    target = request.target
    addresses = await addresses_of(target.host, target.port, rules)
    until = whole.when()
    assert until is not None
    try:
        async with httpx2.AsyncClient(verify=trust(), trust_env=False, follow_redirects=False) as client:
            send = partial(_send, client, request, timeout_s)
            unreached = (httpx2.ConnectError, httpx2.ConnectTimeout)
            answer = await first_reached(addresses, send, until=until, unless=unreached)
            try:
                yield answer
            finally:
                await answer.aclose()
    except httpx2.TimeoutException as error:
        raise Transient("HTTP_TIMEOUT", f"{target.shown}: {type(error).__name__}") from error
    except (httpx2.LocalProtocolError, httpx2.InvalidURL) as error:
        raise UserError("HTTP_INVALID", f"{target.shown}: {error}") from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise Transient("HTTP_FAILED", f"{target.shown}: {type(error).__name__}: {error}") from error


async def _send(
    client: httpx2.AsyncClient, request: Request, timeout_s: float, address: Address, within_s: float
) -> httpx2.Response:
    target = request.target
    host = f"[{address}]" if address.version == 6 else str(address)
    message = client.build_request(
        request.method,
        # The client sees the checked address only; name and certificate stay those of the URL.
        f"{target.scheme}://{host}:{target.port}{target.path_and_query}",
        headers={"user-agent": "rayloom", "accept": "*/*", **request.headers, "host": target.authority},
        content=request.content,
        timeout=httpx2.Timeout(timeout_s, connect=within_s),
        extensions={"sni_hostname": target.host},
    )
    return await client.send(message, stream=True)


def _headers(answer: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


def _charset(answer: httpx2.Response) -> str | None:
    try:
        return answer.charset_encoding
    except ValueError:  # nonsense that looks like an encoded parameter
        return None


async def _body(answer: httpx2.Response, target: Target, max_bytes: int) -> bytes:
    body = bytearray()
    # Decoded bytes are what counts: a small answer may unpack to a large one.
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise Refused("HTTP_TOO_LARGE", f"{target.shown} answered more than {max_bytes} bytes")
    return bytes(body)


def _redirected(request: Request, status: int, location: str) -> Request:
    try:
        target = parse_url(urljoin(request.target.url, location))
    except ValueError as error:
        raise UserError("URL_INVALID", f"{request.target.shown} redirects to no URL: {error}") from None
    headers = dict(request.headers)
    if target.origin != request.target.origin:
        headers = {name: value for name, value in headers.items() if name in _HARMLESS_HEADERS}
    redirected = replace(request, target=target, headers=headers)
    if (status == 303 and request.method != "HEAD") or (status in (301, 302) and request.method == "POST"):
        without_body = {name: value for name, value in headers.items() if name not in _BODY_HEADERS}
        return replace(redirected, method="GET", headers=without_body, content=None)
    return redirected
