"""What a request is made of, as callers give it, and as it stands in its path, query, headers and body.

What is no UTF-8, such as a command's argument of other bytes, can stand nowhere in a request: UserError (``NOT_UTF8``).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import orjson

from rayloom.dag.errors import UserError
from rayloom.dag.values import JsonObject

Params = Mapping[str, str | int | float | bool | list[str] | None]


def query_of(params: Params) -> dict[str, str | list[str]]:
    """The query: what is None is left out, booleans are written as JSON writes them."""
    return {
        name: [_utf8(item) for item in value] if isinstance(value, list) else _utf8(_text(value))
        for name, value in params.items()
        if value is not None
    }


def segment(value: str) -> str:
    """One segment of a path, whatever it holds."""
    return quote(_utf8(value), safe="")


def header_of(name: str, value: str) -> str:
    """The value of the header ``name``. Raises UserError (``NOT_ASCII``) for what no header can hold."""
    if not (value.isascii() and value.isprintable()):
        raise UserError("NOT_ASCII", f"{name} may hold printable ASCII characters only: correct it")
    return value


def body_of(document: JsonObject | None) -> bytes | None:
    """The body: JSON. Raises UserError (``NOT_UTF8``) also for what JSON can't hold."""
    try:
        return None if document is None else orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        raise UserError("NOT_UTF8", f"what is to be sent can't be written as JSON ({error}): give UTF-8 text") from None


def _text(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("NOT_UTF8", f"{text[:80]!a} is not UTF-8: give it as UTF-8 text") from None
    return text
