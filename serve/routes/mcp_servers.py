"""MCP servers: registering, showing, changing and removing them, by the routes of the tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from rayloom.dag.errors import Fault, UserError
from rayloom.dag.mcp import McpServer
from rayloom.dag.values import JsonObject
from rayloom.serve.bodies import Body, validated
from rayloom.serve.deps import Deps, ask
from rayloom.serve.problems import invalid, not_found
from rayloom.tools.mcp import server_json

REGISTER_TIMEOUT_S: Final = 90.0

Word = Annotated[str, StringConstraints(min_length=1, max_length=4_096)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Value = Annotated[str, StringConstraints(max_length=32_768)]
Level = Literal["read", "write", "execute", "admin"]
TimeoutS = Annotated[float, Field(ge=1, le=3_600)]


class Bearer(Body):
    """A token that goes with each request."""

    type: Literal["bearer"]
    token: Value


class ClientCredentials(Body):
    """OAuth: a token is fetched with the credentials of a client. ``issuer``: the only one that they are given to."""

    type: Literal["oauth_client_credentials"]
    client_id: Name
    client_secret: Value
    issuer: Word
    scope: Word | None = None


class PrivateKey(Body):
    """OAuth: a token is fetched with a word that the client's own key has signed. The key is a PEM, and never sent."""

    type: Literal["oauth_private_key_jwt"]
    client_id: Name
    private_key: Value
    algorithm: Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"] = "RS256"
    issuer: Word
    scope: Word | None = None


Auth = Annotated[Bearer | ClientCredentials | PrivateKey, Field(discriminator="type")]


class McpBody(Body):
    """The body of ``POST /api/v1/tools/register`` for an MCP server.

    With ``server``, a ``server.json`` of the MCP registry, in place of ``transport``, ``command`` and ``url``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["MCP"] = "MCP"
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_\-]{0,63}$")]
    transport: Literal["stdio", "http", "sse"]
    command: Annotated[list[Word], Field(min_length=1, max_length=256)] | None = None
    url: Annotated[str, StringConstraints(min_length=1, max_length=8_192)] | None = None
    env: dict[Name, Value] = Field(default_factory=dict)
    headers: dict[Name, Value] = Field(default_factory=dict)
    auth: Auth | None = None
    trusted: bool = Field(default=False, description="run the command outside the sandbox")
    readable: list[Word] = Field(default_factory=list, description="folders that a confined command may read")
    timeout_s: TimeoutS = Field(default=300.0, description="how long one call may take")
    permission_level: Level | None = Field(default=None, description="of all its tools; null: as its hints say")

    @model_validator(mode="after")
    def _whole(self) -> McpBody:
        if self.transport == "stdio" and self.command is None:
            raise ValueError("a stdio server needs a command")
        if self.transport != "stdio" and self.url is None:
            raise ValueError(f"a server over {self.transport} needs a url")
        return self

    def server(self) -> McpServer:
        """What is registered."""
        return McpServer(
            name=self.name,
            transport=self.transport,
            command=tuple(self.command or ()),
            url=self.url or "",
            trusted=self.trusted,
            readable=tuple(self.readable),
            timeout_s=self.timeout_s,
            permission_level=self.permission_level,
            env=self.env,
            headers=self.headers,
            auth=None if self.auth is None else self.auth.model_dump(exclude_none=True),
        )


class McpChange(Body):
    """The body of ``PATCH /api/v1/tools/{server}``. In ``env`` and ``headers`` null removes an entry."""

    is_active: bool = Field(default=True, description="switch it, and all its tools, on or off")
    env: dict[Name, Value | None] = Field(default_factory=dict)
    headers: dict[Name, Value | None] = Field(default_factory=dict)
    auth: Auth | None = None
    timeout_s: TimeoutS = 300.0


async def register(deps: Deps, document: JsonObject) -> tuple[str, list[str]]:
    """Register a server; answers its name and those of its tools. Raises Problem (422), UserError (``TOOL_EXISTS``)."""
    if isinstance(document.get("server"), dict):
        try:
            document = server_json.expanded(document)
        except server_json.Invalid as error:
            raise invalid(error.faults) from error
    body = validated(document, McpBody)
    call = deps.ports.mcp.register(body.server())
    try:
        tools = await ask(call, "the host of MCP servers", timeout_s=REGISTER_TIMEOUT_S)
    except UserError as error:
        if error.code == "TOOL_EXISTS":
            raise
        way = "/command" if body.transport == "stdio" else "/url"
        field = {"TOOL_NAME_INVALID": "/name", "MCP_INVALID": "/transport"}.get(error.code, way)
        raise invalid([Fault(field, error.message)], code=error.code) from error
    return body.name, list(tools)


async def show(deps: Deps, name: str) -> JsonObject:
    """A server by its name. Raises Problem (404)."""
    try:
        return await ask(deps.ports.mcp.show(name), "the host of MCP servers")
    except UserError as error:
        raise not_found("this tool") from error


async def change(deps: Deps, name: str, document: JsonObject) -> JsonObject:
    """Change a server. Raises Problem (404, 422)."""
    await show(deps, name)
    body = validated(document, McpChange)
    if not body.model_fields_set:
        raise invalid([Fault("", "name what to change: is_active, env, headers, auth or timeout_s")])
    changes: JsonObject = body.model_dump(include=body.model_fields_set)
    if isinstance(auth := changes.get("auth"), Mapping):
        changes["auth"] = {field: value for field, value in auth.items() if value is not None}
    try:
        return await ask(deps.ports.mcp.change(name, changes), "the host of MCP servers", timeout_s=30.0)
    except UserError as error:
        raise invalid([Fault("", error.message)], code=error.code) from error


async def remove(deps: Deps, name: str) -> None:
    """Remove a server with its tools. Raises Problem (404)."""
    # Not looked at first: one whose secrets can't be read any more can only be removed.
    try:
        await ask(deps.ports.mcp.remove(name), "the host of MCP servers", timeout_s=30.0)
    except UserError as error:
        raise not_found("this tool") from error
