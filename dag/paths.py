"""JMESPath below a subtask's output, and the difference between a null that is there and nothing at all.

JMESPath gives null for both. A *simple* path (names and indexes only: ``.a.b[0]."c d"``) is therefore walked here, and
a null at its end is a value like any other. Of any other expression a null means that it led nowhere, unless it ends
in ``|| `null```, which says that null is welcome.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import jmespath
from jmespath.parser import ParsedResult

from rayloom.dag.output import sanitise
from rayloom.dag.values import Json

MAX_PATH_CHARS: Final = 1_000
MAX_DEPTH: Final = 1_000
"""Of a value found: an output has fewer levels, and an expression this short can't add as many."""


class Missing:
    """The type of MISSING."""


MISSING: Final = Missing()
"""What ``search`` gives where a path leads nowhere."""

_STEP: Final = re.compile(r'\.([A-Za-z_][A-Za-z0-9_]*)|\.("(?:\\.|[^"\\])*")|\[(-?[0-9]{1,9})\]')
_NULL: Final[Mapping[str, object]] = {"type": "literal", "value": None, "children": []}
# What jmespath lets through when an expression meets data that it does not fit; its own errors are ValueErrors.
_SEARCH_ERRORS: Final = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)


def path_fault(path: str) -> str | None:
    """Why ``path`` (what follows ``id.output``) is no expression; None where it is one."""
    compiled = _compiled(path)
    return compiled if isinstance(compiled, str) else None


def search(path: str, output: Json) -> Json | Missing:
    """The value at ``path``, or MISSING; an expression that can't be evaluated on this output leads nowhere too."""
    compiled = _compiled(path)
    if isinstance(compiled, str):
        return MISSING
    if isinstance(compiled, tuple):
        return _walk(compiled, output)
    expression, null_is_welcome = compiled.expression, compiled.null_is_welcome
    try:
        found = expression.search(output)
    except _SEARCH_ERRORS:
        return MISSING
    if found is None:
        return None if null_is_welcome else MISSING
    # Arithmetic may have made a NaN, and the copy shares nothing with the output.
    return sanitise(found, max_depth=MAX_DEPTH)


class _Expression:
    """A compiled expression that is more than a simple path."""

    def __init__(self, expression: ParsedResult) -> None:
        self.expression = expression
        tree: Mapping[str, Any] = expression.parsed
        self.null_is_welcome = tree["type"] == "or_expression" and tree["children"][1] == _NULL


@lru_cache(maxsize=4_096)
def _compiled(path: str) -> tuple[str | int, ...] | _Expression | str:
    """The steps of a simple path, the compiled expression of another, or what is wrong with it."""
    steps = _steps(path)
    if steps is not None:
        return steps
    if len(path) > MAX_PATH_CHARS:
        return f"it is longer than {MAX_PATH_CHARS:,} characters"
    try:
        # "@" is the output itself, so that whatever may follow a value may follow `id.output`.
        expression = jmespath.compile("@" + path)
    except RecursionError:
        return "it is nested too deeply"
    except (ValueError, LookupError, TypeError) as error:
        return str(error).splitlines()[0]
    if _returns_expression(expression.parsed):
        return "`&` makes sense only as an argument of a function"
    return _Expression(expression)


def _steps(path: str) -> tuple[str | int, ...] | None:
    """Names and indexes of a simple path; None where it is not simple."""
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return None
        name, quoted, index = step.groups()
        try:
            steps.append(name or (json.loads(quoted) if quoted else int(index)))
        except ValueError:
            return None
        at = step.end()
    return tuple(steps)


def _walk(steps: tuple[str | int, ...], output: Json) -> Json | Missing:
    here = output
    for step in steps:
        if isinstance(step, str):
            if not isinstance(here, dict) or step not in here:
                return MISSING
            here = here[step]
        else:
            if not isinstance(here, list) or not -len(here) <= step < len(here):
                return MISSING
            here = here[step]
    return here


def _returns_expression(tree: Mapping[str, Any]) -> bool:
    """Whether an expression reference (``&x``) stands anywhere but among the arguments of a function."""
    ahead = [(tree, False)]
    while ahead:
        node, is_argument = ahead.pop()
        if node["type"] == "expref" and not is_argument:
            return True
        inside = node["type"] == "function_expression"
        ahead.extend((child, inside) for child in node["children"] if isinstance(child, dict))
    return False
