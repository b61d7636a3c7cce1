"""What a JMESPath expression can make is bounded by a factor that the expression alone tells."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jmespath.functions import Functions
from jmespath.visitor import TreeInterpreter

from rayloom.dag.bounds import Growth
from rayloom.dag.growth import MAX_NESTING, makes_texts, measure, nesting, size
from rayloom.dag.values import Json


def _growth(expression: str) -> Growth:
    return measure(jmespath.compile(expression).parsed).peak


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 1), ([], 1), ([1, [2]], 4), ({"a": {"b": 1}}, 3), ("x" * 63, 1), ("x" * 128, 3), ({"k" * 64: 1}, 3)],
)
def test_a_size_counts_values_and_long_texts(value: Json, expected: int) -> None:
    assert size(value) == expected


def test_a_size_is_counted_no_further_than_is_asked() -> None:
    assert 10 < size([[0] * 1_000], limit=10) <= 1_002
    assert size([[0] * 20 for _ in range(1_000)], limit=2_000) == 2_001


@pytest.mark.parametrize(
    ("expression", "times"),
    [
        ("a.b[0]", 1),
        ("a[1:2].b | [0]", 1),
        ("a[*].b", 1),
        ("*.b", 1),
        ("a[].b[]", 1),
        ("a[?n == `1` && !m].b", 1),
        ("a || b || c", 1),
        ("not_null(a, b, c)", 1),
        ("sort_by(a, &n)[-1].name", 1),
        ("length(keys(@))", 1),
        ("to_array(a)", 1),
        ("{a: a, b: b.c, c: b.d}", 1),
        ("{a: a.x, b: a}", 2),
        ("[@, @]", 2),
        ("[@, @] | [@, @] | [@, @]", 8),
        ("length([@, @, @])", 3),
        ("merge(@, @)", 2),
        ("a[*].[b]", 3),
        ("map(&[b], a)", 3),
        ("a[?[@, @, @, @]]", 4),
        ("sort_by(a, &[@, @, @])", 7),
        ("a[*].{n: n, m: m}", 4),
        ('a[*].to_array(`[1, {"' + "k" * 640 + '": 2}]`)', 15),
        ("a[*].{" + "k" * 640 + ": n}", 13),
        ("a.b.c.d.e.f.g.[h, i]", 1),
        ("a.b.c.d.e.f.g.h.[i, j] | [@]", 2),
        ("a.b.c.d.e.f.g.h.i.j.[k.l, m] | [@]", 2),
        ("[a.b.c.d.e.f.g.h.i, a.b.c.d.e.f.g.h.j, a.b.c]", 3),
        ("a || b || [@, @] || a || @", 3),
    ],
)
def test_how_many_times_the_data_an_expression_can_make(expression: str, times: int) -> None:
    assert _growth(expression).times == times


def test_a_measure_takes_a_time_in_proportion_to_the_names() -> None:
    """With their square it would run into the time limit of tests."""
    tree: dict[str, Any] = {"type": "subexpression", "children": [{"type": "field", "value": "a"}] * 50_000}
    for _ in range(MAX_NESTING):
        tree = {"type": "multi_select_list", "children": [tree]}
    assert measure(tree).peak == Growth(1, 2 * MAX_NESTING)


def test_a_row_of_alternatives_is_as_long_as_it_likes() -> None:
    assert _growth("[" + " || ".join(f"a{n}.b" for n in range(2_000)) + "]") == Growth(1, 3)


@pytest.mark.parametrize(
    ("expression", "levels"),
    [
        ("a", 1),
        ("a.b.c", 2),
        ("[[a]]", 3),
        ("a[1:2]", 3),
        ("a || b || c || d", 2),
        ("a[?b == `1` && c == `2` && d == `3`]", 4),
        ("a || (b || c)", 3),
        ("(a || b) && c || d", 4),
        ("a | b | c", 3),
    ],
)
def test_how_many_levels_an_expression_has(expression: str, levels: int) -> None:
    assert nesting(jmespath.compile(expression).parsed) == levels


def test_what_is_made_out_of_nothing_is_counted_apart() -> None:
    assert _growth("`[1, 2]` | [@, @]") == Growth(0, 9)


@pytest.mark.parametrize(
    ("expression", "times"),
    [("join(',', a)", 1), ("a[*].to_string(@)", 1), ("[?join('', @) == 'x']", 1), ("to_string(@) | [@, @, @]", 3)],
)
def test_a_text_that_is_made_counts_like_what_it_is_made_of(expression: str, times: int) -> None:
    assert _growth(expression).times == times
    assert makes_texts(jmespath.compile(expression).parsed)
    assert not makes_texts(jmespath.compile("a[1:2].[length(@), `2`]").parsed)


def test_a_function_that_does_not_exist_is_told() -> None:
    with pytest.raises(ValueError, match="there is no function `nope`"):
        _growth("a.nope(@)")


@pytest.mark.parametrize("expression", ["map()", "sort_by(a)", "length()", "max()", "merge()", "not_null()"])
def test_too_few_arguments_are_the_functions_own_fault(expression: str) -> None:
    assert _growth(expression).times <= 1


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("a.b[0]", Growth(0, 6)),
        ("length(a)", Growth(0, 2)),
        ("a == `1`", Growth(0, 4)),
        ("sum(a)", Growth(1, 2)),
        ("a[*].b", Growth(1, 2)),
        ("a[?b].c", Growth(2, 3)),
        ("a[1:]", Growth(2, 5)),
        ("sum(`[1, 2, 3]`)", Growth(0, 6)),
        ("map(&sum(`[1, 2, 3]`), a)", Growth(6, 2)),
        ("map(&sum(`[1, 2, 3]`), `[1, 2, 3]`)", Growth(0, 26)),
        ("min_by(a, &length(`[1, 2, 3]`))", Growth(2, 3)),
        ("`[1, 2, 3]`[?sum(`[1, 2, 3]`) > `0`]", Growth(0, 43)),
    ],
)
def test_the_work_of_an_expression(expression: str, steps: Growth) -> None:
    assert measure(jmespath.compile(expression).parsed).work == steps


@pytest.mark.parametrize("function", ["map(&{0}, {1})", "sort_by({1}, &{0})", "max_by({1}, &{0})", "{1}[*].{0}"])
def test_literals_in_literals_multiply(function: str) -> None:
    ones = f"`{[1] * 150}`"
    expression = f"sum({ones})"
    for _ in range(3):
        expression = f"length({function.format(expression, ones)})"
    assert measure(jmespath.compile(expression).parsed).work.besides > 150**4


@pytest.mark.parametrize(
    "expression",
    ["&a | map(@, b)", "not_null(&a) | map(@, b)", "[&a]", "map(b, &a)", "sort_by(&a, b)", "map(&a, b, &c)", "map(&a)"],
)
def test_an_expression_is_no_value(expression: str) -> None:
    with pytest.raises(ValueError, match="makes sense only as an argument"):
        _growth(expression)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "n" * 90]), inner),
    max_leaves=25,
)
_EXPRESSIONS = st.recursive(
    st.sampled_from(["@", "a", "b", "[0]", "[]", "[*]", "*", "`1`", '`"' + "x" * 99 + '"`', "@[1:]", "keys(@)"]),
    lambda inner: st.one_of(
        st.builds("({} | {})".format, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{a: {}, b: {}}}".format, inner, inner),
        st.builds("({} || {})".format, inner, inner),
        st.builds("({} && {})".format, inner, inner),
        st.builds("@[*].[{}]".format, inner),
        st.builds("@[?{}].a".format, inner),
        st.builds("({}).a.b[0]".format, inner),
        st.builds("a.b.a.b.a.b.a.b.a.{}".format, st.sampled_from(["a", "[a, b, @]", "{a: b, b: @} | [a, b]"])),
        st.builds("map(&{}, to_array({}))".format, inner, inner),
        st.builds("sort_by(to_array({}), &to_number({}))".format, inner, inner),
        st.builds("map({}, {}, {})".format, inner, inner, inner),
        st.builds("({} == {})".format, inner, inner),
        st.builds("contains(to_array({}), {})".format, inner, inner),
        st.builds("merge({}, {})".format, inner, inner),
        st.builds("values({})".format, inner),
        st.builds("not_null({}, {})".format, inner, inner),
    ),
    max_leaves=8,
)


@given(expression=_EXPRESSIONS, data=_VALUES)
def test_no_result_is_larger_than_was_told(expression: str, data: Json) -> None:
    compiled = jmespath.compile(expression)
    told = measure(compiled.parsed).peak
    try:
        found = compiled.search(data)
    except (jmespath.exceptions.JMESPathError, TypeError, ValueError):
        return
    assert size(found) <= told.times * size(data) + max(told.besides, 1)


class _Counting(TreeInterpreter):
    """Counts the nodes that are evaluated, and the values that functions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self._functions = _CountingFunctions(self)

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        return super().visit(node, *args, **kwargs)


class _CountingFunctions(Functions):
    def __init__(self, counting: _Counting) -> None:
        self._counting = counting

    def call_function(self, function_name: str, resolved_args: Iterable[Any]) -> Any:
        if function_name in ("contains", "keys", "merge", "values"):
            self._counting.steps += sum(len(arg) for arg in resolved_args if isinstance(arg, (list, dict)))
        return super().call_function(function_name, resolved_args)


@given(expression=_EXPRESSIONS, data=_VALUES)
def test_no_work_is_more_than_was_told(expression: str, data: Json) -> None:
    tree = jmespath.compile(expression).parsed
    told, counting = measure(tree).work, _Counting()
    with suppress(jmespath.exceptions.JMESPathError, TypeError, ValueError):
        counting.visit(tree, data)
    assert counting.steps <= told.times * size(data) + told.besides
