"""files.*, and the rule of paths that the sandbox shares."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from rayloom.dag.errors import Refused, UserError
from rayloom.dag.input_check import InputCheck
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.paths import workspace_path
from rayloom.tools.tool import ToolContext
from tests.unit.tools.context import make_context


async def run(context: ToolContext, name: str, **input: Json) -> Any:
    return (await call_tool(BUILTINS[f"files.{name}"], dict(input), context)).output


async def test_text_comes_back_as_text() -> None:
    context = make_context()
    assert await run(context, "write", path="a/./b.txt", content="grüß") == {"path": "a/b.txt", "size": 6}
    assert await run(context, "read", path="a/b.txt") == {"content": "grüß"}


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a\0b"])
async def test_bytes_come_back_as_base64(data: bytes) -> None:
    context = make_context()
    encoded = base64.b64encode(data).decode()
    await run(context, "write", path="b", base64=encoded)
    assert await run(context, "read", path="b") == {"base64": encoded}


async def test_the_list_names_every_file() -> None:
    context = make_context()
    await run(context, "write", path="b", content="x")
    await run(context, "write", path="a", content="")
    files = (await run(context, "list"))["files"]
    assert [(file["path"], file["size"]) for file in files] == [("a", 0), ("b", 1)]


async def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError) as error:
        await run(make_context(), "read", path="nothing")
    assert error.value.code == "FILE_NOT_FOUND"


async def test_a_file_that_is_too_large() -> None:
    with pytest.raises(Refused) as error:
        await run(make_context(files_max_bytes=3), "write", path="a", content="four")
    assert error.value.code == "FILE_TOO_LARGE"


@pytest.mark.parametrize(
    "input", [{}, {"content": "a", "base64": "YQ=="}, {"base64": "not base64!"}, {"content": "\ud800"}]
)
async def test_contents_that_are_none(input: dict[str, Json]) -> None:
    with pytest.raises(UserError):
        await run(make_context(), "write", path="a", **input)


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "..", "../x", "a/../b", "a/..", "", ".", "./", "a/", "~/x"),
        *("a\0b", "a\nb", "a\\b", "x" * 513, "x" * 256, "/".join("a" * 40), "\ud800"),
    ],
)
def test_paths_that_leave_or_mislead(path: str) -> None:
    with pytest.raises(UserError) as error:
        workspace_path(path)
    assert error.value.code == "PATH_INVALID"


@pytest.mark.parametrize(
    ("path", "plain"), [("a", "a"), ("./a//b/./c", "a/b/c"), ("..a/b..", "..a/b.."), ("u\u0308", "ü"), ("a b", "a b")]
)
def test_paths_have_one_spelling(path: str, plain: str) -> None:
    assert workspace_path(path) == plain


@pytest.mark.parametrize(
    ("tool", "given", "is_good"),
    [
        ("files.write", {"path": "a"}, False),
        ("files.write", {"path": "a", "content": None}, False),
        ("files.write", {"path": "a", "content": "", "base64": ""}, False),
        ("files.write", {"path": "a", "content": "", "base64": None}, True),
        ("files.write", {"path": "a", "base64": {"$ref": "x.output"}}, True),
        ("http.request", {"url": "u", "json": 0, "body": ""}, False),
        ("http.request", {"url": "u", "json": None, "body": ""}, True),
        ("http.request", {"url": "u", "json": {"$ref": "x.output"}, "body": ""}, True),
        ("http.request", {"url": "u", "json": [1]}, True),
    ],
)
def test_what_excludes_each_other_is_known_before_anything_runs(
    tool: str, given: dict[str, Json], is_good: bool
) -> None:
    faults = InputCheck(BUILTINS[tool].spec.input_schema).faults(given, pointer="/input")
    assert [(fault.pointer, fault.message[:12]) for fault in faults] == (
        [] if is_good else [("/input", "give either ")]
    )
