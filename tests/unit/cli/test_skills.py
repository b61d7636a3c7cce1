"""`rayloom tools register-skill`: what it sends of a folder and of a zip, and what it refuses before it sends."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from rayloom.tools.skills.archive import from_zip
from tests.unit.cli.api import FakeApi
from tests.unit.tools.skills.folders import FILES, write, zipped

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]
CALL = "POST /api/v1/tools/register"


def sent(api: FakeApi) -> Any:
    return json.loads(api.sent[-1][1])


@pytest.mark.parametrize("is_zip", [False, True])
def test_a_skill_of_this_machine_is_uploaded(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, tmp_path: Path, is_zip: bool
) -> None:
    source = write(tmp_path / "word-count")
    if is_zip:
        source = tmp_path / "any.zip"
        source.write_bytes(zipped(prefix="word-count/"))
    made = {"name": "skill.word-count", "type": "SKILL", "tools": ["skill.word-count"]}
    api.script[CALL].append(JSONResponse(made, 201))
    assert rayloom("tools", "register-skill", str(source)) == 0
    assert capsys.readouterr().out == "skill.word-count\n"
    body = sent(api)
    files, _ = from_zip(base64.b64decode(body.pop("archive_base64")))
    assert body == {"type": "SKILL", "name": "word-count"}
    assert files == {path: text.encode() for path, text in FILES.items()}


def test_a_skill_can_be_looked_over_only(rayloom: Rayloom, api: FakeApi, capsys: Capture, tmp_path: Path) -> None:
    before = len(api.requests)
    assert rayloom("tools", "register-skill", str(write(tmp_path / "word-count")), "--check") == 0
    assert capsys.readouterr().out == "skill.word-count\n"
    assert rayloom("tools", "register-skill", str(tmp_path / "word-count"), "--check", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "skill.word-count", "registered": False}
    assert len(api.requests) == before


def test_every_fault_is_told_and_nothing_sent(rayloom: Rayloom, api: FakeApi, capsys: Capture, tmp_path: Path) -> None:
    before = len(api.requests)
    bad = write(tmp_path / "bad", {"SKILL.md": "---\nname: Bad\n---\n"})
    assert rayloom("tools", "register-skill", str(bad)) == 1
    said = capsys.readouterr().err
    assert "description: is missing" in said
    assert "name: must consist of lowercase letters" in said
    assert rayloom("tools", "register-skill", str(tmp_path / "nowhere")) == 1
    assert "No such file" in capsys.readouterr().err
    assert len(api.requests) == before
