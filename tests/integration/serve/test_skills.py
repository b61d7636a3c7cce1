"""Skills over HTTP: taken in from folders and zips, shown, refused with every fault."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from rayloom.db.engine import driver
from rayloom.serve.settings import ServeSettings
from rayloom.tools.skills.skill import loaded
from tests.integration.serve.world import Person, World
from tests.unit.tools.skills.folders import FILES, GOOD, write, zipped


@pytest.fixture
def settings(settings: ServeSettings, tmp_path: Path) -> ServeSettings:
    write(tmp_path / "skills" / "word-count")
    return settings.model_copy(update={"skills_dir": tmp_path / "skills"})


@pytest.fixture
async def admin(world: World) -> Person:
    return await world.user("admin")


async def register(admin: Person, **fields: Any) -> Any:
    body = {"type": "SKILL", "name": "word-count", **fields}
    return await admin.http.post("/api/v1/tools/register", json=body)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def faults(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(fault["pointer"], fault["message"]) for fault in answer.json()["errors"]]


@pytest.mark.parametrize("source", ["path", "zip", "zip of the folder"])
async def test_a_skill_is_registered_shown_switched_and_removed(world: World, admin: Person, source: str) -> None:
    prefix = "word-count/" if source == "zip of the folder" else ""
    given = {"path": "word-count"} if source == "path" else {"archive_base64": encoded(zipped(prefix=prefix))}
    made = await register(admin, **given)
    assert made.status_code == 201, made.text
    assert made.json() == {"name": "skill.word-count", "type": "SKILL", "tools": ["skill.word-count"]}
    assert made.headers["Location"] == "/api/v1/tools/skill.word-count"
    me = await world.user()
    [item] = [item for item in (await me.get("/tools"))["items"] if item["type"] == "SKILL"]
    assert item["description"] == "Counts words. Use when somebody asks how long a text is."
    assert (item["permission_level"], item["health"], item["is_active"]) == ("execute", "ok", True)
    assert "count.py" not in str(item)
    shown = await me.get("/tools/skill.word-count")
    assert shown.pop("skill") == {"license": None, "compatibility": None, "metadata": {}, "allowed_tools": []}
    assert shown == item
    # What every node runs is what the blob store has under the version.
    async with driver(world.engine) as connection:
        rows = await connection.fetch("SELECT sha256, data FROM blobs")
    kept = {row["sha256"]: row["data"] for row in rows}
    skill = loaded(kept[shown["version"]])
    assert {file.path: kept[file.sha256].decode() for file in skill.files} == FILES
    assert (await register(admin, **given)).status_code == 409
    off = await admin.http.patch("/api/v1/tools/skill.word-count", json={"is_active": False})
    assert off.json()["is_active"] is False
    assert (await admin.http.delete("/api/v1/tools/skill.word-count")).status_code == 204
    assert (await register(admin, **given)).status_code == 201


async def test_what_it_says_of_itself_is_kept(admin: Person) -> None:
    said = "license: MIT\ncompatibility: Python 3.11+\nmetadata: {version: 1.0}\nallowed-tools: Bash(git add:*) Read\n"
    text = GOOD.replace("description:", said + "description:", 1)
    assert (await register(admin, archive_base64=encoded(zipped({"SKILL.md": text})))).status_code == 201
    shown = await admin.get("/tools/skill.word-count")
    assert shown["skill"] == {
        "license": "MIT",
        "compatibility": "Python 3.11+",
        "metadata": {"version": "1.0"},
        "allowed_tools": ["Bash(git add:*)", "Read"],
    }
    assert shown["permission_level"] == "read"


async def test_every_fault_is_told(admin: Person, tmp_path: Path) -> None:
    bad = {"SKILL.md": "---\nname: Bad--Name\nversion: 1\n---\n"}
    write(tmp_path / "skills" / "bad", bad)
    for given, pointer in (({"path": "bad"}, "/path"), ({"archive_base64": encoded(zipped(bad))}, "/archive_base64")):
        told = faults(await register(admin, **given))
        assert {place for place, _ in told} == {pointer}
        assert [message.partition(":")[0] for _, message in told] == ["version", "description", "name", "name"]


@pytest.mark.parametrize(
    ("fields", "pointer", "said"),
    [
        ({}, "", "either path or archive_base64"),
        ({"path": "word-count", "archive_base64": "eA=="}, "", "either path or archive_base64"),
        ({"path": "nowhere"}, "/path", "no such folder"),
        ({"path": "../word-count"}, "/path", "without '..'"),
        ({"path": "/etc"}, "/path", "must be a folder below"),
        ({"path": "link"}, "/path", "link leads to it"),
        ({"archive_base64": "no base64!"}, "/archive_base64", "not base64"),
        ({"archive_base64": "eA=="}, "/archive_base64", "not a zip file"),
        ({"archive_base64": encoded(zipped(prefix="other/"))}, "/archive_base64", "name of its folder, 'other'"),
        ({"archive_base64": encoded(zipped({"README.md": ""}))}, "/archive_base64", "there is no SKILL.md"),
        ({"path": "word-count", "name": "words"}, "/name", "must equal the name"),
        ({"path": "word-count", "name": "skill.word-count"}, "/name", "must equal the name"),
        ({"path": "word-count", "endpoint": "x"}, "/endpoint", "is not a field here"),
    ],
)
async def test_what_is_refused(admin: Person, tmp_path: Path, fields: dict[str, Any], pointer: str, said: str) -> None:
    (tmp_path / "skills" / "link").symlink_to(write(tmp_path / "other"))
    [(place, message)] = faults(await register(admin, **fields))
    assert place == pointer
    assert said in message


async def test_only_an_admin_registers(world: World) -> None:
    assert (await register(await world.user(), path="word-count")).status_code == 403


async def test_a_large_archive_is_too_large_as_a_body(admin: Person) -> None:
    assert (await register(admin, archive_base64="A" * 2_000_000)).status_code == 413
