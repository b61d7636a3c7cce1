"""Templates, queries and pages: text of strangers that a small machine runs over data.

The functions are pure. What may run long on few bytes (loops in loops, doublings, odd HTML) belongs into a child with
limits: ``main`` is that child, ``is_plain_template`` and ``is_plain_query`` say what is harmless enough to stay.
"""

from __future__ import annotations

import base64
import re
import sys
from typing import Any, Final

import jmespath
import orjson
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rayloom.dag.errors import RayloomError, Refused, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.page import read_page

PLAIN_SOURCE_CHARS: Final = 8_192
PLAIN_DATA_BYTES: Final = 131_072
PLAIN_NESTED_DATA_BYTES: Final = 2_048
PLAIN_GROWTH: Final = 64
MAX_NODES: Final = 1_000_000

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
    nodes.Add,
    nodes.Sub,
    nodes.Concat,
    nodes.For,
    nodes.Filter,
    nodes.Test,
    nodes.Keyword,
)
_PLAIN_FILTERS: Final = frozenset(
    re.findall(
        r"\w+",
        "capitalize count d default e escape first float int join last length lower round string title tojson trim "
        "upper",
    )
)
_PLAIN_TESTS: Final = frozenset(["defined", "even", "in", "mapping", "none", "number", "odd", "string", "undefined"])


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.globals.pop("lipsum", None)
    return environment


def render(template: str, values: dict[str, Any], *, max_chars: int) -> str:
    """The text of a template. Raises UserError (``TEMPLATE_INVALID``) and Refused (``OUTPUT_TOO_LARGE``)."""
    chunks: list[str] = []
    size = 0
    try:
        for chunk in _environment().from_string(template).generate(values):
            size += len(chunk)
            if size > max_chars:
                raise Refused("OUTPUT_TOO_LARGE", f"the template gives more than {max_chars} characters")
            chunks.append(chunk)
    except SecurityError as error:
        raise UserError("TEMPLATE_INVALID", f"the template does what the sandbox forbids: {error}") from None
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise UserError("TEMPLATE_INVALID", f"{error}" + (f" (line {line})" if line else "")) from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What a template's own expressions raise.
        raise UserError("TEMPLATE_INVALID", f"{type(error).__name__}: {error}") from None
    return "".join(chunks)


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
    """Whether rendering takes time in proportion to its input: nothing that repeats, computes or calls."""
    if len(template) > PLAIN_SOURCE_CHARS or values_bytes > PLAIN_DATA_BYTES:
        return False
    try:
        tree = _environment().parse(template)
    except (TemplateError, RecursionError):
        return False
    loops = _loop_depth(tree)
    return loops is not None and (loops <= 1 or (loops == 2 and values_bytes <= PLAIN_NESTED_DATA_BYTES))


def _loop_depth(node: nodes.Node) -> int | None:
    if not isinstance(node, _PLAIN_NODES):
        return None
    if isinstance(node, nodes.Filter) and node.name not in _PLAIN_FILTERS:
        return None
    if isinstance(node, nodes.Test) and node.name not in _PLAIN_TESTS:
        return None
    if isinstance(node, nodes.For) and node.recursive:
        return None
    deepest = 0
    for child in node.iter_child_nodes():
        depth = _loop_depth(child)
        if depth is None:
            return None
        deepest = max(deepest, depth)
    return deepest + isinstance(node, nodes.For)


def is_plain_query(query: str, data_bytes: int) -> bool:
    """Whether a query's result can't outgrow its data by much."""
    if len(query) > PLAIN_SOURCE_CHARS or data_bytes > PLAIN_DATA_BYTES:
        return False
    try:
        tree: Any = jmespath.compile(query).parsed
    except (jmespath.exceptions.JMESPathError, RecursionError, ValueError):
        return False
    growth = 1
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        children = [child for child in node["children"] if isinstance(child, dict)]
        if node["type"] in ("multi_select_list", "multi_select_dict"):
            growth *= max(len(children), 1)
        if growth > PLAIN_GROWTH:
            return False
        waiting.extend(children)
    return True


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
        return {"code": error.code, "message": error.message, "refused": isinstance(error, Refused)}
    except MemoryError:
        return {"code": "EVALUATION_LIMIT", "message": "it needs more memory than its limit", "refused": True}
    return {"value": value}


def main() -> None:
    """The child: one request on standard input, one answer on standard output."""
    sys.stdout.buffer.write(orjson.dumps(answer(orjson.loads(sys.stdin.buffer.read()))))
