"""The models as the parser calls them: clients of its own, on the account of whoever wants a plan.

Imported by who deploys the parser, made in a replica of it, as `ports` is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rayloom.actors.settings import EngineSettings
from rayloom.dag.model import ModelPort, Payer
from rayloom.tools.models.settings import ModelsSettings

if TYPE_CHECKING:
    from rayloom.serve.parser import ModelsFor

KEPT_S: Final = 5.0
"""What was paid for to plan a task is kept with it, and gone on from: nobody has to wait for room in the parser."""


def planning_models(settings: ModelsSettings, engine: EngineSettings) -> ModelsFor:
    """Made in the replica that plans."""
    from rayloom.actors.callers import RayAccounts
    from rayloom.tools.models.clients import ModelClients
    from rayloom.tools.models.metered import MeteredModels
    from rayloom.tools.models.patience import Patience

    clients, account = ModelClients(settings), RayAccounts(engine)

    def on_account_of(payer: Payer) -> ModelPort:
        # Who plans without running has no task, and would have to pay for all of it again.
        patience = Patience(paid_s=KEPT_S) if payer.task_id else Patience()
        return MeteredModels(clients, account, payer, patience=patience)

    return on_account_of
