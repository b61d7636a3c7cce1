"""From a registered tool to the one that is run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayloom.actors.described import describe
from rayloom.actors.resolve import resolve
from rayloom.dag.errors import RayloomError
from rayloom.dag.ports import RegisteredTool
from rayloom.tools.builtin.catalogue import BUILTINS

ECHO = describe("core.echo", "builtin:core.echo", BUILTINS["core.echo"])


def test_every_built_in_tool_is_found() -> None:
    for name, tool in BUILTINS.items():
        assert resolve(describe(name, f"builtin:{name}", tool)) is tool


def test_a_tool_is_found_by_its_endpoint_whatever_its_name() -> None:
    assert resolve(replace(ECHO, name="acme.echo")) is BUILTINS["core.echo"]


@pytest.mark.parametrize(
    ("tool", "code", "error_class"),
    [
        (replace(ECHO, is_active=False), "TOOL_INACTIVE", "refused"),
        (replace(ECHO, type="MCP"), "TOOL_UNSUPPORTED", "refused"),
        (replace(ECHO, endpoint="builtin:core.gone"), "TOOL_UNKNOWN", "user"),
        (replace(ECHO, endpoint="not-installed"), "ENDPOINT_UNKNOWN", "user"),
    ],
)
def test_what_can_not_be_found(tool: RegisteredTool, code: str, error_class: str) -> None:
    with pytest.raises(RayloomError) as refused:
        resolve(tool)
    assert (refused.value.code, refused.value.error_class) == (code, error_class)


def test_a_skill_is_a_tool_of_its_version() -> None:
    skill = replace(ECHO, name="skill.x", type="SKILL", version="f00d", permission_level="execute")
    found = resolve(skill)
    assert (found.spec.name, found.spec.type, found.spec.version) == ("skill.x", "SKILL", "f00d")
    assert resolve(skill) is found
    assert resolve(replace(skill, version="beef")) is not found
