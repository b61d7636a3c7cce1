"""Answers as JSON: UTF-8, times in RFC 3339 with a Z."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

import orjson
from starlette.responses import Response

_OPTIONS: Final = orjson.OPT_UTC_Z


def json_bytes(document: object) -> bytes:
    """``document`` as JSON text. It may hold dates and UUIDs."""
    return orjson.dumps(document, default=_plain, option=_OPTIONS)


def _plain(value: object) -> str:
    # asyncpg has a UUID class of its own below the standard one, and orjson takes no subclasses.
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def json_answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that holds ``document``."""
    return Response(json_bytes(document), status, headers=headers, media_type="application/json")
