"""The parameters of a request as callers give them, and as they stand in its query."""

from __future__ import annotations

from collections.abc import Mapping

Params = Mapping[str, str | int | float | bool | list[str] | None]


def query_of(params: Params) -> dict[str, str | list[str]]:
    """The query: what is None is left out, booleans are written as JSON writes them."""
    return {
        name: value if isinstance(value, list) else _text(value) for name, value in params.items() if value is not None
    }


def _text(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
