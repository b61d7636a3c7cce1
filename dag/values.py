"""The JSON value type that every room speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
JsonObject: TypeAlias = dict[str, Json]
Health: TypeAlias = "Mapping[str, Json]"
"""What a singleton says of itself."""
