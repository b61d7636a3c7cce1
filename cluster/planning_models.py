"""The models as the parser calls them: clients of its own, on the account of whoever wants a plan."""

from __future__ import annotations

from typing import Final

from rayloom.actors.callers import RayAccounts
from rayloom.actors.settings import EngineSettings
from rayloom.dag.model import ModelPort, Payer
from rayloom.serve.parser import ModelsFor
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.models.metered import MeteredModels
from rayloom.tools.models.settings import ModelsSettings

CALLS: Final = 3
"""Of a model for one prompt: the plan, and two rounds of mending."""
MARGIN_S: Final = 60.0
ANSWER_MAX_S: Final = 900.0
PLAIN_ANSWER_S: Final = 120.0


def planning_models(settings: ModelsSettings, engine: EngineSettings) -> ModelsFor:
    """Made in the replica that plans."""
    clients, account = ModelClients(settings), RayAccounts(engine)

    def on_account_of(payer: Payer) -> ModelPort:
        return MeteredModels(clients, account, payer)

    return on_account_of


def answer_s(settings: ModelsSettings) -> float:
    """How long the parser may take over a prompt: a model of one's own needs minutes for each answer."""
    if not settings.is_configured:
        return PLAIN_ANSWER_S
    return min(ANSWER_MAX_S, CALLS * settings.for_role("planner").call_s + MARGIN_S)
