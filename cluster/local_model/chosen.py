"""The local model that the settings choose: agreed to, put here, and taken as the model that everybody asks."""

from __future__ import annotations

import os
from collections.abc import Callable

from pydantic import SecretStr

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.home import Home
from rayloom.cluster.local_model.catalogue import MODELS, LocalModel
from rayloom.cluster.local_model.consent import ask
from rayloom.cluster.local_model.install import Shelf
from rayloom.cluster.local_model.memory import shortage
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.settings import Settings

Tell = Callable[[str], None]

ROUTE = "/local-model"
"""Under which Serve has its face."""


def chosen(settings: Settings) -> LocalModel | None:
    """The model, if one is chosen."""
    return MODELS[settings.local_model] if settings.local_model else None


def face_url(settings: Settings) -> str:
    """Its face, where processes of this rayloom find it."""
    return f"{settings.near_url}{ROUTE}"


def agree(settings: Settings, tell: Tell) -> None:
    """Have the licence accepted if anything is to be downloaded. Raises StartRefused, also where memory is short."""
    model = chosen(settings)
    if model is None:
        return
    too_little = shortage(model)
    if too_little is not None:
        raise StartRefused(too_little)
    if Shelf(Home(settings.home).models).needs_download(model):
        ask(model, accepted=settings.local_model_licence == "accept", tell=tell)


async def put_here(settings: Settings, home: Home, tell: Tell) -> LlamaSettings | None:
    """The model that is chosen, installed, and what its server is told. Raises StartRefused."""
    model = chosen(settings)
    if model is None:
        return None
    return LlamaSettings(
        installed=await Shelf(home.models).install(model, tell),
        key=SecretStr(home.secret("local_model_key")),
        folder=home.models / "run",
        log=home.logs / "local-model.log",
        threads=settings.ray_num_cpus or len(os.sched_getaffinity(0)),
    )


def asked_by_all(settings: Settings, llama: LlamaSettings) -> Settings:
    """Settings that name it as the model to ask."""
    return settings.model_copy(
        update={
            "llm_base_url": f"{face_url(settings)}/v1",
            "llm_api_key": llama.key,
            "llm_model": llama.installed.model.name,
        }
    )
