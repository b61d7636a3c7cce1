"""The model that the settings name, for a run of the harness with a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rayloom.cluster.settings import load_settings
from rayloom.dag.model import Denied, ModelPort, ModelUse, Payer, ProviderLimits, Reservation
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.metered import MeteredModels


class Unlimited:
    """An account that grants everything and writes nothing down: nobody's quota is touched by a measurement."""

    async def reserve(self, reservation: Reservation) -> Denied | None:
        """Granted."""
        return None

    async def renew(self, reservation: Reservation) -> None:
        """Written down nowhere."""

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        """Written down nowhere."""

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        """Forgotten."""


@asynccontextmanager
async def live_models() -> AsyncIterator[ModelPort]:
    """The models of ``RAYLOOM_LLM_*``, called by nobody in particular. Raises SystemExit where there are none."""
    settings = load_settings().models
    if not settings.is_configured:
        raise SystemExit("no model is configured: set RAYLOOM_LLM_BASE_URL and RAYLOOM_LLM_MODEL")
    clients = ModelClients(settings)
    try:
        yield MeteredModels(clients, Unlimited(), Payer(user_id="bench"))
    finally:
        await clients.aclose()
