"""The settings of the circuit breakers, a part of `Settings`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings

from rayloom.actors.settings import BreakerSettings


class BreakerFields(BaseSettings):
    """When the breaker of a tool opens, and for how long: ``RAYLOOM_BREAKER_<…>``, times in seconds."""

    breaker_window_s: float = Field(default=60.0, gt=0, le=3600, description="calls of so long count together")
    breaker_calls_min: int = Field(default=10, ge=1, description="of fewer calls in the window no share is taken")
    breaker_failure_share: float = Field(default=0.5, gt=0, le=1, description="a breaker opens when so many failed")
    breaker_failures_in_a_row: int = Field(default=5, ge=1, description="or so many, one after the other")
    breaker_cooldown_s: float = Field(default=5.0, gt=0, le=86_400, description="how long it stays open at first")
    breaker_cooldown_max_s: float = Field(default=300.0, gt=0, le=86_400, description="doubled each time, up to this")
    breaker_calm_s: float = Field(default=600.0, gt=0, description="closed for so long, it begins with the first again")
    breaker_probe_s: float = Field(default=60.0, gt=0, description="a probe that is silent for so long is given up")

    @property
    def breaker(self) -> BreakerSettings:
        """What the breakers are told."""
        return BreakerSettings(
            **{name: getattr(self, f"breaker_{name}") for name in BreakerSettings.model_fields},
        )
