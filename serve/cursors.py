"""Cursors and query parameters of lists: opaque to clients, and refused with a pointer when they are not ours."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

import orjson
from fastapi import Query

from rayloom.dag.errors import Fault
from rayloom.dag.nearest import did_you_mean
from rayloom.serve.problems import Problem, invalid, not_found

MAX_CURSOR_CHARS: Final = 1024
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TIME: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](?P<minute>\d\d:\d\d):(?P<second>\d\d)(?P<fraction>\.\d+)?(?P<offset>[Zz]|[+ -]\d\d:\d\d)?)?",
    re.ASCII,
)
"""An RFC 3339 time; also a day alone, and a time without an offset. An unescaped "+" arrives as a space."""

Limit = Annotated[int, Query(ge=1, le=500, description="items a page")]
Cursor = Annotated[str | None, Query(max_length=MAX_CURSOR_CHARS, description="`next_cursor` of the page before")]


def encode(kind: str, *parts: str | int) -> str:
    """A cursor of a kind of list."""
    return base64.urlsafe_b64encode(orjson.dumps([kind, *parts])).decode().rstrip("=")


def decode(kind: str, cursor: str, shape: Sequence[type]) -> list[str | int]:
    """The parts of a cursor. Raises Problem (422) for one that is not of this kind of list."""
    try:
        raw = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        raise _foreign() from None
    if not isinstance(raw, list) or not raw or raw[0] != kind or [type(part) for part in raw[1:]] != list(shape):
        raise _foreign()
    # PostgreSQL has no NUL in a text.
    if any(isinstance(part, str) and "\0" in part for part in raw):
        raise _foreign()
    # Numbers are ids and times of ours, kept by the database in 64 bits.
    if any(isinstance(part, int) and not -(2**62) < part < 2**62 for part in raw):
        raise _foreign()
    return raw[1:]


def _foreign() -> Problem:
    return invalid([Fault("/query/cursor", "is not a cursor of this list")])


def encode_moment(kind: str, at: datetime, id_: UUID) -> str:
    """The cursor of a list that is ordered by time and id."""
    return encode(kind, (at - _EPOCH) // _MICROSECOND, str(id_))


def decode_moment(kind: str, cursor: str | None) -> tuple[datetime, UUID] | None:
    """The last item of the page before; None for the first page."""
    if cursor is None:
        return None
    micros, id_ = decode(kind, cursor, (int, str))
    try:
        return _EPOCH + timedelta(microseconds=int(micros)), UUID(str(id_))
    except (ValueError, OverflowError):
        raise _foreign() from None


def uuid_of(text: str, what: str) -> UUID:
    """An id in a path. Raises Problem (404): what is no id at all is certainly unknown."""
    try:
        return UUID(text)
    except ValueError:
        raise not_found(what) from None


def uuid_in(pointer: str, text: str | None) -> UUID | None:
    """An id in the query or in a body. Raises Problem (422)."""
    if text is None:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise invalid([Fault(pointer, "must be a UUID")]) from None


def moment(name: str, text: str | None, *, under: str = "/query") -> datetime | None:
    """An RFC 3339 time, in the query or ``under`` another pointer. Raises Problem (422).

    UTC without an offset; a day alone is its beginning.
    """
    if text is None:
        return None
    try:
        return _time(text.strip())
    except (ValueError, OverflowError):
        raise invalid([Fault(f"{under}/{name}", "must be a time such as 2026-01-31T12:00:00Z (RFC 3339)")]) from None


def _time(text: str) -> datetime:
    """Raises ValueError, OverflowError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(text)
    second = found["second"] or "00"
    # Python has no leap seconds: it is the next one.
    is_leap = second == "60"
    clock = f"{found['minute'] or '00:00'}:{'59' if is_leap else second}{found['fraction'] or ''}"
    offset = (found["offset"] or "Z").upper().replace(" ", "+")
    at = datetime.fromisoformat(f"{found['day']}T{clock}{offset}").astimezone(UTC)
    return at + timedelta(seconds=1) if is_leap else at


def choices(name: str, given: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    """Words in the query, several by commas or by repetition, in any case. Raises Problem (422) for an unknown one."""
    words = [word.strip() for item in given or () for word in item.split(",") if word.strip()]
    by_name = {word.casefold(): word for word in known}
    unknown = [word for word in words if word.casefold() not in by_name]
    if unknown:
        hint = did_you_mean(unknown[0], list(by_name.values())) or f": one of {', '.join(by_name.values())}"
        raise invalid([Fault(f"/query/{name}", f"`{unknown[0][:50]}` is none of the values{hint}")])
    return tuple(dict.fromkeys(by_name[word.casefold()] for word in words))
