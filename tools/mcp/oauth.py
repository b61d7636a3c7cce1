"""How we say who we are to a server over HTTP, beyond headers: OAuth for machines, without a person in a browser."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import httpx2
from mcp.client.auth import OAuthClientProvider
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


class Unhurried(httpx2.Auth):
    """Asks for a token as the SDK's provider does, but holds its lock for that alone.

    The SDK holds it until the request itself is answered: one call would wait for the other, and all of them, and the
    end of the session, for one that never is.
    """

    def __init__(self, provider: OAuthClientProvider) -> None:
        self._provider = provider

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send a request with the token that there is; where it is refused, ask for another one and send it again."""
        token = self._token()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        refused = yield request
        # Whoever calls with no token at all is told so by a 401.
        if refused.status_code != 401 and (refused.status_code != 403 or token is None):
            return
        # Its body may take its time, too.
        await refused.aread()
        flow, is_told, is_aside = self._provider.async_auth_flow(request), False, False
        try:
            asked = await anext(flow)
            while True:
                if asked is not request:
                    is_aside = True
                    answer = yield asked
                elif is_told or self._token() not in (None, token):
                    # There is another one: it was asked for here, or by another request while this one waited.
                    break
                else:
                    is_told, answer = True, refused
                asked = await flow.asend(answer)
        except StopAsyncIteration:
            if not is_aside:
                return
        finally:
            await flow.aclose()
        yield request

    def _token(self) -> str | None:
        context = self._provider.context
        return context.current_tokens.access_token if context.current_tokens and context.is_token_valid() else None


def flow(server: McpServer) -> httpx2.Auth | None:
    """What asks for a token where a server wants one; None where it was registered without."""
    provider = _provider(server)
    return None if provider is None else Unhurried(provider)


def _provider(server: McpServer) -> OAuthClientProvider | None:
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
