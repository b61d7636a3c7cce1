"""The client that the conformance suite runs: our own session, given a URL, doing what a scenario wants of it.

``python -m tests.integration.tools.mcp_conformance_client URL``, with the scenario's name and what it gives a client in
the environment. It ends with 1 where the session or a call fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from rayloom.dag.errors import RayloomError
from rayloom.dag.mcp import McpServer
from rayloom.dag.values import JsonObject
from tests.integration.tools.mcp_rig import connected

ARGUMENTS: Final[dict[str, JsonObject]] = {"add_numbers": {"a": 5, "b": 3}}
"""Of tools that want some; each other one is called without."""


def issuer(url: str) -> str:
    """Whom the credentials are for. The suite does not tell it; who registers a server knows it."""
    at = urlsplit(url)
    found = httpx2.get(f"{at.scheme}://{at.netloc}/.well-known/oauth-protected-resource{at.path}", trust_env=False)
    return str(found.json()["authorization_servers"][0])


def auth(url: str, given: dict[str, Any]) -> JsonObject | None:
    """What a server is registered with, of what the scenario gives a client."""
    if "client_secret" in given:
        secret = {"type": "oauth_client_credentials", "client_secret": given["client_secret"]}
    elif "private_key_pem" in given:
        secret = {"type": "oauth_private_key_jwt", "private_key": given["private_key_pem"]}
        secret["algorithm"] = given["signing_algorithm"]
    else:
        return None
    return {**secret, "client_id": given["client_id"], "issuer": issuer(url)}


async def main(url: str) -> None:
    """Open a session and call every tool that there is."""
    given = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    server = McpServer(name="it", transport="http", url=url, auth=auth(url, given))
    async with connected(server) as rig:
        for tool in sorted(rig.tools):
            await rig.call(tool, ARGUMENTS.get(tool, {}))


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
    except RayloomError as error:
        sys.exit(f"{error.code}: {error.message}")
