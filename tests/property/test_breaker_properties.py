"""Whatever happens to a breaker: it never lets two probes out at once, and it always comes to rest closed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayloom.dag.breaker import SLOTS, Breaker, BreakerPolicy, Call

POLICY = BreakerPolicy(window_s=60, cooldown_s=5, cooldown_max_s=300, probe_s=60)
NAMES = st.sampled_from(["a", "b", "c"])
EVENTS = st.one_of(
    st.tuples(st.just("told"), NAMES, st.sampled_from([True, False, None])),
    st.tuples(st.just("probed"), NAMES, st.none()),
    st.tuples(st.sampled_from(["close", "open"]), NAMES, st.none()),
)
STEPS = st.lists(st.tuples(EVENTS, st.floats(min_value=0, max_value=400)), max_size=120)


def _after(breaker: Breaker, event: tuple[str, str, bool | None], now: float) -> Breaker:
    what, by, succeeded = event
    match what:
        case "told":
            return breaker.told(Call(key="t", by=by, succeeded=succeeded), now=now, policy=POLICY)
        case "probed":
            return breaker.probed(by, now=now, policy=POLICY) or breaker
        case "close":
            return breaker.closed(now)
    return breaker.opened_by_hand()


@given(STEPS)
def test_every_step_keeps_its_promises(steps: list[tuple[tuple[str, str, bool | None], float]]) -> None:
    breaker, now = Breaker(), 1e9
    for event, passed_s in steps:
        now += passed_s
        was, breaker = breaker, _after(breaker, event, now)
        assert len(breaker.slots) <= SLOTS
        assert (breaker.state == "closed") == (breaker.view() is None)
        assert breaker.state == "closed" or not breaker.slots
        assert breaker.probe is None or breaker.state == "half_open"
        if breaker.state == "open" and breaker.retry_at is not None:
            assert breaker.retry_at - now <= POLICY.cooldown_max_s
        if breaker.probe is not None and was.probe is not None and breaker.probe != was.probe:
            # Another probe only once the one before it was silent for too long.
            assert was.retry_at is not None
            assert now >= was.retry_at
        if (was.state, breaker.state) == ("half_open", "closed"):
            assert event[0] == "close" or (event[1] == was.probe and event[2])
        if (was.state, breaker.state) == ("open", "half_open"):
            assert was.retry_at is not None
            assert now >= was.retry_at


@given(STEPS)
def test_once_failures_stop_it_closes(steps: list[tuple[tuple[str, str, bool | None], float]]) -> None:
    breaker, now = Breaker(), 1e9
    for event, passed_s in steps:
        if event[0] != "open":
            now += passed_s
            breaker = _after(breaker, event, now)
    now = max(now, breaker.retry_at or now)
    probing = breaker.probed("last", now=now, policy=POLICY)
    assert probing is not None
    assert _after(probing, ("told", "last", True), now).state == "closed"


@given(st.lists(st.booleans(), max_size=60))
def test_it_opens_exactly_when_it_should(results: list[bool]) -> None:
    breaker = Breaker()
    for count, succeeded in enumerate(results, start=1):
        breaker = _after(breaker, ("told", "a", succeeded), 1e9)
        so_far = results[:count]
        share = count >= 10 and so_far.count(False) * 2 >= count
        expected = not succeeded and (share or (count >= 5 and not any(so_far[-5:])))
        assert (breaker.state == "open") == expected
        if expected:
            return
