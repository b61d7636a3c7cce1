"""What has been done for a plan so far: the calls of models, also where no plan came of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rayloom.dag.model import ModelUse
from rayloom.dag.values import Json, JsonObject

TRIED: Final = "tried"
"""Where the record of a plan (`plan_meta`) has what its planning goes on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCall:
    """One call of a model while a prompt was planned. ``began_s``: seconds since the parser took the prompt.

    ``fault_count``: how many faults its answer had; none where it gave a plan that can run, or questions.
    """

    purpose: str
    model: str
    use: ModelUse
    began_s: float
    duration_s: float
    fault_count: int = 0

    def as_json(self) -> JsonObject:
        """As it is stored with the plan."""
        return {
            "purpose": self.purpose,
            "model": self.model,
            "tokens_in": self.use.tokens_in,
            "tokens_out": self.use.tokens_out,
            "cost_usd": self.use.cost_usd,
            "is_estimated": self.use.is_estimated,
            "began_s": self.began_s,
            "duration_s": self.duration_s,
            "faults": self.fault_count,
        }

    @classmethod
    def of_json(cls, stored: Any) -> PlanCall:
        """The call that was stored so."""
        use = ModelUse(**{name: stored[name] for name in ("tokens_in", "tokens_out", "cost_usd", "is_estimated")})
        return cls(
            purpose=stored["purpose"],
            model=stored["model"],
            use=use,
            began_s=stored["began_s"],
            duration_s=stored["duration_s"],
            fault_count=stored["faults"],
        )

    @property
    def line(self) -> str:
        """What the log says of it, in the stream ``model``."""
        used = f"{self.use.tokens_in} + {self.use.tokens_out} tokens, {self.use.cost_usd:.6f} USD"
        faults = f": {self.fault_count} faults" if self.fault_count else ""
        return f"{self.purpose}: {self.model}, {used}, {self.duration_s:.1f} s{faults}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was done for a plan that there is none of, or none of yet.

    ``text``: the last answer, whose faults are still to be mended: whoever tries again goes on from it, and does not
    pay for it twice. Empty where there is nothing to go on from.
    """

    notes: tuple[str, ...] = ()
    calls: tuple[PlanCall, ...] = ()
    text: str = ""

    def meta(self) -> JsonObject:
        """As it is stored with a task that has no plan; nothing where there is nothing to tell."""
        told: JsonObject = {"notes": list(self.notes)} if self.notes else {}
        return told | calls_meta(self.calls)


NOTHING_TRIED = Tried()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the record keeps for whoever plans next: the next life of a scheduler, or a retry.

    ``told``: of the notes and calls of ``tried`` the first ones, which the log tells of already.
    """

    tried: Tried = NOTHING_TRIED
    told: Tried = NOTHING_TRIED

    def meta(self) -> JsonObject:
        """As it is stored; nothing where there is no answer to go on from."""
        tried, told = self.tried, self.told
        if not tried.text:
            return {}
        calls: list[Json] = [call.as_json() for call in tried.calls]
        kept: JsonObject = {"notes": list(tried.notes), "calls": calls, "text": tried.text}
        return {TRIED: kept | {"told": [len(told.notes), len(told.calls)]}}

    @classmethod
    def of_meta(cls, meta: JsonObject | None) -> Kept:
        """What was stored with the record of a plan."""
        stored: Any = (meta or {}).get(TRIED)
        if stored is None:
            return NOTHING_KEPT
        notes, calls = tuple(stored["notes"]), tuple(map(PlanCall.of_json, stored["calls"]))
        notes_told, calls_told = stored["told"]
        return cls(
            tried=Tried(notes=notes, calls=calls, text=stored["text"]),
            told=Tried(notes=notes[:notes_told], calls=calls[:calls_told]),
        )


NOTHING_KEPT = Kept()


def calls_meta(calls: tuple[PlanCall, ...]) -> JsonObject:
    """What is stored of calls: each, and what they have used together."""
    if not calls:
        return {}
    use = sum((call.use for call in calls), ModelUse())
    return {
        "repairs": sum(call.purpose == "repair" for call in calls),
        "usage": {"tokens": use.tokens, "cost_usd": use.cost_usd},
        "calls": [call.as_json() for call in calls],
    }
