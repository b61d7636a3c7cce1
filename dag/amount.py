"""Tokens and money together, as whole numbers: sums of them are exact, in whatever order they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NANO: Final = 1_000_000_000
"""Money is counted in billionths of a dollar: a token of the cheapest models costs some twenty of them."""

MAX_COST_USD: Final = 1e12
"""No limit is above it: far more could not be counted in billionths any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """So many tokens, in and out together, and so many billionths of a US dollar."""

    tokens: int = 0
    nano_usd: int = 0

    @classmethod
    def of(cls, tokens: int, cost_usd: float) -> Amount:
        """The amount of so many tokens that cost so much; less than nothing is nothing."""
        return cls(tokens=max(tokens, 0), nano_usd=max(nano(cost_usd), 0))

    @property
    def cost_usd(self) -> float:
        """The money, in dollars."""
        return self.nano_usd / NANO

    def __add__(self, other: Amount) -> Amount:
        return Amount(tokens=self.tokens + other.tokens, nano_usd=self.nano_usd + other.nano_usd)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(tokens=self.tokens - other.tokens, nano_usd=self.nano_usd - other.nano_usd)


NOTHING: Final = Amount()


def nano(cost_usd: float) -> int:
    """So many dollars in billionths of one; what is above every limit is taken for that."""
    return round(min(cost_usd, MAX_COST_USD) * NANO)
