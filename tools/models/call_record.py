"""One call of a model, as the trace and the log tell of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.model import ModelUse
from rayloom.dag.values import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call, for the trace and the log. ``started_at`` in seconds since the epoch, when its question was asked.

    ``id`` is its reservation's. ``waited_s``: for room, before that. ``finish`` is empty, and ``error`` its reason,
    where it gave no answer. ``is_settled``: False where the account could not be told what it used.
    """

    id: str
    name: str
    model: str
    purpose: str
    use: ModelUse
    started_at: float
    waited_s: float
    duration_s: float
    first_text_s: float | None
    finish: Literal["stop", "length", ""]
    error: ErrorInfo | None
    is_settled: bool

    @property
    def is_ok(self) -> bool:
        """Whether it gave an answer that is what was asked for."""
        return self.error is None

    @property
    def attributes(self) -> JsonObject:
        """The attributes of its span, of the kind ``model``, and the fields of its log line."""
        found: JsonObject = {
            "model": self.model,
            "purpose": self.purpose,
            "tokens_in": self.use.tokens_in,
            "tokens_out": self.use.tokens_out,
            "is_estimated": self.use.is_estimated,
            "cost_usd": self.use.cost_usd,
            "duration_ms": round(self.duration_s * 1_000),
            "waited_ms": round(self.waited_s * 1_000),
        }
        if self.first_text_s is not None:
            found["first_text_ms"] = round(self.first_text_s * 1_000)
        if self.finish:
            found["finish"] = self.finish
        if self.error is not None:
            found["error"] = self.error.code
        if not self.is_settled:
            found["is_settled"] = False
        return found

    @property
    def line(self) -> str:
        """What the log says of it, in the stream ``model``."""
        used = f"{self.use.tokens_in} + {self.use.tokens_out} tokens, {self.use.cost_usd:.6f} USD"
        end = f"{self.error.code}: {self.error.message}" if self.error else self.finish
        return f"{self.purpose}: {self.name} ({self.model}), {used}, {self.duration_s:.1f} s: {end}"


OnCall = Callable[[CallRecord], None]
