"""What the token controller counts, as Prometheus text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from rayloom.dag.token_port import TokenFigures


def token_text(figures: TokenFigures) -> bytes:
    """The text of what it counts. Its counters begin anew with each of its lives."""
    own = CollectorRegistry()
    of_call = ("model", "purpose")
    calls = Counter("rayloom_model_calls", "Calls of models that were settled.", of_call, registry=own)
    tokens = Counter("rayloom_model_tokens", "Tokens that models used.", (*of_call, "direction"), registry=own)
    cost = Counter("rayloom_model_cost_usd", "What calls of models cost, in US dollars.", of_call, registry=own)
    for used in figures.used:
        calls.labels(used.model, used.purpose).inc(used.calls)
        tokens.labels(used.model, used.purpose, "in").inc(used.tokens_in)
        tokens.labels(used.model, used.purpose, "out").inc(used.tokens_out)
        cost.labels(used.model, used.purpose).inc(used.cost_usd)
    denied = Counter("rayloom_reservations_denied", "Calls of models denied.", ("level", "limit"), registry=own)
    for level, limit, count in figures.denied:
        denied.labels(level, limit).inc(count)
    Gauge("rayloom_reserved_calls", "Calls of models that are reserved.", registry=own).set(figures.reserved_calls)
    Gauge("rayloom_reserved_tokens", "Tokens that are reserved.", registry=own).set(figures.reserved_tokens)
    Gauge("rayloom_reserved_cost_usd", "US dollars that are reserved.", registry=own).set(figures.reserved_cost_usd)
    fullest: dict[tuple[str, str], float] = {}
    for each in figures.shares:
        fullest[each.level, each.limit] = max(each.share, fullest.get((each.level, each.limit), 0.0))
    highest = Gauge(
        "rayloom_limit_share_max", "The largest share of a limit that is used up.", ("level", "limit"), registry=own
    )
    for labels, value in fullest.items():
        highest.labels(*labels).set(value)
    return _lines(own)


def share_text(figures: TokenFigures) -> bytes:
    """Name whose limits are used up, and how far: for admins only."""
    own = CollectorRegistry()
    share = Gauge("rayloom_limit_share", "How much of a limit is used up.", ("level", "id", "limit"), registry=own)
    for each in figures.shares:
        share.labels(each.level, each.id, each.limit).set(each.share)
    return _lines(own)


def _lines(registry: CollectorRegistry) -> bytes:
    # `_created` lines say when this text was made, which is news to nobody.
    lines = [line for line in generate_latest(registry).splitlines(keepends=True) if b"_created" not in line]
    return b"".join(lines)
