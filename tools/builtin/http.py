"""http.request and http.fetch_text: the web, but not the machine's own network."""

from __future__ import annotations

import base64
import re
from codecs import BOM_UTF8
from functools import lru_cache
from typing import Annotated, Final, Literal

import orjson
from pydantic import ConfigDict, Field, model_validator

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.addresses import AddressRules, parse_url
from rayloom.tools.builtin.charset import decoded
from rayloom.tools.builtin.exchange import Request, Response, exchange, failure
from rayloom.tools.builtin.guard import evaluate
from rayloom.tools.native import AnyJson, ToolInput, json_bytes, native
from rayloom.tools.tool import ToolContext, ToolResult

Method = Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]
_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive", "expect"}
)
_IDEMPOTENT_BY_NATURE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_JSON_TYPE: Final = re.compile(r"application/([a-z0-9.+-]+\+)?json|text/json", re.IGNORECASE)

_ONE_BODY: Final = "give either json or body"


class RequestInput(ToolInput):
    """One request; at most one of ``json`` and ``body``."""

    # What the validator below says, for those who read only the schema.
    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["json", "body"],
                "properties": {name: {"not": {"type": "null"}} for name in ("json", "body")},
            },
            "errorMessage": _ONE_BODY,
        }
    )

    url: Annotated[str, Field(min_length=1, max_length=8_192)]
    method: Method = "GET"
    headers: dict[str, str] = Field(default_factory=dict)
    json_: Annotated[AnyJson, Field(alias="json")] = None
    body: str | None = None

    @model_validator(mode="after")
    def _one_body(self) -> RequestInput:
        if self.body is not None and self.json_ is not None:
            raise ValueError(_ONE_BODY)
        return self


class FetchInput(ToolInput):
    """A page to read."""

    url: Annotated[str, Field(min_length=1, max_length=8_192)]


@lru_cache(maxsize=16)
def _rules(entries: tuple[str, ...]) -> AddressRules:
    return AddressRules.parse(entries)


async def _request(input: RequestInput, context: ToolContext) -> ToolResult:
    headers = {name.lower(): value for name, value in input.headers.items()}
    for name, value in headers.items():
        if name in _OURS or name.startswith("proxy-"):
            raise UserError("HTTP_INVALID", f"/headers/{name}: this header is set by the tool")
        # The value may be a secret: it is not told.
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise UserError("HTTP_INVALID", f"/headers/{name}: a header is written in printable ASCII")
    content = input.body.encode("utf-8", "surrogatepass") if input.body is not None else None
    if input.json_ is not None:
        content = json_bytes(input.json_, "/json")
        headers.setdefault("content-type", "application/json")
    elif content is not None:
        headers.setdefault("content-type", "text/plain; charset=utf-8")
    if input.method not in _IDEMPOTENT_BY_NATURE:
        headers.setdefault("idempotency-key", context.idempotency_key)
    response = await _exchange(input.method, input.url, headers, content, context)
    return ToolResult(
        output={
            "status": response.status,
            "headers": dict(response.headers),
            "body": _text(response),
            "json": _json(response),
        }
    )


async def _fetch_text(input: FetchInput, context: ToolContext) -> ToolResult:
    accept = {"accept": "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.5"}
    response = await _exchange("GET", input.url, accept, None, context)
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") or (not kind and response.body.lstrip()[:1] == b"<"):
        # In a child: some few bytes of HTML keep a parser busy for hours.
        page = await evaluate(
            {"kind": "page", "body": base64.b64encode(response.body).decode(), "charset": response.charset},
            context.settings,
        )
        return ToolResult(output={"url": response.url, "title": page["title"], "text": page["text"]})
    if not kind or kind.startswith("text/") or _JSON_TYPE.fullmatch(kind) or kind.endswith("xml"):
        return ToolResult(output={"url": response.url, "title": "", "text": _text(response)})
    raise UserError("HTTP_NOT_TEXT", f"{response.shown} is {kind}, which is not text")


async def _exchange(
    method: str, url: str, headers: dict[str, str], content: bytes | None, context: ToolContext
) -> Response:
    settings = context.settings
    target = parse_url(url)
    response = await exchange(
        Request(method=method, target=target, headers=headers, content=content),
        _rules(settings.allow_addresses),
        timeout_s=settings.http_timeout_s,
        max_bytes=settings.http_max_body_bytes,
    )
    context.log.line(
        f"{method} {target.shown} answered {response.status}",
        level="DEBUG" if response.status < 400 else "WARNING",
        fields={"status": response.status, "bytes": len(response.body)},
    )
    if (error := failure(method, response)) is not None:
        raise error
    return response


def _text(response: Response) -> str:
    return decoded(response.body, [response.charset])


def _json(response: Response) -> Json:
    if not _JSON_TYPE.fullmatch(response.headers.get("content-type", "").partition(";")[0].strip()):
        return None
    try:
        parsed: Json = orjson.loads(response.body.removeprefix(BOM_UTF8))
    except orjson.JSONDecodeError:
        return None
    return parsed


REQUEST = native(
    "http.request",
    RequestInput,
    _request,
    description="Sends one HTTP request and reads the answer: {url, method, headers, json | body} -> {status, headers, "
    "body, json}. 4xx and 5xx fail the attempt; 408, 425, 429 and 5xx are retried. Public addresses only, unless an "
    "administrator allowed more. Requests that change something carry an Idempotency-Key.",
    permission_level="write",
    output_schema={
        "type": "object",
        "required": ["status", "headers", "body", "json"],
        "additionalProperties": False,
        "properties": {
            "status": {"type": "integer"},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "body": {"type": "string"},
            "json": {},
        },
    },
)
FETCH_TEXT = native(
    "http.fetch_text",
    FetchInput,
    _fetch_text,
    description="Reads a web page as plain text: {url} -> {url, title, text}.",
    permission_level="read",
    output_schema={
        "type": "object",
        "required": ["url", "title", "text"],
        "additionalProperties": False,
        "properties": {"url": {"type": "string"}, "title": {"type": "string"}, "text": {"type": "string"}},
    },
)
