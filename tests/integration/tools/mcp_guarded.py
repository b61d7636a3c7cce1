"""An MCP server that wants a token, and the authorization server beside it: `mcp_guarded.py PORT KEY`.

A client is given a token for its id and secret alone (RFC 6749, 4.4), or for what the key signed whose public part
is in the file KEY (RFC 7523), found by the metadata of RFC 9728 and RFC 8414. What has "never" in it is never answered.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import jwt
import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PORT = int(sys.argv[1])
KEY = Path(sys.argv[2]).read_text()
HERE = f"http://127.0.0.1:{PORT}"
CLIENT, TOKEN = "rayloom:correct-horse", "token-of-the-day"
server = MCPServer("guarded")


@server.tool()
def whoami() -> str:
    """Say who calls."""
    return "you"


async def protected(request: Request) -> Response:
    return JSONResponse({"resource": f"{HERE}/mcp", "authorization_servers": [HERE]})


async def metadata(request: Request) -> Response:
    return JSONResponse(
        {
            "issuer": HERE,
            "authorization_endpoint": f"{HERE}/authorize",
            "token_endpoint": f"{HERE}/token",
            "response_types_supported": ["code"],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "private_key_jwt"],
        }
    )


def signed(word: str) -> bool:
    """Whether the client's own key has signed that it is the client, and for us."""
    try:
        return str(jwt.decode(word, KEY, ["ES256"], audience=HERE, issuer="rayloom")["sub"]) == "rayloom"
    except jwt.InvalidTokenError:
        return False


async def token(request: Request) -> Response:
    asked = await request.form()
    basic = request.headers.get("authorization", "").removeprefix("Basic ")
    is_known = base64.b64decode(basic).decode() == CLIENT or signed(str(asked.get("client_assertion", "")))
    if asked.get("grant_type") != "client_credentials" or not is_known:
        return JSONResponse({"error": "invalid_client"}, 401)
    return JSONResponse({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})


app: Starlette = server.streamable_http_app()
app.router.routes[:0] = [
    Route("/.well-known/oauth-protected-resource/mcp", protected),
    Route("/.well-known/oauth-authorization-server", metadata),
    Route("/token", token, methods=["POST"]),
]


async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    if request.url.path == "/mcp" and request.headers.get("authorization") != f"Bearer {TOKEN}":
        where = f'Bearer resource_metadata="{HERE}/.well-known/oauth-protected-resource/mcp"'
        return JSONResponse({"error": "unauthorized"}, 401, {"WWW-Authenticate": where})
    if b"never" in await request.body():
        await asyncio.Event().wait()
    return await go_on(request)


app.add_middleware(BaseHTTPMiddleware, dispatch=guard)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error")
