"""What the documents point at exists: files, settings, make targets, routes of the first request."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from rayloom.cluster.settings import Settings
from rayloom.dag.errors import InvalidPlan
from rayloom.dag.kinds import UNSUPPORTED
from rayloom.dag.plan import Budget, Resources, Subtask, parse_plan
from rayloom.dag.references import SECRET
from rayloom.dag.tool_view import ToolView
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.serve.intake import Submission
from rayloom.serve.problems import problem_of
from rayloom.tools.builtin.catalogue import BUILTINS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
VARIABLES = {f"RAYLOOM_{name.upper()}" for name in Settings.model_fields}
# What Kubernetes sets for a service called rayloom.
SERVICE_LINKS = {"RAYLOOM_SERVICE_HOST", "RAYLOOM_PORT_8000_TCP"}
# Read by the tests, not by rayloom.
TEST_VARIABLES = {"RAYLOOM_TEST_DATABASE_URL", "RAYLOOM_TEST_REDIS_URL", "RAYLOOM_TEST_DOCKER_ADDRESS"}


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.param
    return chosen


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: small letters, hyphens for blanks, a number for a repetition."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _without_code(page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def _without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text()):
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        if "://" not in target and (not there.exists() or (anchor and anchor not in _anchors(there))):
            broken.append(target)
    assert not broken


def test_settings_exist(page: Path) -> None:
    assert _named(page.read_text()) <= VARIABLES | TEST_VARIABLES | SERVICE_LINKS


def test_every_setting_is_told_of() -> None:
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    told = {name for each in pages for name in _named(each.read_text())}
    assert sorted(VARIABLES - told) == []


def _named(text: str) -> set[str]:
    return set(re.findall(r"\bRAYLOOM_[A-Z][A-Z0-9_]*[A-Z0-9]\b", text))


def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_the_readme_names_what_is_refused_as_not_built_and_nothing_that_is() -> None:
    absent = (ROOT / "README.md").read_text().partition("## Limits\n")[2]
    points = [each.replace("\n ", "") for each in re.findall(r"^- .+(?:\n  .+)*", absent, re.MULTILINE)]
    unbuilt = {store for store in get_args(Settings.model_fields["log_store"].annotation) if store != "postgres"}
    unbuilt |= {f"`{field.rpartition('/')[2]}:" for field, _, _ in UNSUPPORTED} | {SECRET}
    assert [word for word in unbuilt if not any(word in point for point in points)] == []
    assert not any(built in point for point in points for built in ("REASONING", "CODE_GEN", "budget"))


def test_the_plan_that_is_shown_is_accepted_and_the_refusal_is_what_it_is() -> None:
    text = (ROOT / "docs" / "plans.md").read_text()
    accepted, refused, problem = (json.loads(each) for each in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    assert set(accepted) <= set(Submission.model_fields)
    verified = _verified(accepted["plan"])
    assert verified.sinks == ("tell",)
    with pytest.raises(InvalidPlan) as caught:
        _verified(refused["plan"])
    found = problem_of(caught.value)
    assert found is not None
    assert json.loads(bytes(found.response("/api/v1/tasks").body)) == problem


def test_every_built_in_tool_is_told_of_with_its_level() -> None:
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|.*\| `([a-z]+)` \|$", (ROOT / "docs" / "tools.md").read_text(), re.M)
    assert dict(rows) == {name: tool.spec.permission_level for name, tool in BUILTINS.items()}


def test_the_page_on_plans_names_every_field() -> None:
    text = (ROOT / "docs" / "plans.md").read_text()
    for model in (Submission, Subtask, Resources, Budget):
        assert [name for name in model.model_fields if f"`{name}`" not in text and f'"{name}"' not in text] == []


def _verified(plan: object) -> VerifiedPlan:
    views = {
        name: ToolView(name=name, schema=tool.spec.input_schema, resources=tool.spec.resources)
        for name, tool in BUILTINS.items()
    }
    return verify(parse_plan(plan), tools=views, nodes=())


def test_a_decision_says_context_decision_and_consequences() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    assert [int(each.name[:4]) for each in decisions] == list(range(1, len(decisions) + 1))
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    for each in decisions:
        headings = re.findall(r"^## (.+)$", each.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], each.name
        assert each.name in index
