"""The clients of all models, made as they are needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rayloom.dag.model import ModelView, Role
from rayloom.tools.models.settings import ModelSettings, ModelsSettings

if TYPE_CHECKING:
    from rayloom.tools.models.client import ModelClient


class ModelClients:
    """One client for each model, shared by all that call it in this process."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._clients: dict[str, ModelClient] = {}

    def view(self, role: Role) -> ModelView:
        """The model that takes a role. Raises Refused (``MODEL_MISSING``)."""
        return self._settings.for_role(role).view

    async def for_role(self, role: Role) -> ModelClient:
        """Its client. Raises Refused (``MODEL_MISSING``)."""
        settings = self._settings.for_role(role)
        client = self._clients.get(settings.name)
        if client is None:
            made = await asyncio.to_thread(_make, settings)
            client = self._clients.setdefault(settings.name, made)
        return client

    async def aclose(self) -> None:
        """Close all connections of this event loop."""
        for client in self._clients.values():
            await client.aclose()


def _make(settings: ModelSettings) -> ModelClient:
    # The SDK takes a second or so to import, which who calls no model does not spend, and who does not in its loop.
    from rayloom.tools.models.client import ModelClient

    return ModelClient(settings)
