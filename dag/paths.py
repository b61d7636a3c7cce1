"""JMESPath below a subtask's output, and the difference between a null that is there and nothing at all.

JMESPath gives null for both. A *simple* path (names and indexes only: ``.a.b[0]."c d"``) is therefore walked here, and
a null at its end is a value like any other. Of any other expression a null means that it led nowhere, unless it ends
in ``|| `null```, which says that null is welcome.

An expression runs where the attempt runs, with nothing around it that limits memory or time. So it must be one whose
result is at most a small multiple of the output, and that takes a bounded number of steps: see ``growth``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import jmespath
from jmespath.parser import ParsedResult

from rayloom.dag.bounds import Growth
from rayloom.dag.errors import UserError
from rayloom.dag.growth import MAX_NESTING, measure, nesting, size
from rayloom.dag.made_texts import MAX_TEXT_CHARS, BoundedFunctions, TooLarge
from rayloom.dag.output import sanitise
from rayloom.dag.values import Json

MAX_PATH_CHARS: Final = 1_000
MAX_DEPTH: Final = 250
"""Of a value found: an output has fewer levels, and JSON is not written with more."""

MAX_GROWTH: Final = 64
"""How many times as large as the output what an expression makes may be."""
MAX_BESIDES: Final = MAX_GROWTH * MAX_PATH_CHARS
"""Values that an expression may make out of none."""
MAX_GROWN_SIZE: Final = 4_000_000
"""Values that an expression may make which can give more than it was given."""
MAX_WORK: Final = 2**22
"""Steps that an expression may take; some seconds."""


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
    """The value at ``path``, or MISSING; an expression that can't be evaluated on this output leads nowhere too.

    Raises TooLarge: for its size before anything is evaluated, for its texts while they are made.
    """
    compiled = _compiled(path)
    if isinstance(compiled, str):
        return MISSING
    if isinstance(compiled, tuple):
        return _walk(compiled, output)
    expression, null_is_welcome = compiled.expression, compiled.null_is_welcome
    growing, steps = compiled.times > 1, compiled.work
    limits = [MAX_GROWN_SIZE // compiled.times] if growing else []
    limits += [MAX_WORK // steps.times] if steps.times else []
    # Counted once for both, and not at all where it matters to none.
    values = size(output, limit=max(limits)) if limits else 0
    if growing and values * compiled.times > MAX_GROWN_SIZE:
        raise TooLarge(
            f"it can give {compiled.times} times as much as it is given, and the output has too many values for that: "
            f"above {MAX_GROWN_SIZE // compiled.times:,} use the tool json.query"
        )
    if steps.times * values + steps.besides > MAX_WORK:
        raise TooLarge(
            f"it can take more than {MAX_WORK:,} steps, as many values as the output has; use the tool json.query"
        )
    # Text counts once for each copy that the expression may make of it.
    functions = BoundedFunctions(MAX_TEXT_CHARS // max(compiled.times, 1))
    try:
        found = expression.search(output, options=jmespath.Options(custom_functions=functions))
    except TooLarge:
        raise
    except _SEARCH_ERRORS:
        return MISSING
    if found is None:
        return None if null_is_welcome else MISSING
    # Arithmetic may have made a NaN, and the copy shares nothing with the output.
    try:
        return sanitise(found, max_depth=MAX_DEPTH)
    except UserError as error:
        raise TooLarge(error.message) from None


class _Expression:
    """A compiled expression that is more than a simple path."""

    def __init__(self, expression: ParsedResult, times: int, work: Growth) -> None:
        self.expression = expression
        self.times = times
        self.work = work
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
        if nesting(expression.parsed) > MAX_NESTING:
            return f"it is nested deeper than {MAX_NESTING} levels"
        bound = measure(expression.parsed)
    except RecursionError:
        return "it is nested too deeply"
    except (ValueError, LookupError, TypeError) as error:
        return str(error).splitlines()[0]
    grown, steps = bound.peak, bound.work
    if grown.times > MAX_GROWTH or grown.besides > MAX_BESIDES:
        return f"what it makes can be more than {MAX_GROWTH} times as large as the output; use the tool json.query"
    if sum(steps) > MAX_WORK:
        return f"it can take more than {MAX_WORK:,} steps on any output; use the tool json.query"
    return _Expression(expression, grown.times, steps)


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
