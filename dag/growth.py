"""How many times larger than its data the result of a JMESPath expression can be.

The size of a value is the number of values in it, itself included; a text counts once more for each 64 characters of
it. No expression here makes a text longer, but for ``join`` and ``to_string``, so an expression's result is at most
``factor`` times its data, and that factor follows from the expression alone: a member taken twice counts twice,
different members together count once, what is made anew for each element of a list counts once an element. A text that
those two make counts like what it is made of, so that copies of it are told; its length is bounded where it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rayloom.dag.values import Json

TEXT_UNIT_CHARS: Final = 64

_Node = Mapping[str, Any]
_Path = tuple[str, ...]
_Uses = Mapping[_Path, int]


class Growth(NamedTuple):
    """A size is at most so many times that of the data, and so much besides."""

    times: int
    besides: int


def growth(tree: _Node) -> Growth:
    """How large anything is at most that evaluating a parsed expression makes, its result included.

    Raises ValueError for a function that does not exist, and RecursionError.
    """
    return _measure(tree).peak


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


@dataclass(frozen=True, slots=True)
class _Bound:
    """The size of a result: so many times each part of the data, and so much besides.

    ``uses`` holds parts by their path of names, the empty path for all of it.
    """

    uses: _Uses
    besides: int
    peak: Growth
    """The largest that exists at any time, the result included."""
    at: _Path | None = None
    """Where in the data the result stands, if it is a part of it."""

    @property
    def own(self) -> Growth:
        """Of the result."""
        return Growth(_most(self.uses), self.besides)


_DATA: Final = _Bound({(): 1}, 0, Growth(1, 0), at=())
_ONE: Final = _Bound({}, 1, Growth(0, 1))


def _most(uses: _Uses) -> int:
    """How often a value is used at most: the largest sum along the way to it."""
    return max((sum(uses.get(path[:depth], 0) for depth in range(len(path) + 1)) for path in uses), default=0)


def _largest(sizes: Iterable[Growth]) -> Growth:
    times, besides = zip(*sizes, strict=True)
    return Growth(max(times), max(besides))


def _of(inner: Growth, outer: Growth) -> Growth:
    """``outer`` of something that is as large as ``inner``."""
    return Growth(outer.times * inner.times, outer.times * inner.besides + outer.besides)


def _each(element: Growth) -> Growth:
    """Of a whole list, where each element becomes as large as this: it has no more elements than values."""
    return Growth(max(sum(element), 1), 0)


def _bound(uses: _Uses, besides: int, peaks: Iterable[Growth]) -> _Bound:
    return _Bound(uses, besides, _largest((Growth(_most(uses), besides), *peaks)))


def _together(bounds: Sequence[_Bound], *, besides: int = 0) -> _Bound:
    """All of them, kept at the same time."""
    uses: dict[_Path, int] = {}
    for bound in bounds:
        for path, times in bound.uses.items():
            uses[path] = uses.get(path, 0) + times
    return _bound(uses, besides + sum(bound.besides for bound in bounds), [bound.peak for bound in bounds])


def _one_of(bounds: Sequence[_Bound]) -> _Bound:
    uses: dict[_Path, int] = {}
    for bound in bounds:
        for path, times in bound.uses.items():
            uses[path] = max(uses.get(path, 0), times)
    return _bound(uses, max([1, *(bound.besides for bound in bounds)]), [bound.peak for bound in bounds])


def _then(first: _Bound, second: _Bound) -> _Bound:
    """``second`` of what ``first`` gives."""
    if first.at is not None:
        uses = {(*first.at, *path): times for path, times in second.uses.items()}
        at = None if second.at is None else (*first.at, *second.at)
        return _Bound(uses, second.besides, _largest((first.peak, second.peak)), at)
    return _scaled(first, second.own, (first.peak, _of(first.own, second.peak)))


def _for_each(base: _Bound, element: _Bound) -> _Bound:
    """``element`` of each element of ``base``, in a list. What is made on the way is let go of each time."""
    return _scaled(base, _each(element.own), (base.peak, _of(base.own, element.peak)))


def _scaled(bound: _Bound, by: Growth, peaks: Iterable[Growth]) -> _Bound:
    uses = {path: by.times * times for path, times in bound.uses.items()}
    return _bound(uses, by.times * bound.besides + by.besides, peaks)


def _part(bound: _Bound) -> _Bound:
    """A part of it, or its parts in another order."""
    return _Bound(bound.uses, bound.besides, bound.peak)


def _measure(node: _Node) -> _Bound:
    return _MEASURES[node["type"]](node)


def _all_of(node: _Node) -> list[_Bound]:
    return [_measure(child) for child in node["children"]]


def _chain(node: _Node) -> _Bound:
    first, *others = _all_of(node)
    for following in others:
        first = _then(first, following)
    return first


def _projection(node: _Node) -> _Bound:
    return _for_each(_measure(node["children"][0]), _measure(node["children"][1]))


def _filter(node: _Node) -> _Bound:
    base, element, condition = _all_of(node)
    kept = _for_each(base, element)
    return _bound(kept.uses, kept.besides, (kept.peak, _of(base.own, condition.peak)))


def _multi_select(node: _Node) -> _Bound:
    # Itself, a null for each member that the data does not have, and the names.
    names = sum(len(child.get("value") or "") // TEXT_UNIT_CHARS for child in node["children"] if _is_member(child))
    return _together(_all_of(node), besides=1 + len(node["children"]) + names)


def _is_member(node: _Node) -> bool:
    return bool(node["type"] == "key_val_pair")


def _literal(node: _Node) -> _Bound:
    return _bound({}, size(node["value"]), ())


def _one(node: _Node) -> _Bound:
    return _bound({}, 1, [bound.peak for bound in _all_of(node)])


def _either(node: _Node) -> _Bound:
    return _one_of(_all_of(node))


def _mapped(node: _Node) -> _Bound:
    """``map``: like a projection."""
    return _for_each(_argument(node, 1), _argument(node, 0))


def _by(node: _Node) -> _Bound:
    """``sort_by`` and its like: what the expression gives for each element is held, too."""
    base = _argument(node, 0)
    return _bound(base.uses, base.besides, (base.peak, _for_each(base, _argument(node, 1)).peak))


def _parts(node: _Node) -> _Bound:
    return _part(_together(_all_of(node)))


def _wrapped(node: _Node) -> _Bound:
    return _together(_all_of(node), besides=1)


def _argument(node: _Node, place: int) -> _Bound:
    arguments: list[_Node] = node["children"]
    # With too few of them the function fails before it does anything.
    return _measure(arguments[place]) if place < len(arguments) else _ONE


_TEXT_MAKERS: Final = ("join", "to_string")
_FUNCTIONS: Final[Mapping[str, Callable[[_Node], _Bound]]] = (
    dict.fromkeys(
        ("abs", "avg", "ceil", "contains", "ends_with", "floor", "length", "starts_with", "sum", "to_number", "type"),
        _one,
    )
    | dict.fromkeys(("keys", "max", "merge", "min", "reverse", "sort", "values"), _parts)
    | dict.fromkeys(("max_by", "min_by", "sort_by"), _by)
    | {"map": _mapped, "not_null": _either, "to_array": _wrapped}
    | dict.fromkeys(_TEXT_MAKERS, _parts)
)


def _function(node: _Node) -> _Bound:
    measure = _FUNCTIONS.get(node["value"])
    if measure is None:
        raise ValueError(f"there is no function `{node['value']}`")
    return measure(node)


_MEASURES: Final[Mapping[str, Callable[[_Node], _Bound]]] = (
    dict.fromkeys(("subexpression", "index_expression", "pipe"), _chain)
    | dict.fromkeys(("projection", "value_projection"), _projection)
    | dict.fromkeys(("multi_select_list", "multi_select_dict"), _multi_select)
    | dict.fromkeys(("comparator", "not_expression"), _one)
    | dict.fromkeys(("or_expression", "and_expression"), _either)
    | dict.fromkeys(("current", "identity"), lambda _node: _DATA)
    | dict.fromkeys(("index", "slice"), lambda _node: _part(_DATA))
    | dict.fromkeys(("expref", "key_val_pair"), lambda node: _measure(node["children"][0]))
    | {
        "field": lambda node: _Bound({(node["value"],): 1}, 0, Growth(1, 0), at=(node["value"],)),
        "filter_projection": _filter,
        "flatten": lambda node: _part(_measure(node["children"][0])),
        "function_expression": _function,
        "literal": _literal,
    }
)
