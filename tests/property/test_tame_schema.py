"""Random schemas: whatever fits one as it is written fits what is made of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from rayloom.dag.tame_schema import tamed

TEXTS = st.sampled_from(["", "a", "12"])
VALUES = TEXTS | st.lists(TEXTS, max_size=2) | st.dictionaries(st.sampled_from(["a", "x-a"]), TEXTS, max_size=2)
PATTERNS = st.sampled_from(["^[0-9]+$", "^[a-z]+$", "^x-"])
LEAVES = st.one_of(
    st.sampled_from([True, False, {}, {"type": "string"}, {"$ref": "#/$defs/digits"}, {"$ref": "#/$defs/x%20names"}]),
    st.builds(dict, pattern=PATTERNS),
    st.builds(dict, patternProperties=st.dictionaries(PATTERNS, st.booleans(), min_size=1, max_size=1)),
)


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=2)
    by_name = st.dictionaries(st.sampled_from(["a", "x-a", "pattern"]), inner, max_size=2)
    by_pattern = st.dictionaries(PATTERNS, inner, max_size=1)
    return st.one_of(
        st.builds(lambda each: {"not": each}, inner),
        st.builds(dict, oneOf=some, anyOf=some),
        st.builds(lambda *each: dict(zip(("if", "then", "else"), each, strict=True)), inner, inner, inner),
        st.builds(dict, contains=inner, maxContains=st.integers(0, 1), minContains=st.integers(0, 1)),
        st.builds(dict, properties=by_name, patternProperties=by_pattern, additionalProperties=inner),
        st.builds(dict, allOf=some, unevaluatedProperties=inner),
        st.builds(dict, anyOf=some, unevaluatedItems=inner),
        st.builds(dict, items=inner, prefixItems=some, propertyNames=inner, dependentSchemas=by_name),
    )


@settings(max_examples=500)
@given(_around(LEAVES | _around(LEAVES)), VALUES)
def test_what_fits_a_schema_fits_what_is_made_of_it(schema: dict[str, Any], value: Any) -> None:
    whole = {
        **schema,
        "$defs": {"digits": {"pattern": "^[0-9]+$"}, "x names": {"patternProperties": {"^x-": {"type": "string"}}}},
    }
    found = tamed(whole)
    Draft202012Validator.check_schema(found)
    if Draft202012Validator(whole).is_valid(value):
        assert Draft202012Validator(found).is_valid(value)
