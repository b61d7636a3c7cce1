"""How we say who we are to a server over HTTP, beyond headers: OAuth for machines, without a person in a browser."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from rayloom.dag.mcp import McpServer
from rayloom.dag.values import Json


class _Tokens:
    """The token of one connection; a new one asks for another."""

    def __init__(self) -> None:
        self._token: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        raise NotImplementedError("nobody registers here: the client is given")


def flow(server: McpServer) -> httpx2.Auth | None:
    """What asks for a token where a server wants one; None where it was registered without."""
    given = server.auth or {}
    if given.get("type") == "oauth_client_credentials":
        return ClientCredentialsOAuthProvider(
            server_url=server.url,
            storage=_Tokens(),
            client_id=str(given["client_id"]),
            client_secret=str(given["client_secret"]),
            scope=_text(given, "scope"),
            issuer=_text(given, "issuer"),
        )
    if given.get("type") == "oauth_private_key_jwt":
        # Who signs is whom it is about (RFC 7523, 3): the client itself.
        signed = SignedJWTParameters(
            issuer=str(given["client_id"]),
            subject=str(given["client_id"]),
            signing_key=str(given["private_key"]),
            signing_algorithm=_text(given, "algorithm") or "RS256",
        )
        return PrivateKeyJWTOAuthProvider(
            server_url=server.url,
            storage=_Tokens(),
            client_id=str(given["client_id"]),
            assertion_provider=signed.create_assertion_provider(),
            scope=_text(given, "scope"),
            issuer=_text(given, "issuer"),
        )
    return None


def _text(given: Mapping[str, Json], name: str) -> str | None:
    value = given.get(name)
    return None if value is None else str(value)
