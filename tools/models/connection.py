"""The connections to one endpoint: the SDK, told everything, with a pool for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx2
from openai import AsyncOpenAI, AsyncStream, Omit

from rayloom.dag.values import JsonObject
from rayloom.tools.models.settings import ModelSettings
from rayloom.tools.tls import trust

CONNECT_S: Final = 10.0
# No limit on reading: how long an endpoint may be silent depends on what it has said so far, so we watch that.
_TIMEOUT: Final = httpx2.Timeout(CONNECT_S, read=None, write=60.0, pool=None)
# As many as there are calls at a time: a call that waits for a connection would look like a slow model.
_LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=20)


class _Sdk(AsyncOpenAI):
    """The SDK without what it reads from the environment (``OPENAI_*``), and what it tells of this machine."""

    @property
    def default_headers(self) -> dict[str, str | Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "rayloom"}


class Connections:
    """Opens streams at one endpoint. To be closed in each event loop that used it."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, _Sdk] = WeakKeyDictionary()
        key = settings.api_key.get_secret_value()
        self._headers: Mapping[str, str | Omit] = {"Authorization": f"Bearer {key}" if key else Omit()}

    async def stream(self, body: JsonObject) -> AsyncStream[Any]:
        """Ask for a completion; the events of its answer, as JSON. Raises what the SDK raises."""
        return await self._client().post(
            "/chat/completions",
            cast_to=object,
            body=body,
            options={"headers": self._headers},
            stream=True,
            stream_cls=AsyncStream[Any],
        )

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _client(self) -> _Sdk:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = _Sdk(
                api_key="",
                admin_api_key="",
                organization="",
                project="",
                webhook_secret="",
                base_url=self._settings.base_url,
                max_retries=0,
                http_client=httpx2.AsyncClient(verify=trust(), trust_env=False, timeout=_TIMEOUT, limits=_LIMITS),
                _enforce_credentials=False,
            )
        return client
