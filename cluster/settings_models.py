"""The settings of models, a part of `Settings`: one by variables of its own, and any number by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings

from rayloom.cluster.spellings import HttpUrl
from rayloom.tools.models.settings import DEFAULT, ModelSettings, ModelsSettings, Structured

_NONE: Final = SecretStr("")
_EXAMPLE: Final = '{"small": {"base_url": "http://…/v1", "model": "…", "roles": ["cheap"]}}'
_DEFAULTS: Final = {name: field.default for name, field in ModelSettings.model_fields.items()}


def _named(value: object) -> object:
    """JSON, or a table of TOML, as one secret: keys are among it."""
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        try:
            value = json.dumps(value)
        except TypeError:
            raise ValueError(f"must be an object such as {_EXAMPLE}") from None
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError):
        raise ValueError(f"must be a JSON object such as {_EXAMPLE}") from None
    if not isinstance(found, dict) or not all(isinstance(members, dict) for members in found.values()):
        raise ValueError(f"must be a JSON object such as {_EXAMPLE}")
    return SecretStr(value)


class ModelFields(BaseSettings):
    """Models behind OpenAI-compatible endpoints. What is said without a name is the model called ``default``."""

    llm_base_url: HttpUrl = Field(default="", description="an OpenAI-compatible endpoint, such as http://…/v1")
    llm_api_key: SecretStr = Field(default=_NONE, description="empty: it needs none")
    llm_model: str = Field(default="", description="the model's id at the endpoint")
    llm_context_tokens: int = Field(
        default=_DEFAULTS["context_tokens"], ge=256, description="of question and answer together, at most"
    )
    llm_answer_tokens: int | None = Field(default=None, ge=1, description="empty: 4096, or half the context if less")
    llm_price_in: float = Field(default=0.0, ge=0, description="USD for a million tokens of questions")
    llm_price_out: float = Field(default=0.0, ge=0, description="USD for a million tokens of answers")
    llm_first_text_s: float = Field(default=_DEFAULTS["first_text_s"], gt=0, description="its first word comes by then")
    llm_silence_s: float = Field(default=_DEFAULTS["silence_s"], gt=0, description="and each further one by then")
    llm_call_s: float = Field(default=_DEFAULTS["call_s"], gt=0, description="and the whole answer")
    llm_structured: Structured = Field(default="auto", description="how it is asked for JSON")
    llm_seed: int | None = Field(default=None, description="sent with every call; empty: none")
    llm_tokens_per_min: int | None = Field(default=None, ge=1, description="of all calls of it; empty: no limit")
    llm_requests_per_min: int | None = Field(default=None, ge=1)
    llm_max_concurrent: int | None = Field(default=None, ge=1)
    llm_models: Annotated[SecretStr, BeforeValidator(_named)] = Field(
        default=SecretStr("{}"), description=f"more models, by name: {_EXAMPLE}"
    )

    @model_validator(mode="after")
    def _models_are_whole(self) -> ModelFields:
        if self.llm_base_url and not self.llm_model:
            raise ValueError("RAYLOOM_LLM_BASE_URL is set and RAYLOOM_LLM_MODEL is not: say which model it is")
        for name in ("llm_model", "llm_api_key"):
            given = getattr(self, name)
            if not self.llm_base_url and (given.get_secret_value() if isinstance(given, SecretStr) else given):
                raise ValueError(f"RAYLOOM_{name.upper()} is set and RAYLOOM_LLM_BASE_URL is not: say where it is")
        assert self.models is not None
        return self

    @property
    def models(self) -> ModelsSettings:
        """All models that may be called. Raises ValueError, in one line without any secret."""
        found = [_model(DEFAULT, self._default(), "RAYLOOM_LLM_")] if self.llm_base_url else []
        for name, members in json.loads(self.llm_models.get_secret_value()).items():
            # Another model at the same endpoint needs no more than its id. The key goes with the endpoint alone.
            place = {} if "base_url" in members else {"base_url": self.llm_base_url, "api_key": self.llm_api_key}
            found.append(_model(name, place | members, f"RAYLOOM_LLM_MODELS: {name}."))
        try:
            return ModelsSettings(models=tuple(found))
        except ValidationError as error:
            raise ValueError(f"RAYLOOM_LLM_MODELS: {_first(error)[1]}") from None

    def _default(self) -> dict[str, Any]:
        fields = (name.removeprefix("llm_") for name in ModelFields.model_fields if name != "llm_models")
        return {name: getattr(self, f"llm_{name}") for name in fields}


def _model(name: str, members: dict[str, Any], prefix: str) -> ModelSettings:
    if not members.get("base_url"):
        raise ValueError(f"{prefix}base_url is not set, and neither is RAYLOOM_LLM_BASE_URL: say where it is")
    try:
        return ModelSettings(**(members | {"name": name}))
    except ValidationError as error:
        place, message = _first(error)
        raise ValueError(f"{prefix}{place}: {message}" if place else f"{prefix.rstrip('.')}: {message}") from None


def _first(error: ValidationError) -> tuple[str, str]:
    """Where the first fault is, and what it is."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
