"""The models as the parser calls them: clients of its own, on the account of whoever wants a plan."""

from __future__ import annotations

from rayloom.actors.callers import RayAccounts
from rayloom.actors.settings import EngineSettings
from rayloom.dag.model import ModelPort, Payer
from rayloom.serve.parser import ModelsFor
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.metered import MeteredModels
from rayloom.tools.models.settings import ModelsSettings


def planning_models(settings: ModelsSettings, engine: EngineSettings) -> ModelsFor:
    """Made in the replica that plans."""
    clients, account = ModelClients(settings), RayAccounts(engine)

    def on_account_of(payer: Payer) -> ModelPort:
        return MeteredModels(clients, account, payer)

    return on_account_of
