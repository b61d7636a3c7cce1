"""A null that is there is a value; where there is nothing, the path leads nowhere."""

from __future__ import annotations

import pytest

from rayloom.dag import paths
from rayloom.dag.made_texts import TooLarge
from rayloom.dag.paths import MAX_PATH_CHARS, MISSING, Missing, path_fault, search
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
        (" | " + "[" * 900, "nested too deeply"),
        (" | " + "[" * 30 + "a" + "]" * 30, "nested deeper than 30 levels"),
        (" | a" * 30, "nested deeper than 30 levels"),
        ('."\\x"', "Bad|Invalid|escape"),
        (".nope(@)", "there is no function `nope`"),
        (" | [@,@]" * 20, "more than 64 times as large"),
        (" | `1`" + " | [@,@]" * 20, "more than 64 times as large"),
        (".items[*].[" + ",".join("@" * 64) + "]", "more than 64 times as large"),
    ],
)
def test_a_path_that_is_no_expression_says_why(path: str, message: str) -> None:
    fault = path_fault(path)
    assert fault is not None
    assert "\n" not in fault
    assert any(word in fault for word in message.split("|")), fault
    assert search(path, OUTPUT) is MISSING


def test_literals_in_literals_are_too_much_work() -> None:
    ones = f"`{[1] * 50}`".replace(" ", "")
    path = f".sum({ones})"
    for _ in range(3):
        path = f".sum(map(&{path[1:]}, {ones}))"
    assert path_fault(path) == "it can take more than 4,194,304 steps on any output; use the tool json.query"
    assert search(path, OUTPUT) is MISSING
    assert search(f".sum(map(&sum({ones}), {ones}))", OUTPUT) == 2_500


def test_what_takes_too_many_steps_on_a_large_output_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_WORK", 3_000)
    path = "[?@ == `1`]"
    assert search(path, [0, 1]) == [1]
    with pytest.raises(TooLarge, match=r"more than 3,000 steps, .* use the tool json\.query"):
        search(path, [1] * 1_000)
    assert search(" | length(@)", [1] * 4_000) == 4_000
    assert search(".m[0].n || a", {"m": [0] * 4_000, "a": 2}) == 2


def test_what_was_found_shares_nothing_that_could_be_changed() -> None:
    found = search(".items[*]", OUTPUT)
    assert isinstance(found, list)
    found.clear()
    assert search(".items[*].name", OUTPUT) == ["a", "b"]


def test_what_would_grow_is_not_evaluated_on_a_large_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_GROWN_SIZE", 3_000)
    path = "[*].[@]"
    assert path_fault(path) is None
    with pytest.raises(TooLarge, match=r"3 times as much .* above 1,000 use the tool json\.query"):
        search(path, [0] * 1_000)
    assert search(path, [0, 1]) == [[0], [1]]
    assert search("[-1:]", [0] * 4_000) == [0]
    assert search(".{t: t, n: n[0], m: m}", {"t": 1, "n": [0] * 4_000, "m": 2}) == {"t": 1, "n": 0, "m": 2}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".items[*].name | join('+', @)", "a+b"),
        (" | join('', `[]`)", ""),
        (".items[*].to_string(@) | [0]", '{"name":"a"}'),
        (".title | to_string(@)", "T"),
        (" | join(`1`, items)", MISSING),
        (" | to_string()", MISSING),
    ],
)
def test_texts_are_made(path: str, found: Json | Missing) -> None:
    assert path_fault(path) is None
    assert search(path, {"items": [{"name": "a"}, {"name": "b"}], "title": "T"}) == found


def test_so_much_text_is_made_by_one_search_and_less_of_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_TEXT_CHARS", 1_000)
    for path, most in (
        ("[*].to_string(@)", 500),
        (" | join('-', [*].to_string(@))", 200),
        (" | to_string(@) | [@, @]", 166),
        (" | join('" + "x" * 98 + "', [*].to_string(@))", 10),
    ):
        search(path, [10] * most)
        with pytest.raises(TooLarge, match=r"more than (1,000|500) characters; use the tool json\.query"):
            search(path, [10] * (most + 1))


def test_what_is_deeper_than_json_is_written_is_too_large() -> None:
    with pytest.raises(TooLarge, match="nested deeper than 250"):
        search(" | [[[[[" + "@" + "]]]]]", _nested(246))
    search(" | [[[[@]]]]", _nested(246))


def _nested(levels: int) -> Json:
    value: Json = 1
    for _ in range(levels):
        value = [value]
    return value
