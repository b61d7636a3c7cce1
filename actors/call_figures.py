"""What calls of models came to since the token controller began, for monitoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rayloom.dag.amount import Amount
from rayloom.dag.model import Denied, ModelUse
from rayloom.dag.token_port import Level, Share, TokenFigures, Used

SHARES_SHOWN: Final = 200


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


class CallFigures:
    """See the module. ``warn_share``: from which share on a limit is told to be nearly used up."""

    def __init__(self, *, warn_share: float) -> None:
        self._warn_share = warn_share
        self._used: dict[tuple[str, str], _Sum] = {}
        self._denials: Counter[tuple[Level, str]] = Counter()

    def denied(self, denied: Denied) -> None:
        """A call was denied."""
        self._denials[denied.level, denied.limit] += 1

    def used(self, model: str, purpose: str, use: ModelUse) -> None:
        """A call has used so much."""
        total = self._used.setdefault((model, purpose), _Sum())
        total.calls += 1
        total.tokens_in += use.tokens_in
        total.tokens_out += use.tokens_out
        total.cost_usd += use.cost_usd

    def told(self, counted: Iterable[Amount], shares: Iterable[Share]) -> TokenFigures:
        """All of it, with what is counted of calls that are under way, and the fullest limits."""
        reserved = list(counted)
        total = sum(reserved, Amount())
        return TokenFigures(
            used=tuple(
                Used(
                    model=model,
                    purpose=purpose,
                    calls=each.calls,
                    tokens_in=each.tokens_in,
                    tokens_out=each.tokens_out,
                    cost_usd=each.cost_usd,
                )
                for (model, purpose), each in self._used.items()
            ),
            denied=tuple((level, limit, count) for (level, limit), count in self._denials.items()),
            reserved_calls=len(reserved),
            reserved_tokens=total.tokens,
            reserved_cost_usd=total.cost_usd,
            shares=tuple(sorted(shares, key=lambda each: -each.share)[:SHARES_SHOWN]),
            warn_share=self._warn_share,
        )
