"""What is said to a model, what it answers, and who pays for it: plain values that every room speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from rayloom.dag.values import Json, JsonObject

Role = Literal["planner", "reasoner", "coder", "cheap"]
"""What a model is asked for. Settings say which model takes which role; the default model takes what none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    speaker: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One call of a model.

    ``purpose`` names it in the ledger, the trace and the log: ``split``, ``repair``, ``reason`` … ``schema``: the
    answer is JSON that fits this (draft 2020-12); the endpoint is asked to see to it, and the answer is checked here in
    any case. ``max_tokens``: of the answer, at most; None: what the model's settings say.
    """

    role: Role
    messages: tuple[Message, ...]
    purpose: str
    schema: JsonObject | None = None
    max_tokens: int | None = None
    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """What calls used. ``is_estimated``: the endpoint did not say, so it was counted here."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    is_estimated: bool = False

    @property
    def tokens(self) -> int:
        """In and out together."""
        return self.tokens_in + self.tokens_out

    def __add__(self, other: ModelUse) -> ModelUse:
        return ModelUse(
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            cost_usd=self.cost_usd + other.cost_usd,
            is_estimated=self.is_estimated or other.is_estimated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer.

    ``value``: what its JSON says, where a schema was given. ``model``: its name in the settings. ``finish``: ``length``
    when it was cut off. ``first_text_s`` and ``duration_s`` count from the request.
    """

    text: str
    value: Json
    model: str
    use: ModelUse
    finish: Literal["stop", "length"]
    first_text_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """What must be known of a model without calling it. Prices in USD for a million tokens.

    ``context_tokens``: of question and answer together, at most; ``answer_tokens``: of the answer. ``call_s``: how
    long a call may take, in seconds.
    """

    name: str
    model: str
    context_tokens: int
    answer_tokens: int
    price_in: float = 0.0
    price_out: float = 0.0
    call_s: float = 600.0

    def cost_usd(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1_000_000


class ModelPort(Protocol):
    """The models of this installation, as whoever thinks with them sees them; who pays is settled already."""

    def view(self, role: Role) -> ModelView:
        """The model that takes a role."""

    def count(self, text: str) -> int:
        """How many tokens a text has, about: by the reference encoding, not the model's own."""

    async def complete(self, request: ModelRequest, *, on_text: Callable[[str], None] | None = None) -> Completion:
        """Call the model that takes the role. ``on_text`` is told each piece of the answer as it comes.

        Raises Transient (``MODEL_UNAVAILABLE``, ``MODEL_RATE_LIMITED``, ``MODEL_SILENT``, ``MODEL_BROKE_OFF``,
        ``QUOTA_EXCEEDED`` with the time to wait), Refused (``MODEL_REFUSED``, ``BUDGET_EXCEEDED``), UserError
        (``CONTEXT_TOO_LONG``) and `AnswerInvalid`. A cancellation closes the stream.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """On whose account calls of models are: every level of it has its own limits.

    ``sub_task_id`` is empty, and ``attempt`` 0, for what is done for the task as a whole, its planning; ``task_id`` is
    empty where nothing is stored, as for ``POST /plans``. ``key_id``: the API key that the task came with.
    """

    user_id: str
    key_id: str = ""
    task_id: str = ""
    sub_task_id: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Tokens and money that a call may use, asked for before it is made.

    ``id`` is a UUID that the caller makes: to ask twice reserves once. ``tokens``: question and longest answer.
    ``lease_s``: after so many seconds without a word the caller is taken for dead, and the reservation released; then
    ``least`` counts as used: the question, and what was heard of the answer so far.
    """

    id: str
    payer: Payer
    model: str
    purpose: str
    tokens: int
    cost_usd: float
    lease_s: float
    least: ModelUse = ModelUse()


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """A reservation that was not granted: which limit of which level says so.

    ``retry_in_s``: when there may be room; None where nothing but a higher limit helps.
    """

    level: Literal["user", "key", "task", "subtask", "model"]
    limit: str
    detail: str
    retry_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimits:
    """What an endpoint said of its own limits (``x-ratelimit-*``, ``Retry-After``); None: nothing."""

    requests_left: int | None = None
    tokens_left: int | None = None
    requests_reset_s: float | None = None
    tokens_reset_s: float | None = None
    retry_after_s: float | None = None


class AccountPort(Protocol):
    """Where calls of models are reserved and settled: the token controller."""

    async def reserve(self, reservation: Reservation) -> Denied | None:
        """Reserve at every level at once, or at none. None: granted.

        Raises Transient (``ACTOR_UNAVAILABLE``, ``TOKENS_STARTING``) when it is not known; may be asked again.
        """

    async def renew(self, reservation: Reservation) -> None:
        """The call is still under way: its lease is as long as it says from now on, and ``least`` is what it says.

        A reservation that is not known any more is counted again.
        """

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        """The call is over and used this (nothing, where it was not made): durable when this returns; may be repeated.

        A reservation that is not known any more is written down all the same.
        """

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        """What an endpoint said of its limits; all that call the model go by it."""
