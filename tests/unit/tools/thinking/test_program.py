"""Programs in answers: found, looked at, and their results read."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from rayloom.tools.thinking.program import code_of, result_of, syntax_fault


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Here:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```py\na\n```\n```python\nlonger = 1\n```\n```sh\nmuch longer than those\n```", "longer = 1\n"),
        ("```\nprint(2)\n```", "print(2)\n"),
        ("print(3)", "print(3)\n"),
        ("```python\nprint(4)", "print(4)\n"),
        ("```python\ns = '''\n  ```\n'''\n```", "s = '''\n  ```\n'''\n"),
        ("", "\n"),
        ("```" + "a" * 500_000, "\n"),
        ("```\n" * 100_001, "\n"),
    ],
    ids=lambda text: text[:12],
)
def test_the_program_is_found(answer: str, code: str) -> None:
    assert code_of(answer) == code


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("print(1)", None),
        ("\n", "no program"),
        ("print(1", "line 1: '(' was never closed: print(1"),
        ("x = 1\nfor", "line 2: invalid syntax"),
        ("a\0b", "NUL"),
        ("x = 1\n" * 40_000, "characters"),
        ("x = 1\n" * 20_000, None),
        ("(" * 50_000, None),
        ("-" * 90_000 + "1", None),
        ("1" + "+1" * 40_000, None),
        ("x" + ".a" * 40_000, None),
        ("not " * 20_000 + "1", None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_program_is_looked_at_before_it_runs(code: str, fault: str | None) -> None:
    found = syntax_fault(code)
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)


def _output(stdout: str = "", *, result: bytes | None = None, truncated: bool = False) -> dict[str, Any]:
    files = {} if result is None else {"result.json": {"base64": base64.b64encode(result).decode()}}
    return {"stdout": stdout, "files": files, "truncated": truncated}


@pytest.mark.parametrize(
    ("output", "result", "fault"),
    [
        (_output("noise", result=b'{"a": 1}'), {"a": 1}, ""),
        (_output(result=b"{'a'"), None, "result.json is not JSON"),
        (_output("[1, 2]\n"), [1, 2], ""),
        (_output("two lines\nof text\n"), "two lines\nof text", ""),
        (_output("null"), None, ""),
        (_output(" \n"), None, "it gave no result"),
        (_output("[1, 2", truncated=True), None, "it printed too much"),
    ],
)
def test_a_result_is_read(output: dict[str, Any], result: object, fault: str) -> None:
    found, said = result_of(output, "result.json")
    assert found == result
    assert said.startswith(fault)
    assert bool(said) == bool(fault)
