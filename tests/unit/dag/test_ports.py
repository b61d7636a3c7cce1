"""What crosses between the rooms."""

from __future__ import annotations

from rayloom.dag.breaker import BreakerView
from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.tool_view import ToolView
from tests.fakes.tools import tool


def test_a_snapshot_shows_of_a_tool_what_verification_needs() -> None:
    noop = RegisteredTool(
        name="core.noop",
        type="NATIVE",
        description="Does nothing.",
        version="1",
        schema={"type": "object"},
        output_schema=None,
        endpoint="builtin:core.noop",
        config={},
        resources={"CPU": 0.25},
        lane="shared",
        permission_level="read",
        is_active=False,
    )
    assert ToolSnapshot(version=3, tools={noop.name: noop}).views() == {
        "core.noop": ToolView(
            name="core.noop",
            schema={"type": "object"},
            resources={"CPU": 0.25},
            permission_level="read",
            is_active=False,
            description="Does nothing.",
            lane="shared",
        )
    }


def test_an_admins_word_on_a_breaker_goes_before_its_authors() -> None:
    assert tool("a").has_breaker
    assert not tool("a", breaker_default=False).has_breaker
    assert tool("a", breaker_default=False, breaker=True).has_breaker
    assert tool("a", alternative=7).alternative is None


def test_the_alternatives_that_work_stand_in() -> None:
    shut = BreakerView(state="open", retry_at=None)
    chain = (tool("a", alternative="b"), tool("b", alternative="c"), tool("c", alternative="a"), tool("d"))

    def stand_ins(name: str, *open_: str, tools: tuple[RegisteredTool, ...] = chain) -> str:
        known = {each.name: each for each in tools}
        return "".join(ToolSnapshot(version=1, tools=known, breakers=dict.fromkeys(open_, shut)).stand_ins(name))

    assert stand_ins("a", "a") == "bc"
    assert stand_ins("a", "a", "b") == "c"
    assert stand_ins("a", "a", "b", "c") == ""
    assert (stand_ins("d", "d"), stand_ins("unknown")) == ("", "")
    assert stand_ins("a", "a", tools=(tool("a", alternative="b"), tool("b", is_active=False))) == ""
    assert stand_ins("a", "a", tools=(tool("a", alternative="gone"),)) == ""


def test_whose_breaker_is_not_closed() -> None:
    shut = BreakerView(state="open", retry_at=None)
    snapshot = ToolSnapshot(version=1, tools={"a": tool("a"), "b": tool("b")}, breakers={"a": shut})
    assert (snapshot.breaker_of("a"), snapshot.breaker_of("b"), snapshot.breaker_of("c")) == (shut, None, None)
