"""Templates, queries and pages: text of strangers that a small machine runs over data.

The functions are pure. What may run long on few bytes (loops in loops, doublings, odd HTML) belongs into a child with
limits: ``main`` is that child, ``is_plain_template`` and ``is_plain_query`` say what is harmless enough to stay, which
is only what can't make much more than it was given.
"""

from __future__ import annotations

import base64
import math
import re
import sys
from typing import Any, Final

import jmespath
import orjson
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError

from rayloom.dag.errors import RayloomError, Refused, UserError
from rayloom.dag.growth import MAX_NESTING, makes_texts, measure, nesting
from rayloom.dag.output import clean_text
from rayloom.dag.values import Json
from rayloom.tools.builtin.page import read_page
from rayloom.tools.builtin.template_values import compiled, environment

PLAIN_SOURCE_CHARS: Final = 8_192
PLAIN_DATA_BYTES: Final = 131_072
PLAIN_LEVELS: Final = 24
"""Jinja compiles what nests (``not not x``) in a time that grows with the cube of its depth."""
PLAIN_GROWTH: Final = 64
"""How many times as large as a value of its data one value of a template may become."""
PLAIN_WORK: Final = 2**26
"""Characters of a template times bytes of its data."""
PLAIN_QUERY_CHARS: Final = 1_000
PLAIN_RESULT: Final = 2**18
"""Values of a query's result."""
PLAIN_STEPS: Final = 2**20
"""Of a query: under a second."""
MAX_NODES: Final = 1_000_000

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PLAIN_NODES: Final = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.NSRef,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.If,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Sub,
    nodes.Filter,
    nodes.Test,
    nodes.Keyword,
)
# What each makes at most out of one character. `e` may be told of its own result again once something has undone its
# mark, so they multiply.
_PLAIN_FILTERS: Final = (
    dict.fromkeys(("count", "d", "default", "first", "float", "int", "last", "length", "trim"), 1)
    | dict.fromkeys(("capitalize", "lower", "title", "upper"), 3)
    | dict.fromkeys(("e", "escape", "string"), 6)
)
_PLAIN_TESTS: Final = frozenset(["defined", "even", "in", "mapping", "none", "number", "odd", "string", "undefined"])


def render(template: str, values: dict[str, Any], *, max_chars: int) -> str:
    """The text of a template.

    Raises UserError (``TEMPLATE_INVALID``, ``OUTPUT_INVALID``) and Refused (``OUTPUT_TOO_LARGE``).
    """
    chunks: list[str] = []
    size = 0
    try:
        for chunk in compiled(template).generate(values):
            size += len(chunk)
            if size > max_chars:
                raise Refused("OUTPUT_TOO_LARGE", f"the template gives more than {max_chars} characters")
            chunks.append(chunk)
    except SecurityError as error:
        raise UserError("TEMPLATE_INVALID", f"the template does what the sandbox forbids: {error}") from None
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise UserError("TEMPLATE_INVALID", f"{error}" + (f" (line {line})" if line else "")) from None
    except SyntaxError as error:
        # A template becomes Python, which nests less deeply than Jinja does.
        raise UserError("TEMPLATE_INVALID", f"it can't be compiled: {error.msg}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What a template's own expressions raise.
        raise UserError("TEMPLATE_INVALID", f"{type(error).__name__}: {error}") from None
    text = "".join(chunks)
    if _SURROGATE.search(text):
        raise UserError("OUTPUT_INVALID", "the template gives lone surrogates, which are no text")
    return text


def search(query: str, data: Json) -> Json:
    """The result of a JMESPath query. Raises UserError (``QUERY_INVALID``) and Refused (``OUTPUT_TOO_LARGE``)."""
    try:
        found: Json = jmespath.search(query, data)
    except (jmespath.exceptions.JMESPathError, ArithmeticError, RecursionError, TypeError, ValueError) as error:
        raise UserError("QUERY_INVALID", f"{query[:200]!r}: {str(error) or type(error).__name__}") from None
    # A result may share its parts: small in memory, endless when written out.
    waiting: list[Json] = [found]
    seen = 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MAX_NODES:
            raise Refused("OUTPUT_TOO_LARGE", f"the query gives more than {MAX_NODES} values")
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            waiting.extend(node.values())
    return found


def is_plain_template(template: str, values_bytes: int) -> bool:
    """Whether rendering takes time and memory in proportion to its input.

    Nothing that repeats, joins, computes or calls: each thing that is written is one value of the data, or text of
    the template.
    """
    if len(template) > PLAIN_SOURCE_CHARS or values_bytes > PLAIN_DATA_BYTES:
        return False
    if len(template) * values_bytes > PLAIN_WORK:
        return False
    try:
        return _largest_growth(environment().parse(template)) <= PLAIN_GROWTH
    except (TemplateError, RecursionError):
        return False


def _largest_growth(node: nodes.Node, levels: int = PLAIN_LEVELS) -> float:
    """How large one value becomes at most below a node; infinite where nothing is known, or it nests deeply."""
    own = 1.0
    if (
        levels == 0
        or not isinstance(node, _PLAIN_NODES)
        or (isinstance(node, nodes.Test) and node.name not in _PLAIN_TESTS)
    ):
        return math.inf
    if isinstance(node, nodes.Filter):
        own = _PLAIN_FILTERS.get(node.name, math.inf)
    return own * max((_largest_growth(child, levels - 1) for child in node.iter_child_nodes()), default=1.0)


def is_plain_query(query: str, data_bytes: int) -> bool:
    """Whether a query takes no more memory than a small multiple of its data, and no longer than a moment."""
    if len(query) > PLAIN_QUERY_CHARS or data_bytes > PLAIN_DATA_BYTES:
        return False
    try:
        tree = jmespath.compile(query).parsed
        if nesting(tree) > MAX_NESTING:
            return False
        bound = measure(tree)
    except (jmespath.exceptions.JMESPathError, RecursionError, ValueError):
        return False
    grown, steps = bound.peak, bound.work
    if makes_texts(tree) or steps.times * data_bytes + steps.besides > PLAIN_STEPS:
        return False
    return grown.times * data_bytes + grown.besides <= PLAIN_RESULT


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked: ``{value}``, or ``{code, message, refused}``."""
    try:
        match request["kind"]:
            case "template":
                value: Any = render(request["template"], request["values"], max_chars=request["max_chars"])
            case "query":
                value = search(request["query"], request["data"])
            case _:
                page = read_page(base64.b64decode(request["body"]), request["charset"])
                value = {"title": page.title, "text": page.text}
    except RayloomError as error:
        return _failure(error.code, error.message, refused=isinstance(error, Refused))
    return {"value": value}


def _failure(code: str, message: str, *, refused: bool) -> dict[str, Any]:
    return {"code": code, "message": clean_text(message), "refused": refused}


def main() -> None:
    """The child: one request on standard input, one answer on standard output."""
    try:
        answered = answer(orjson.loads(sys.stdin.buffer.read()))
        try:
            text = orjson.dumps(answered)
        except TypeError as error:
            text = orjson.dumps(
                _failure("OUTPUT_INVALID", f"the result can't be written as JSON: {error}", refused=False)
            )
    except MemoryError:
        # Also where the result was made and could not be written out any more.
        text = b'{"code":"EVALUATION_LIMIT","message":"it needs more memory than its limit","refused":true}'
    sys.stdout.buffer.write(text)
