"""The rows of a statement as JSON, taken until there are enough."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import orjson

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json

MAX_SAFE_INTEGER: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlLimits:
    """What one statement may use, and what is kept of its result: rows, and bytes of them as JSON."""

    timeout_s: float
    max_rows: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a statement gave."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Json]]
    truncated: bool


class Taker:
    """Keeps rows as they come, and says when it wants no more."""

    def __init__(self, limits: SqlLimits) -> None:
        self._limits = limits
        self._size_bytes = 0
        self.rows: list[list[Json]] = []
        self.truncated = False

    def take(self, row: Sequence[Any]) -> bool:
        """Keep one more row if there is room; False when there is none. Raises UserError (``OUTPUT_TOO_DEEP``)."""
        if len(self.rows) < self._limits.max_rows:
            try:
                values: list[Json] = [as_json(value) for value in row]
                self._size_bytes += len(orjson.dumps(values))
            except (RecursionError, TypeError):
                raise UserError("OUTPUT_TOO_DEEP", f"row {len(self.rows) + 1} holds JSON nested too deeply") from None
            if self._size_bytes <= self._limits.max_bytes:
                self.rows.append(values)
                return True
        self.truncated = True
        return False


def as_json(value: Any) -> Json:
    """A database value as JSON: numbers stay numbers where nothing is lost, the rest becomes text, bytes base64."""
    match value:
        case None | bool() | str():
            return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        case int():
            return value if abs(value) <= MAX_SAFE_INTEGER else str(value)
        case float():
            return value if value == value and value not in (float("inf"), float("-inf")) else None
        case Decimal():
            return _number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case Mapping():
            return {str(key): as_json(item) for key, item in value.items()}
        case Sequence() | set() | frozenset():
            return [as_json(item) for item in value]
        case _:
            return str(value)


def _number(value: Decimal) -> Json:
    """The number that reads as the same value again, an integer where it has no fraction; text where there is none."""
    if not value.is_finite() or not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
        return str(value)
    if value == (whole := int(value)):
        return whole
    return number if Decimal(repr(number := float(value))) == value else str(value)
