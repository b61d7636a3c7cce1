"""Which tools a task may use."""

from __future__ import annotations

import pytest

from rayloom.dag.tool_scope import ALL_TOOLS, LEVELS, ToolScope
from rayloom.dag.values import Json


@pytest.mark.parametrize("rules", [None, {}, [], {"allow": None, "deny": 7}])
def test_without_rules_all_may_be_used(rules: Json) -> None:
    assert ToolScope.of(rules) == ALL_TOOLS
    assert ALL_TOOLS.takes("core.noop")


def test_deny_wins() -> None:
    scope = ToolScope.of({"allow": ["core.*", "http.request"], "deny": ["core.f*"]})
    names = ("core.noop", "core.fail", "http.request", "http.fetch_text")
    assert [scope.takes(name) for name in names] == [True, False, True, False]


def test_levels_are_an_order() -> None:
    scope = ToolScope.of({"max_level": "write"})
    assert [scope.admits(level) for level in LEVELS] == [True, True, False, False]
    assert [ALL_TOOLS.admits(level) for level in LEVELS] == [True] * 4


def test_a_scope_within_another_takes_what_both_do() -> None:
    outer = ToolScope(allow=("core.*",), max_level="read")
    scope = ToolScope(deny=("core.fail",), max_level="write", within=outer)
    assert [scope.takes(name) for name in ("core.noop", "core.fail", "http.request")] == [True, False, False]
    assert (scope.admits("read"), scope.admits("write")) == (True, False)


@pytest.mark.parametrize(
    "scope",
    [
        ALL_TOOLS,
        ToolScope(allow=("a", "b"), deny=("c",), max_level="execute"),
        ToolScope(allow=(), within=ToolScope(deny=("c",), max_level="read")),
    ],
)
def test_a_scope_is_read_as_it_was_written(scope: ToolScope) -> None:
    assert ToolScope.of(scope.as_json()) == scope
