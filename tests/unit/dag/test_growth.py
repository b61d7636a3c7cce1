"""What a JMESPath expression can make is bounded by a factor that the expression alone tells."""

from __future__ import annotations

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.dag.growth import Growth, growth, makes_texts, size
from rayloom.dag.values import Json


def _growth(expression: str) -> Growth:
    return growth(jmespath.compile(expression).parsed)


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
    ],
)
def test_how_many_times_the_data_an_expression_can_make(expression: str, times: int) -> None:
    assert _growth(expression).times == times


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
        st.builds("map(&{}, to_array({}))".format, inner, inner),
        st.builds("merge({}, {})".format, inner, inner),
        st.builds("values({})".format, inner),
        st.builds("not_null({}, {})".format, inner, inner),
    ),
    max_leaves=8,
)


@given(expression=_EXPRESSIONS, data=_VALUES)
def test_no_result_is_larger_than_was_told(expression: str, data: Json) -> None:
    compiled = jmespath.compile(expression)
    told = growth(compiled.parsed)
    try:
        found = compiled.search(data)
    except (jmespath.exceptions.JMESPathError, TypeError, ValueError):
        return
    assert size(found) <= told.times * size(data) + max(told.besides, 1)
