"""A null that is there is a value; where there is nothing, the path leads nowhere."""

from __future__ import annotations

import pytest

from rayloom.dag.paths import MAX_PATH_CHARS, MISSING, path_fault, search
from rayloom.dag.values import Json

OUTPUT: Json = {
    "title": "T",
    "none": None,
    "items": [{"name": "a", "n": 1}, {"name": "b", "n": None}],
    "a b": {'"q"': 1},
    "numbers": [3, 1, 2],
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", OUTPUT),
        (".title", "T"),
        (".none", None),
        (".items[1].n", None),
        (".items[-1].name", "b"),
        ('."a b"."\\"q\\""', 1),
        (".items[*].name", ["a", "b"]),
        (".items[?n==`1`].name | [0]", "a"),
        (".length(items)", 2),
        (" | length(items)", 2),
        (".max_by(items[:1], &n).name", "a"),
        (".sort(numbers)", [1, 2, 3]),
        (".{t: title, n: numbers[0]}", {"t": "T", "n": 3}),
        (".nothing || `null`", None),
        (".nothing || title", "T"),
        (".to_number('nan')", None),
    ],
)
def test_a_path_leads_to_a_value(path: str, expected: Json) -> None:
    assert path_fault(path) is None
    assert search(path, OUTPUT) == expected


@pytest.mark.parametrize(
    "path",
    [
        ".nothing",
        ".none.x",
        ".title.x",
        ".title[0]",
        ".items[2]",
        ".items[-3]",
        ".items.name",
        ".nothing || `false` && title.x",
        ".items[?n==`7`] | [0]",
        ".length(nothing)",
        ".sum(items)",
        ".numbers[::0]",
    ],
)
def test_a_path_leads_nowhere(path: str) -> None:
    assert path_fault(path) is None
    assert search(path, OUTPUT) in (MISSING, False)


def test_a_whole_output_may_be_null() -> None:
    assert search("", None) is None
    assert search(".x", None) is MISSING


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "Expecting"),
        (".a[", "Incomplete expression"),
        (".a b", "Unexpected token"),
        ("$x", "Unknown token"),
        (' | &"x"', "only as an argument"),
        (".[&a]", "only as an argument"),
        (".a" * MAX_PATH_CHARS + " | b", "longer than"),
        (" | " + "(" * 900, "nested too deeply"),
        ('."\\x"', "Bad|Invalid|escape"),
    ],
)
def test_a_path_that_is_no_expression_says_why(path: str, message: str) -> None:
    fault = path_fault(path)
    assert fault is not None
    assert "\n" not in fault
    assert any(word in fault for word in message.split("|")), fault
    assert search(path, OUTPUT) is MISSING


def test_what_was_found_shares_nothing_that_could_be_changed() -> None:
    found = search(".items[*]", OUTPUT)
    assert isinstance(found, list)
    found.clear()
    assert search(".items[*].name", OUTPUT) == ["a", "b"]
