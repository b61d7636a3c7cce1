"""The clients of all models, made as they are needed."""

from __future__ import annotations

from rayloom.dag.model import Role
from rayloom.tools.models.client import ModelClient
from rayloom.tools.models.settings import ModelsSettings


class ModelClients:
    """One client for each model, shared by all that call it in this process."""

    def __init__(self, settings: ModelsSettings) -> None:
        self._settings = settings
        self._clients: dict[str, ModelClient] = {}

    def for_role(self, role: Role) -> ModelClient:
        """The client of the model that takes a role. Raises Refused (``MODEL_MISSING``)."""
        settings = self._settings.for_role(role)
        client = self._clients.get(settings.name)
        if client is None:
            client = self._clients[settings.name] = ModelClient(settings)
        return client

    async def aclose(self) -> None:
        """Close all connections of this event loop."""
        for client in self._clients.values():
            await client.aclose()
