"""The settings of the scheduler and the attempts, a part of `Settings`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayloom.actors.settings import EngineSettings
from rayloom.cluster.settings_breaker import BreakerFields
from rayloom.cluster.spellings import Faults, LevelList


class EngineFields(BreakerFields):
    """How work is run; times in seconds."""

    retry_initial_s: float = Field(default=1.0, gt=0, le=3600)
    retry_max_s: float = Field(default=60.0, gt=0, le=86_400)
    lane: Literal["auto", "own"] = Field(default="auto", description="own: one Ray task for every subtask")
    approval_levels: LevelList = Field(
        default=(), description="read, write, execute, admin, by commas: tools of these levels want approval"
    )
    approval_ttl_s: float = Field(
        default=7 * 86_400, gt=0, le=3_650 * 86_400, description="what waits for approval longer is rejected"
    )
    max_replans: int = Field(default=2, ge=0, le=100, description="so often a plan made by a model may be added to")
    early_start: bool = Field(default=True, description="what only reads runs while a model still writes the plan")
    heartbeat_s: float = Field(default=1.0, gt=0, le=60, description="how often a scheduler says that it lives")
    lease_s: float = Field(default=10.0, gt=0, le=3600, description="a silent scheduler loses its attempts after this")
    cache_ttl_s: float = Field(
        default=3600.0, ge=0, description="how long results are kept for equal calls; 0: not at all"
    )
    dead_letter_retention_days: float = Field(default=30, gt=0, le=36_500, description="of letters that are settled")
    quota_warn_share: float = Field(default=0.8, gt=0, le=1, description="a limit is nearly used up from here on")
    faults: Faults = Field(default="", description="seed:rate, fault injection for tests")

    @property
    def engine(self) -> EngineSettings:
        """What the scheduler and the attempts are told."""
        return EngineSettings(
            retry_initial_s=self.retry_initial_s,
            retry_max_s=self.retry_max_s,
            lane=self.lane,
            approval_levels=self.approval_levels,
            approval_ttl_s=self.approval_ttl_s,
            max_replans=self.max_replans,
            early_start=self.early_start,
            heartbeat_s=self.heartbeat_s,
            lease_s=self.lease_s,
            cache_ttl_s=self.cache_ttl_s,
            dead_letter_retention_s=self.dead_letter_retention_days * 86_400,
            quota_warn_share=self.quota_warn_share,
            faults=self.faults,
            breaker=self.breaker,
        )
