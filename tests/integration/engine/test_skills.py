"""A Skill in a real rayloom: read, and its script run in the sandbox, by a task; after a restart, too."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.runs import Run, step
from tests.unit.tools.skills.folders import FILES, GOOD, write, zipped

NAME = "skill.word-count"


def used(instance: Instance, client: Client) -> None:
    """All three uses in one task: the script counts the words of the reference."""
    script: JsonObject = {"script": "scripts/count.py", "stdin": {"$ref": "read.output.content"}, "args": ["--", "a b"]}
    plan = [
        step("know", NAME, {}),
        step("read", NAME, {"read": "references/words.md"}, "know"),
        step("count", NAME, script),
    ]
    run = Run.submit(instance, client, plan)
    task = run.completed()
    outputs = {subtask["id"]: subtask["output"] for subtask in task["subtasks"]}
    assert outputs["know"]["instructions"].startswith("# Counting")
    assert [file["path"] for file in outputs["know"]["files"]] == sorted(FILES)
    assert outputs["read"] == {"content": "What a word is.\n"}
    assert (outputs["count"]["stdout"], outputs["count"]["exit_code"]) == ("4 -- a b\n", 0)
    run.expect_sound()


def invoked(client: Client, name: str, input_: dict[str, Any]) -> Any:
    return client.post(f"/api/v1/tools/{name}/invoke", {"input": input_})


def audited(client: Client, tool: str) -> Any:
    return client.get("/api/v1/audit", {"tool": tool})["items"]


def test_skills_from_folder_and_zip_are_used_and_outlive_a_restart(private_instance: Instance) -> None:
    instance = private_instance
    write(instance.home / "skills" / "word-count")
    instance.rayloom("tools", "register", "word-count", "--type", "SKILL", "--path", "word-count")
    other: dict[str, str | bytes] = {"SKILL.md": GOOD.replace("word-count", "plain"), "assets/x": b"\xff"}
    body = {"type": "SKILL", "name": "plain", "archive_base64": base64.b64encode(zipped(other)).decode()}
    with instance.client() as client:
        assert client.post("/api/v1/tools/register", body)["tools"] == ["skill.plain"]
        used(instance, client)
        assert invoked(client, "skill.plain", {"read": "assets/x"})["output"] == {"base64": "/w=="}
        [call] = audited(client, "skill.plain")
        digest = hashlib.sha256(b'{"read":"assets/x"}').hexdigest()
        assert (call["user"], call["called"], call["input_sha256"]) == ("admin", True, digest)
        assert call["version"] == client.get("/api/v1/tools/skill.plain")["version"]
        assert call["key_id"] in str(client.get("/api/v1/keys"))
        error = invoked(client, "skill.plain", {"read": "assets/y"})["error"]
        assert (error["code"], error["class"]) == ("FILE_NOT_FOUND", "user")
    # The folder was only where it came from.
    (instance.home / "skills" / "word-count" / "SKILL.md").unlink()
    instance.stop()
    instance.start()
    with instance.client() as client:
        used(instance, client)
        client.delete(f"/api/v1/tools/{NAME}")
        with instance.http() as http:
            plan = {"subtasks": [step("know", NAME, {})]}
            refused = http.post("/tasks", json={"plan": plan})
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["pointer"] == "/plan/subtasks/0/tool"
    write(instance.folder / "word-count")
    assert instance.rayloom("tools", "register-skill", str(instance.folder / "word-count")) == f"{NAME}\n"
    with instance.client() as client:
        used(instance, client)
