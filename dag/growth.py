"""How many times larger than its data the result of a JMESPath expression can be, and how much work it is to find it.

The size of a value is the number of values in it, itself included; a text counts once more for each 64 characters of
it. No expression here makes a text longer, but for ``join`` and ``to_string``, so an expression's result is at most
``factor`` times its data, and that factor follows from the expression alone: a member taken twice counts twice,
different members together count once, what is made anew for each element of a list counts once an element. A text that
those two make counts like what it is made of, so that copies of it are told; its length is bounded where it is made.

Work is counted in steps: one for each node of the expression each time that it is evaluated, and one for each value
that a function goes over. Within an element nothing but the element and literals can be named, so the work for all
elements is at most in proportion to the list; what multiplies are literals in literals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from rayloom.dag.bounds import (
    DATA,
    STEP,
    Bound,
    Growth,
    for_each,
    made_of,
    on_each,
    one_of,
    part,
    then,
    together,
    total,
)
from rayloom.dag.values import Json

TEXT_UNIT_CHARS: Final = 64
MAX_NESTING: Final = 30
"""Levels of an expression that is to be measured: it takes a time in proportion to its levels times its names."""

_Node = Mapping[str, Any]


def measure(tree: _Node) -> Bound:
    """How large what evaluating a parsed expression makes is at most, and how many steps it takes at most.

    Raises ValueError for a function that does not exist and for an ``&`` that no function evaluates; RecursionError.
    """
    return _MEASURES[tree["type"]](tree)


def nesting(tree: _Node) -> int:
    """How many levels of a parsed expression lie in each other; what one row of ``||`` or of ``&&`` joins is one."""
    deepest = 0
    ahead = [(tree, 1)]
    while ahead:
        node, level = ahead.pop()
        deepest = max(deepest, level)
        inner = _joined(node) if node["type"] in _JOINS else node["children"]
        ahead.extend((child, level + 1) for child in inner if isinstance(child, Mapping))
    return deepest


def makes_texts(tree: _Node) -> bool:
    """Whether evaluating a parsed expression may make texts, which are not counted in its growth."""
    ahead = [tree]
    while ahead:
        node = ahead.pop()
        if node["type"] == "function_expression" and node["value"] in _TEXT_MAKERS:
            return True
        ahead.extend(child for child in node["children"] if isinstance(child, Mapping))
    return False


def size(value: Json, *, limit: float = math.inf) -> int:
    """The size of a value; once above ``limit`` it is not counted any further."""
    counted = 0
    ahead = [value]
    while ahead and counted <= limit:
        item = ahead.pop()
        counted += 1
        if isinstance(item, str):
            counted += len(item) // TEXT_UNIT_CHARS
        elif isinstance(item, list):
            ahead.extend(item)
        elif isinstance(item, dict):
            counted += sum(len(name) // TEXT_UNIT_CHARS for name in item)
            ahead.extend(item.values())
    return counted


def _all_of(node: _Node) -> list[Bound]:
    return [measure(child) for child in node["children"]]


def _chain(node: _Node) -> Bound:
    first, *others = _all_of(node)
    for following in others:
        first = then(first, following)
    return replace(first, work=total((STEP, first.work)))


def _projection(node: _Node) -> Bound:
    return for_each(measure(node["children"][0]), measure(node["children"][1]))


def _filter(node: _Node) -> Bound:
    base, element, condition = _all_of(node)
    kept = for_each(base, element)
    return made_of(kept.uses, kept.besides, [kept, on_each(base.own, condition)])


def _flatten(node: _Node) -> Bound:
    base = measure(node["children"][0])
    return part(base, steps=total((STEP, base.own)))


def _multi_select(node: _Node) -> Bound:
    # Itself, a null for each member that the data does not have, and the names.
    names = sum(len(child.get("value") or "") // TEXT_UNIT_CHARS for child in node["children"] if _is_member(child))
    return together(_all_of(node), besides=1 + len(node["children"]) + names)


def _is_member(node: _Node) -> bool:
    return bool(node["type"] == "key_val_pair")


def _literal(node: _Node) -> Bound:
    return made_of({}, size(node["value"]), ())


def _one(node: _Node) -> Bound:
    return made_of({}, 1, _all_of(node))


def _scanned(node: _Node) -> Bound:
    """One value, of functions that go over all that they are given."""
    bounds = _all_of(node)
    return made_of({}, 1, bounds, steps=total((STEP, *(bound.own for bound in bounds))))


def _compared(node: _Node) -> Bound:
    """Two values are equal or not once the smaller one is gone through."""
    bounds = _all_of(node)
    return made_of({}, 1, bounds, steps=total((STEP, min(bound.own for bound in bounds))))


def _joined(node: _Node) -> list[_Node]:
    """What a row of ``||`` or of ``&&`` joins: in the tree each lies in the next."""
    kind, joined = node["type"], []
    while node["type"] == kind:
        node, last = node["children"]
        joined.append(last)
    return [node, *reversed(joined)]


def _either(node: _Node) -> Bound:
    bounds = [measure(each) for each in _joined(node)]
    return one_of(bounds, steps=Growth(0, len(bounds) - 1))


def _mapped(node: _Node) -> Bound:
    """``map``: like a projection."""
    over = _goes_over(node, expression=0)
    return for_each(*over) if over else _one(node)


def _by(node: _Node) -> Bound:
    """``sort_by`` and its like: what the expression gives for each element is held, too."""
    over = _goes_over(node, expression=1)
    if over is None:
        return _one(node)
    base, element = over
    return made_of(base.uses, base.besides, [for_each(base, element)])


def _goes_over(node: _Node, *, expression: int) -> tuple[Bound, Bound] | None:
    """The list that a function goes over, and what its expression gives for an element.

    None where the arguments are others: then they are evaluated, and the function fails.
    """
    arguments: list[_Node] = node["children"]
    if len(arguments) != 2 or arguments[expression]["type"] != "expref":
        return None
    return measure(arguments[1 - expression]), measure(arguments[expression]["children"][0])


def _stray(node: _Node) -> Bound:
    # As a value it could go where its work is not seen.
    raise ValueError("`&` makes sense only as an argument of a function that evaluates it")


def _parts(node: _Node) -> Bound:
    bounds = _all_of(node)
    return together(bounds, steps=total((STEP, *(bound.own for bound in bounds))))


def _wrapped(node: _Node) -> Bound:
    return together(_all_of(node), besides=1)


_JOINS: Final = ("or_expression", "and_expression")
_TEXT_MAKERS: Final = ("join", "to_string")
_FUNCTIONS: Final[Mapping[str, Callable[[_Node], Bound]]] = (
    dict.fromkeys(("abs", "ceil", "floor", "length", "type"), _one)
    | dict.fromkeys(("avg", "contains", "ends_with", "starts_with", "sum", "to_number"), _scanned)
    | dict.fromkeys(("keys", "max", "merge", "min", "reverse", "sort", "values"), _parts)
    | dict.fromkeys(("max_by", "min_by", "sort_by"), _by)
    | {"map": _mapped, "not_null": lambda node: one_of(_all_of(node)), "to_array": _wrapped}
    | dict.fromkeys(_TEXT_MAKERS, _parts)
)


def _function(node: _Node) -> Bound:
    measure = _FUNCTIONS.get(node["value"])
    if measure is None:
        raise ValueError(f"there is no function `{node['value']}`")
    return measure(node)


_MEASURES: Final[Mapping[str, Callable[[_Node], Bound]]] = (
    dict.fromkeys(("subexpression", "index_expression", "pipe"), _chain)
    | dict.fromkeys(("projection", "value_projection"), _projection)
    | dict.fromkeys(("multi_select_list", "multi_select_dict"), _multi_select)
    | {"comparator": _compared, "not_expression": _one, "expref": _stray}
    | dict.fromkeys(_JOINS, _either)
    | dict.fromkeys(("current", "identity"), lambda _node: DATA)
    | {
        "field": lambda node: Bound({(node["value"],): 1}, 0, Growth(1, 0), STEP, at=(node["value"],)),
        "filter_projection": _filter,
        "flatten": _flatten,
        "function_expression": _function,
        "index": lambda _node: part(DATA, steps=STEP),
        "key_val_pair": lambda node: part(measure(node["children"][0]), steps=STEP),
        "literal": _literal,
        "slice": lambda _node: part(DATA, steps=Growth(1, 1)),
    }
)
