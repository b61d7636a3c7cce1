"""The local model that the settings choose: agreed to, put here, and taken as the model that everybody asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from pydantic import SecretStr

from rayloom.cluster.checks import Check, StartRefused, ok
from rayloom.cluster.home import Home
from rayloom.cluster.local_model.catalogue import MODELS, LocalModel
from rayloom.cluster.local_model.consent import ask
from rayloom.cluster.local_model.install import Shelf
from rayloom.cluster.local_model.memory import MB, shortage
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.settings import Settings

Tell = Callable[[str], None]

ROUTE: Final = "/local-model"
"""Under which Serve has its face."""
FIRST_TEXT_S, SILENCE_S, CALL_S = 900.0, 120.0, 1_800.0
"""A long prompt takes minutes to be read on few cores. No call waits for a slot within these: see `asked_by_all`."""


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


def asked_by_all(settings: Settings, model: LocalModel, key: SecretStr) -> Settings:
    """Settings that name it as the model to ask, with the patience that it needs."""
    return settings.model_copy(
        update={
            "llm_base_url": f"{face_url(settings)}/v1",
            "llm_api_key": key,
            "llm_model": model.name,
            "llm_context_tokens": model.context_tokens,
            "llm_answer_tokens": model.answer_tokens,
            "llm_first_text_s": FIRST_TEXT_S,
            "llm_silence_s": SILENCE_S,
            "llm_call_s": CALL_S,
            # What waits for a slot waits for its account to let it through, before its time begins.
            "llm_max_concurrent": model.slots,
            "llm_structured": "schema",
        }
    )


def as_served(settings: Settings) -> Settings:
    """The same, for who looks from outside at the rayloom that runs in this home and may have chosen one."""
    home = Home(settings.home)
    told = home.read_run()
    name = told.services.get("local_model") if told else None
    model = next((each for each in MODELS.values() if each.name == name), None)
    key = home.read_secret("local_model_key") if model is not None else None
    return settings if model is None or key is None else asked_by_all(settings, model, SecretStr(key))


def check(settings: Settings) -> Check:
    """Whether a model that is chosen is here, and has room."""
    model, name = chosen(settings), "local-model"
    if model is None:
        return ok(name, "none is chosen")
    too_little = shortage(model)
    if too_little is not None:
        detail, _, advice = too_little.partition(": ")
        return Check(name=name, level="warn", detail=detail, advice=advice)
    if Shelf(Home(settings.home).models).needs_download(model):
        advice = f"`rayloom up` asks for its licence, and downloads {model.download_bytes // MB} MB"
        return Check(name=name, level="warn", detail=f"`{model.name}` is not on this machine", advice=advice)
    return ok(name, f"`{model.name}`: {model.title}")
