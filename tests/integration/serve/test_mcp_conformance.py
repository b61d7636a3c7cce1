"""The official conformance suite for MCP servers, unchanged from npm, against a running API."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.integration.conformance import installed, needs_npm, ran
from tests.integration.serve.keyed import keyed
from tests.integration.serve.world import World

EXPECTED: Final = {
    "wants the suite's own tool, resource or prompt": (
        "tools-call-simple-text", "tools-call-image", "tools-call-audio", "tools-call-embedded-resource",
        "tools-call-mixed-content", "tools-call-with-logging", "tools-call-error", "tools-call-with-progress",
        "tools-call-sampling", "tools-call-elicitation", "json-schema-2020-12", "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
    ),
    "a capability that this server does not declare": (
        "logging-set-level", "completion-complete", "resources-list", "resources-read-text", "resources-read-binary",
        "resources-templates-read", "resources-subscribe", "resources-unsubscribe", "prompts-list",
        "prompts-get-simple", "prompts-get-with-args", "prompts-get-embedded-resource", "prompts-get-with-image",
    ),
    "wants a session, or streams that are taken up again": ("server-sse-polling", "server-sse-multiple-streams"),
}  # fmt: skip
"""What fails, and why; docs/mcp-server.md says the same."""


@pytest.mark.timeout(600)
@needs_npm
async def test_the_conformance_suite_fails_where_it_must_and_nowhere_else(world: World, tmp_path: Path) -> None:
    command = await installed(tmp_path)
    expected = tmp_path / "expected.yml"
    names = sorted(name for names in EXPECTED.values() for name in names)
    expected.write_text("server:\n" + "".join(f"  - {name}\n" for name in names))
    me = await world.user()
    async with keyed(world.url, me.key) as url:
        code, out = await ran(
            *command, "server", "--url", f"{url}/mcp", "--suite", "all",
            "--expected-failures", str(expected), "--output-dir", str(tmp_path / "results"), within_s=240,
        )  # fmt: skip
    # It is 1 as well where something that was expected to fail has passed.
    assert code == 0, out
    for name in ("server-initialize", "ping", "tools-list", "dns-rebinding-protection"):
        assert f"✓ {name}: " in out, out
