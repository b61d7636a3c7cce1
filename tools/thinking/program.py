"""A program in a model's answer: found, looked at before it runs, and its result read after it."""

from __future__ import annotations

import ast
import base64
from collections.abc import Mapping
from typing import Final

import orjson

from rayloom.dag.values import Json

MAX_CODE_CHARS: Final = 200_000
MAX_PARSED_CHARS: Final = 100_000
MAX_DEPTH: Final = 200
"""Brackets deeper in one another are left to the sandbox: a parser has only so much stack."""

_FENCE: Final = "```"
_PYTHON: Final = frozenset({"python", "py", "python3"})


def code_of(answer: str) -> str:
    """The program in an answer: its longest fenced block of Python, or else of any kind; without one, all of it."""
    blocks = _blocks(answer)
    found = [code for language, code in blocks if language in _PYTHON] or [code for _, code in blocks]
    return max(found, key=len).strip("\n") + "\n" if found else answer.strip() + "\n"


def _blocks(answer: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block; one that is not closed goes to the end."""
    blocks: list[tuple[str, str]] = []
    language, held = "", list[str]()
    is_open = False
    # Line by line: a regular expression may take a time that grows with the square of what a model says.
    for line in answer.split("\n"):
        if is_open and line.rstrip() == _FENCE:
            blocks.append((language, "\n".join(held)))
            is_open, held = False, []
        elif is_open:
            held.append(line)
        elif line.startswith(_FENCE):
            is_open, language = True, (line.removeprefix(_FENCE).split() or [""])[0].lower()
    return [*blocks, (language, "\n".join(held))] if is_open else blocks


def syntax_fault(code: str) -> str | None:
    """What is wrong with a program as it stands; None: nothing that can be seen without running it."""
    if not code.strip():
        return "there is no program in the answer"
    if len(code) > MAX_CODE_CHARS:
        return f"the program has {len(code):,} characters, and may have {MAX_CODE_CHARS:,}"
    if "\0" in code:
        return "the program holds NUL characters"
    if len(code) > MAX_PARSED_CHARS or _depth(code) > MAX_DEPTH:
        return None
    try:
        ast.parse(code)
    except SyntaxError as error:
        line = (error.text or "").strip()[:200]
        return f"it is no Python: line {error.lineno}: {error.msg}: {line}"
    except (ValueError, RecursionError, MemoryError):
        # What the parser can't judge here, the interpreter in the sandbox will.
        return None
    return None


def _depth(code: str) -> int:
    depth = deepest = 0
    for letter in code:
        if letter in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")]}":
            depth = max(depth - 1, 0)
    return deepest


def result_of(output: Mapping[str, Json], result_file: str) -> tuple[Json, str]:
    """What a program that ended well has given, and what is wrong with it (empty: nothing).

    That is the JSON of its result file; without one what it printed, as JSON where it is that, else as text.
    """
    files, stdout = output["files"], output["stdout"]
    assert isinstance(files, dict)
    assert isinstance(stdout, str)
    kept = files.get(result_file)
    if isinstance(kept, dict):
        try:
            return orjson.loads(base64.b64decode(str(kept["base64"]))), ""
        except ValueError as error:
            return None, f"{result_file} is not JSON: {error}"
    if not stdout.strip():
        return None, f"it gave no result: write {result_file}, or print the result"
    if output["truncated"]:
        return None, f"it printed too much: write the result to {result_file}"
    try:
        return orjson.loads(stdout), ""
    except ValueError:
        return stdout.strip(), ""
