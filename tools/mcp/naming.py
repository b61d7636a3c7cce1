"""A tool of an MCP server as the registry keeps it: its name, its schemas, what its hints say."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from mcp_types import Tool, ToolAnnotations

from rayloom.dag.errors import Fault
from rayloom.dag.mcp import ENDPOINT, McpServer
from rayloom.dag.ports import RegisteredTool
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.tool import LIGHT, PermissionLevel

SERVER_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
NAME_MAX_CHARS: Final = 128
MAX_DEPTH: Final = 200
SCHEMA_MAX_BYTES: Final = 256 * 1024
DESCRIPTION_CHARS: Final = 8_000
"""A longer description is cut."""
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The tools of a server, and what is wrong with those that are not among them.

    ``repeats``: those left out since one before has the same name.
    """

    tools: tuple[RegisteredTool, ...]
    faults: tuple[Fault, ...]
    repeats: tuple[Fault, ...] = ()


def described(server: McpServer, listed: Sequence[Tool], version: str) -> Described:
    """The tools that a server lists, by the names that they get here. ``version``: that of the server."""
    tools: list[RegisteredTool] = []
    faults: list[Fault] = []
    first: dict[str, int] = {}
    for at, tool in enumerate(listed):
        first.setdefault(tool.name, at)
    repeats = [
        Fault(f"/tools/{at}", f"the tool {tool.name!r} is listed before")
        for at, tool in enumerate(listed)
        if first[tool.name] != at
    ]
    for at, name in zip(first.values(), names(server.name, list(first)), strict=True):
        tool = listed[at]
        pointer = f"/tools/{at}"
        try:
            schema = _checked(tool.input_schema, f"{pointer}/inputSchema")
            output_schema = (
                None if tool.output_schema is None else _checked(tool.output_schema, f"{pointer}/outputSchema")
            )
        except _Invalid as error:
            faults.append(Fault(error.pointer, f"the schema of the tool {tool.name!r} is invalid: {error.message}"))
            continue
        hints = _hints(tool.annotations)
        tools.append(
            RegisteredTool(
                name=name,
                type="MCP",
                description=(tool.description or tool.title or "")[:DESCRIPTION_CHARS],
                version=f"{version}-{_digest(tool)}",
                schema=schema,
                output_schema=output_schema,
                endpoint=f"{ENDPOINT}{server.name}/{tool.name}",
                config={"hints": hints},
                resources=dict(LIGHT),
                lane="shared",
                permission_level=server.permission_level or level(tool.annotations),
                is_active=True,
            )
        )
    return Described(tools=tuple(tools), faults=tuple(faults), repeats=tuple(repeats))


def names(server: str, listed: Sequence[str]) -> list[str]:
    """The names that tools of a server get, in their order: theirs, with ``_`` for what a name of ours can't have.

    Where two would have the same, all but one that is so by itself end with a part of the hash of their own name: so
    no tool's name depends on which others there are before it.
    """
    plain = [_plain(server, name) for name in listed]
    counts = Counter(plain)
    return [
        name if counts[name] == 1 or name == f"{server}.{own}" else _hashed(name, own)
        for name, own in zip(plain, listed, strict=True)
    ]


def _plain(server: str, name: str) -> str:
    parts = [part for part in _ODD.sub("_", name).split(".") if part]
    plain = f"{server}.{'.'.join(parts) or '_'}"
    return plain if len(plain) <= NAME_MAX_CHARS else _hashed(plain, name)


def _hashed(plain: str, own: str) -> str:
    digest = hashlib.sha256(own.encode()).hexdigest()[:8]
    return f"{plain[: NAME_MAX_CHARS - 9].rstrip('.')}_{digest}"


def level(annotations: ToolAnnotations | None) -> PermissionLevel:
    """The permission level that hints give: what says nothing may write."""
    if annotations is not None and annotations.read_only_hint:
        return "read"
    # The protocol takes silence for true; an explicit word is a warning that we pass on.
    return "execute" if annotations is not None and annotations.destructive_hint else "write"


def _hints(annotations: ToolAnnotations | None) -> JsonObject:
    return {} if annotations is None else annotations.model_dump(by_alias=True, exclude_none=True)


class _Invalid(Exception):
    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(message)
        self.pointer, self.message = pointer, message


def _checked(schema: dict[str, Any], pointer: str) -> JsonObject:
    try:
        newer = modern(schema)
        assert isinstance(newer, dict)
        if len(orjson.dumps(newer)) > SCHEMA_MAX_BYTES:
            raise _Invalid(pointer, f"it has more than {SCHEMA_MAX_BYTES:,} bytes")
        Draft202012Validator.check_schema(newer)
    except SchemaError as error:
        where = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.absolute_path)
        raise _Invalid(pointer + where, error.message[:300]) from None
    except RecursionError:
        raise _Invalid(pointer, f"it is nested more than {MAX_DEPTH} deep") from None
    except (TypeError, ValueError, OverflowError) as error:
        # An integer, or a number in a pattern, that nothing here can hold.
        raise _Invalid(pointer, f"it can't be used: {error}"[:300]) from None
    return newer


def modern(schema: Json, depth: int = 0) -> Json:
    """A schema of draft 7, which many servers send, in the words of draft 2020-12. Raises RecursionError."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(schema, list):
        return [modern(item, depth + 1) for item in schema]
    if not isinstance(schema, dict):
        return schema
    newer: JsonObject = {name: modern(value, depth + 1) for name, value in schema.items()}
    if depth == 0:
        newer.pop("$schema", None)
    if isinstance(newer.get("items"), list):
        newer["prefixItems"] = newer.pop("items")
        if "additionalItems" in newer:
            newer["items"] = newer.pop("additionalItems")
    return newer


def _digest(tool: Tool) -> str:
    content = orjson.dumps([tool.input_schema, tool.output_schema], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:8]
