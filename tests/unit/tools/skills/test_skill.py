"""A folder's files as a Skill, what its tool gives, and its scripts in a sandbox."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pytest

from rayloom.dag.errors import Refused, UserError
from rayloom.tools.call import call_tool, checked, schema_faults
from rayloom.tools.skills.front_matter import InvalidSkill
from rayloom.tools.skills.script import start_of
from rayloom.tools.skills.skill import MAX_FILES, Skill, dumped, loaded, read_skill
from rayloom.tools.skills.tool import activated, level_of, skill_tool
from rayloom.tools.tool import LIGHT, SANDBOXED, Tool
from tests.unit.tools.context import KeptContents, make_context
from tests.unit.tools.skills.folders import FILES, GOOD

ENCODED: Mapping[str, bytes] = {path: text.encode() for path, text in FILES.items()}


def kept(files: Mapping[str, bytes]) -> tuple[Tool, KeptContents, Skill]:
    """The tool of a Skill whose files are kept."""
    contents = KeptContents()
    skill = read_skill(files, folder=None)
    for data in files.values():
        contents.put(data)
    name = f"skill.{skill.about.name}"
    version = contents.put(dumped(skill))
    return skill_tool(name=name, description="d", version=version, level=level_of(skill)), contents, skill


async def call(input: Any, files: Mapping[str, bytes] = ENCODED, **settings: Any) -> Any:
    tool, contents, _ = kept(files)
    return (await call_tool(tool, input, make_context(contents=contents, **settings))).output


def test_a_skill_is_the_same_after_it_was_kept() -> None:
    skill = read_skill(ENCODED, folder="word-count")
    assert loaded(dumped(skill)) == skill
    assert dumped(read_skill(dict(reversed(list(ENCODED.items()))), folder="word-count")) == dumped(skill)
    assert dumped(read_skill({**ENCODED, "x": b""}, folder=None)) != dumped(skill)
    assert [file.path for file in skill.files] == ["SKILL.md", "references/words.md", "scripts/count.py"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no SKILL.md"),
        ({"sub/SKILL.md": GOOD.encode()}, "there is no SKILL.md"),
        ({"skill.md": GOOD.encode()}, "but skill.md: rename it"),
        ({"SKILL.md": b"\xff\xfe"}, "not UTF-8"),
        ({"SKILL.md": GOOD.encode() + b"\0"}, "contains NUL"),
    ],
)
def test_it_needs_its_entry(files: Mapping[str, bytes], said: str) -> None:
    with pytest.raises(InvalidSkill, match=said):
        read_skill(files, folder=None)


def test_its_folder_has_its_name() -> None:
    with pytest.raises(InvalidSkill, match="must equal the name of its folder, 'words', but is 'word-count'"):
        read_skill(ENCODED, folder="words")


def test_who_brings_scripts_needs_the_right_to_execute() -> None:
    tool, _, _ = kept(ENCODED)
    assert (tool.spec.type, tool.spec.permission_level, tool.spec.resources) == ("SKILL", "execute", SANDBOXED)
    texts, _, _ = kept({"SKILL.md": GOOD.encode()})
    assert (texts.spec.permission_level, texts.spec.resources) == ("read", LIGHT)


async def test_its_instructions_come_only_when_it_is_called() -> None:
    tool, contents, skill = kept(ENCODED)
    assert "count.py" not in str(tool.spec)
    assert await call({}) == {
        "instructions": "# Counting\n\nRun `scripts/count.py` with the text on stdin.",
        "files": [{"path": path, "size": len(ENCODED[path])} for path in sorted(ENCODED)],
    }
    assert await activated(contents, tool.spec.version) == skill


async def test_its_files_are_read_one_by_one() -> None:
    assert await call({"read": "references/words.md"}) == {"content": "What a word is.\n"}
    assert await call({"read": "./references//words.md"}) == {"content": "What a word is.\n"}
    for data in (b"\xff", b"a\0b"):
        output = await call({"read": "assets/x"}, {**ENCODED, "assets/x": data})
        assert output == {"base64": base64.b64encode(data).decode()}
    with pytest.raises(UserError, match=r"/read: the Skill has no file 'references/word.md'; did you mean"):
        await call({"read": "references/word.md"})
    with pytest.raises(UserError) as caught:
        await call({"read": "../../etc/passwd"})
    assert caught.value.code == "PATH_INVALID"
    with pytest.raises(Refused) as refused:
        await call({"read": "references/words.md"}, files_max_bytes=3)
    assert refused.value.code == "FILE_TOO_LARGE"


@pytest.mark.parametrize(
    "input",
    [{}, {"read": "a"}, {"script": "a"}, {"script": "a", "args": ["b"], "stdin": "", "files": {}, "limits": {}}],
)
def test_inputs_that_make_sense_fit_the_schema(input: dict[str, Any]) -> None:
    assert checked(kept(ENCODED)[0], input) == input


@pytest.mark.parametrize(
    "input", [{"read": "a", "script": "b"}, {"args": ["b"]}, {"read": "a", "args": []}, {"read": None}, {"stdin": "x"}]
)
async def test_others_are_refused_by_the_schema_and_by_the_model(input: dict[str, Any]) -> None:
    tool, contents, _ = kept(ENCODED)
    assert "give nothing for the instructions" in schema_faults(tool.spec.input_schema, input, of="x")[0]
    with pytest.raises(UserError, match="give nothing for the instructions"):
        await tool.run(input, make_context(contents=contents))


PRINTS = b"import sys\nprint(sys.argv, sys.stdin.read(), open('references/words.md').read())\n"
SCRIPTS: Mapping[str, bytes] = {
    **ENCODED,
    "scripts/show.py": PRINTS,
    "scripts/import.py": b"import beside\nbeside.hello()\n",
    "scripts/beside.py": b"def hello():\n    print('hello')\n",
    "scripts/run.sh": b'printf "%s|" "$0" "$@"; cat\n',
    "scripts/bash.sh": b"#!/bin/bash\na=(1 2); echo ${#a[@]}\n",
    "scripts/env": b"#!/usr/bin/env -S python3 -u\nprint('by its first line')\n",
    "scripts/makes.py": b"open('made.txt', 'w').write('made')\nraise SystemExit(3)\n",
    "scripts/data.bin": b"\0\1",
}


@pytest.mark.parametrize(
    ("input", "stdout"),
    [
        ({"script": "scripts/count.py", "stdin": "a b c", "args": ["x y", "'$HOME'"]}, "3 x y '$HOME'\n"),
        ({"script": "scripts/show.py", "stdin": "in"}, "['scripts/show.py'] in What a word is.\n\n"),
        ({"script": "scripts/import.py"}, "hello\n"),
        ({"script": "scripts/run.sh", "args": ["a b", "$(id)", ""], "stdin": "in"}, "scripts/run.sh|a b|$(id)||in"),
        ({"script": "scripts/bash.sh"}, "2\n"),
        ({"script": "scripts/env"}, "by its first line\n"),
    ],
)
async def test_scripts_run_in_the_folder(input: dict[str, Any], stdout: str) -> None:
    output = await call(input, SCRIPTS)
    assert (output["stdout"], output["stderr"], output["exit_code"]) == (stdout, "", 0)
    assert output["files"] == {}


async def test_what_a_script_makes_comes_back_without_the_skill() -> None:
    output = await call({"script": "scripts/makes.py", "files": {"mine.txt": "mine"}}, SCRIPTS)
    assert output["exit_code"] == 3
    assert list(output["files"]) == ["made.txt"]


async def test_the_largest_skill_runs_its_scripts() -> None:
    room = MAX_FILES - len(ENCODED)
    output = await call({"script": "scripts/count.py"}, {**ENCODED, **{f"assets/{at}": b"x" for at in range(room)}})
    assert (output["stdout"], output["files"]) == ("0\n", {})


@pytest.mark.parametrize(
    ("input", "code"),
    [
        ({"script": "scripts/data.bin"}, "SCRIPT_UNSUPPORTED"),
        ({"script": "scripts/none.py"}, "FILE_NOT_FOUND"),
        ({"script": "../x.py"}, "PATH_INVALID"),
        ({"script": "scripts/count.py", "files": {"SKILL.md": "mine"}}, "PATH_INVALID"),
        ({"script": "scripts/count.py", "files": {"scripts": "mine"}}, "PATH_INVALID"),
        ({"script": "scripts/count.py", "args": ["a\0b"]}, "INPUT_INVALID"),
    ],
)
async def test_what_can_not_be_run_is_said(input: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        await call(input, SCRIPTS)
    assert caught.value.code == code


async def test_a_skill_without_scripts_runs_nothing() -> None:
    with pytest.raises(UserError, match="has no scripts/"):
        await call({"script": "x.py"}, {"SKILL.md": GOOD.encode(), "x.py": b""})


@pytest.mark.parametrize(
    ("path", "data", "source"),
    [
        ("a b.sh", b"", "exec sh 'a b.sh'\n"),
        ("a.bash", b"", "exec bash a.bash\n"),
        ("a.js", b"", "exec node a.js\n"),
        ("a", b"#!/usr/bin/perl -w\n", "exec perl a\n"),
        ("a.sh", b"#! /usr/bin/env bash\n", "exec bash a.sh\n"),
        ("a.sh", b"#!/bin/sh;rm\n", "exec sh a.sh\n"),
    ],
)
def test_the_first_line_counts_before_the_name(path: str, data: bytes, source: str) -> None:
    assert start_of(path, data, []).source == source
