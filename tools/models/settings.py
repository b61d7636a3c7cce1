"""Which models there are: where, what they take, what they cost, and how long they may be silent. Picklable values."""

from __future__ import annotations

from typing import Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from rayloom.dag.errors import Refused
from rayloom.dag.model import ModelView, Role

ROLES: Final[tuple[str, ...]] = get_args(Role)
DEFAULT: Final = "default"
"""The name of the model that takes the roles which no other takes."""
ANSWER_TOKENS: Final = 4_096
Structured = Literal["auto", "schema", "object", "prompt"]
"""How an endpoint is asked for JSON: by the schema itself, for any object, or in words alone.

``auto``: by the schema. What an endpoint refuses is asked for in the next way, whichever was chosen.
"""


class ModelSettings(BaseModel):
    """One model behind an OpenAI-compatible endpoint.

    ``context_tokens``: of question and answer together, at most. ``answer_tokens`` None: 4096, or half the context
    where that is less. Prices in USD for a million tokens. ``first_text_s``: how long the first piece of an answer may
    take; ``silence_s``: each further one; ``call_s``: the whole call. ``seed``: sent with every call. The last three
    are limits of our own on all calls of it; None: none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(default=DEFAULT, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    base_url: str = Field(pattern=r"^https?://[^/]")
    api_key: SecretStr = Field(default=SecretStr(""), description="empty: none is needed")
    model: str = Field(min_length=1, description="its id at the endpoint")
    roles: tuple[Role, ...] = ()
    context_tokens: int = Field(default=32_768, ge=256)
    answer_tokens: PositiveInt | None = None
    answer_max_bytes: PositiveInt = Field(default=256 * 1024, description="a longer answer is cut off")
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0
    first_text_s: PositiveFloat = 120.0
    silence_s: PositiveFloat = 60.0
    call_s: PositiveFloat = 600.0
    structured: Structured = "auto"
    seed: int | None = None
    tokens_per_min: PositiveInt | None = None
    requests_per_min: PositiveInt | None = None
    max_concurrent: PositiveInt | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if "@" in urlsplit(self.base_url).netloc:
            raise ValueError(f"base_url of model {self.name} must hold no password: that is what api_key is for")
        if self.answer_tokens is not None and self.answer_tokens >= self.context_tokens:
            raise ValueError(f"answer_tokens of model {self.name} must be less than its context_tokens")
        return self

    @property
    def view(self) -> ModelView:
        """What must be known of it without calling it."""
        return ModelView(
            name=self.name,
            model=self.model,
            context_tokens=self.context_tokens,
            answer_tokens=self.answer_tokens or min(ANSWER_TOKENS, self.context_tokens // 2),
            price_in=self.price_in,
            price_out=self.price_out,
            call_s=self.call_s,
        )

    @property
    def shown(self) -> str:
        """How messages call it: its id and the host, never what a URL may hide."""
        parts = urlsplit(self.base_url)
        return f"{self.model} at {parts.netloc.rpartition('@')[2]}"


class ModelsSettings(BaseModel):
    """All models; empty: none, and whatever needs one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    models: tuple[ModelSettings, ...] = ()

    @model_validator(mode="after")
    def _are_told_apart(self) -> Self:
        names = [each.name for each in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are named {name}")
        for role in ROLES:
            takers = [each.name for each in self.models if role in each.roles]
            if len(takers) > 1:
                raise ValueError(f"the role {role} is taken by both {takers[0]} and {takers[1]}")
        return self

    @property
    def is_configured(self) -> bool:
        """Whether there is any model."""
        return bool(self.models)

    def for_role(self, role: Role) -> ModelSettings:
        """The model that takes a role: the one that says so, else ``default``, else the first of all.

        Raises Refused (``MODEL_MISSING``) where no model is configured.
        """
        if not self.models:
            raise Refused("MODEL_MISSING", "no model is configured: set RAYLOOM_LLM_BASE_URL and RAYLOOM_LLM_MODEL")
        taker = next((each for each in self.models if role in each.roles), None)
        return taker or next((each for each in self.models if each.name == DEFAULT), self.models[0])
