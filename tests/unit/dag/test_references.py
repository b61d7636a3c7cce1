"""References are found where they stand, and nothing else is taken for one."""

from __future__ import annotations

from time import process_time

import pytest

from rayloom.dag import paths, references
from rayloom.dag.embedded import MAX_REFERENCE_CHARS
from rayloom.dag.errors import InvalidPlan, UserError
from rayloom.dag.nearest import MAX_HINTS
from rayloom.dag.references import Reference, find, literal, plain_text, resolve, scan, secrets, text_of
from rayloom.dag.values import Json

KNOWN = {"fetch", "a", "a.output", "a.b", "x-1"}
OUTPUTS: dict[str, Json] = {
    "fetch": {"title": "T", "items": [{"name": "n"}], "none": None, "é": "ü"},
    "a": {"b": 1, "x": {"output": 2}},
    "a.b": "dotted",
    "x-1": None,
}


def _found(value: Json) -> list[tuple[str, str, str, bool]]:
    return [(r.pointer, r.subtask, r.path, r.whole) for r in find(value, KNOWN)]


def test_references_are_found_in_reading_order() -> None:
    value: Json = {
        "url": {"$ref": "fetch.output.items[0].name"},
        "list": ["${fetch.output.title} and ${x-1.output}", {"deep/er": {"$ref": "a.output"}}],
        "plain": "nothing",
        "number": 3,
    }
    assert _found(value) == [
        ("/url", "fetch", ".items[0].name", True),
        ("/list/0", "fetch", ".title", False),
        ("/list/0", "x-1", "", False),
        ("/list/1/deep~1er", "a", "", True),
    ]
    assert find("${a.output}", KNOWN, pointer="/in") == [Reference(pointer="/in", subtask="a", path="", whole=False)]


@pytest.mark.parametrize(
    ("text", "subtask", "path"),
    [
        ("a.output", "a", ""),
        ("a.output.output", "a.output", ""),
        ("a.output.output.x", "a.output", ".x"),
        ("a.output.b", "a", ".b"),
        ("a.b.output", "a.b", ""),
        ("a.b.output.output", "a.b", ".output"),
        ("a.output.x.output", "a", ".x.output"),
        ("x-1.output[0]", "x-1", "[0]"),
        ("x-1.output | length(@)", "x-1", " | length(@)"),
    ],
)
def test_the_longest_known_id_wins(text: str, subtask: str, path: str) -> None:
    assert _found({"$ref": text}) == [("", subtask, path, True)]
    assert _found(f"${{{text}}}") == [("", subtask, path, False)]


@pytest.mark.parametrize(
    "text",
    [
        "${HOME}",
        "${fetch}",
        "${fetch.outputs}",
        "${fetch.output_x}",
        "${fetch.output",
        "${ fetch.output}",
        "$fetch.output",
        "{fetch.output}",
        "${a.output" + " " * MAX_REFERENCE_CHARS + "}",
        "$",
        "${}",
        "",
    ],
)
def test_everything_else_is_left_as_it_is(text: str) -> None:
    assert _found(text) == []
    assert resolve(text, OUTPUTS) == text
    assert plain_text(text) == text


@pytest.mark.parametrize(
    ("value", "pointer", "message"),
    [
        ({"a": "${nobody.output}"}, "/a", "refers to `nobody`, and there is no such subtask"),
        ({"a": "${fetc.output}"}, "/a", "did you mean fetch?"),
        ({"$ref": "nobody.output.x"}, "", "there is no such subtask"),
        ({"$ref": "fetch"}, "", "is not a reference: write `<id>.output`"),
        ({"$ref": "fetch.outputs"}, "", "is not a reference"),
        ({"$ref": " fetch.output"}, "", "is not a reference"),
        ({"$ref": 3}, "", "must be a text that is not empty"),
        ({"$ref": ""}, "", "must be a text that is not empty"),
        ({"$ref": "fetch.output", "x": 1}, "", "`$ref` must stand alone"),
        ({"$literal": 1, "x": 1}, "", "`$literal` must stand alone"),
        ({"$secret": "x", "y": 1}, "", "`$secret` must stand alone"),
        ({"$secret": None}, "", "must be a text"),
        ({"$ref": "fetch.output.["}, "", "no valid JMESPath after `fetch.output`"),
        ("${fetch.output:-default}", "", "no valid JMESPath"),
        ("${a.output | '}'", "", "no valid JMESPath"),
        ("${a.output | {a: b}", "", "no valid JMESPath"),
        ("${a.output.b's}", "", "no valid JMESPath"),
        ({"$ref": "n" * 200 + ".output"}, "", "…` refers to"),
        ({"$ref": "fetch.output" + " " * MAX_REFERENCE_CHARS}, "", "is longer than 2,000 characters"),
    ],
)
def test_a_bad_reference_is_a_fault_with_its_place(value: Json, pointer: str, message: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        find(value, KNOWN)
    (fault,) = refused.value.faults
    assert fault.pointer == pointer
    assert message in fault.message


def test_only_ids_that_can_exist_are_looked_for() -> None:
    known = {"n" * 128, "n" * 300}
    assert find({"$ref": "n" * 128 + ".output.x"}, known)[0].path == ".x"
    for text in ("n" * 128 + ".outputs.output", "n" * 300 + ".output"):
        with pytest.raises(InvalidPlan, match="no such subtask"):
            find({"$ref": text}, known)


def test_no_more_faults_are_looked_for_than_are_wanted() -> None:
    value: Json = [{"$ref": "fetc.output"}] * 50
    assert len(scan(value, KNOWN, limit=20).faults) == 20
    faults = scan(value, KNOWN).faults
    assert len(faults) == 50
    assert sum("did you mean fetch?" in fault.message for fault in faults) == MAX_HINTS


def test_a_literal_is_not_looked_into() -> None:
    value: Json = {"a": {"$literal": {"$ref": "nobody.output", "x": "${nobody.output}", "y": {"$literal": 1}}}}
    assert find(value, KNOWN) == []
    assert secrets({"$literal": {"$secret": "x"}}) == []
    assert resolve(value, {}) == {"a": {"$ref": "nobody.output", "x": "${nobody.output}", "y": {"$literal": 1}}}


def test_secrets_are_listed_with_their_places() -> None:
    assert secrets({"a": [{"$secret": "k"}], "b": {"$ref": "x.output"}}, pointer="/in") == [("/in/a/0", "k")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"$ref": "fetch.output.items"}, [{"name": "n"}]),
        ({"$ref": "fetch.output.none"}, None),
        ({"$ref": "x-1.output"}, None),
        ({"$ref": "a.b.output"}, "dotted"),
        ([{"$ref": "a.output.b"}], [1]),
        ("${fetch.output.title}!", "T!"),
        ("<${fetch.output.title}${a.b.output}>", "<Tdotted>"),
        ("${a.output.b}", "1"),
        ("${x-1.output}", "null"),
        ('${fetch.output."é"}', "ü"),
        ("${fetch.output.items}", '[{"name":"n"}]'),
        ("${fetch.output.{t: title, u: 'a}b'}}", '{"t":"T","u":"a}b"}'),
        ("${fetch.output.items[?name=='n'] | [0].name}", "n"),
        ("$${fetch.output.title}", "${fetch.output.title}"),
        ("$$${fetch.output.title}", "$${fetch.output.title}"),
        ("$${HOME} ${HOME} ${fetch.output.title}", "${HOME} ${HOME} T"),
        ("${fetch.output.nope || '${'}", "${"),
        ({"k": {"${fetch.output.title}": 1}}, {"k": {"${fetch.output.title}": 1}}),
    ],
)
def test_a_reference_gives_its_value(value: Json, expected: Json) -> None:
    assert resolve(value, OUTPUTS) == expected


@pytest.mark.parametrize("value", [{"a": [1, {"b": "x"}]}, ["x", ["y"]], "x", 1, None])
def test_what_holds_no_reference_is_given_back_itself(value: Json) -> None:
    assert resolve(value, OUTPUTS) is value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"q": {"$ref": "fetch.output.nope"}}, "/q: `fetch.output.nope` leads nowhere in the output of `fetch`"),
        ({"$ref": "fetch.output.items[1]"}, "/: `fetch.output.items[1]` leads nowhere"),
        (["${a.output.zz}"], "/0: `a.output.zz` leads nowhere"),
        ("${gone.output}", "/: `gone.output` refers to `gone`"),
    ],
)
def test_a_reference_that_leads_nowhere_is_the_users_error(value: Json, message: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(value, OUTPUTS)
    assert refused.value.code == "REFERENCE_MISSING"
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"$ref": "a.output", "x": 1}}, "/a: `$ref` must stand alone"),
        ({"$secret": "k"}, "there is no secret `k`"),
    ],
)
def test_what_find_would_refuse_is_not_resolved(value: Json, message: str) -> None:
    with pytest.raises(UserError, match=r"secret|alone") as refused:
        resolve(value, OUTPUTS)
    assert refused.value.code == "REFERENCE_INVALID"
    assert message in refused.value.message


def test_plain_text_is_none_where_an_output_is_needed() -> None:
    assert plain_text("a ${fetch.output} b") is None
    assert plain_text("a $${fetch.output} b") == "a ${fetch.output} b"


def test_a_literal_text_comes_back_unchanged() -> None:
    assert literal("plain") == "plain"
    assert resolve(literal("${fetch.output} $${x}"), OUTPUTS) == "${fetch.output} $${x}"


def test_values_stand_in_text_as_compact_json() -> None:
    values: list[Json] = ["é", 1.5, None, True, {"a": [1, "é"]}]
    assert [text_of(value) for value in values] == [
        "é",
        "1.5",
        "null",
        "true",
        '{"a":[1,"é"]}',
    ]


def test_many_open_braces_are_no_work() -> None:
    text = "${a.output" * 20_000
    assert resolve(text, OUTPUTS) == text
    for unit in ("${a.output{}", "${a.output\\'{}"):
        # Each brace and quote of them is looked at once, not once for each opening before it.
        assert len(scan(unit * 5_000, KNOWN).faults) == 1
        assert plain_text(unit * 5_000) is None


@pytest.mark.parametrize(
    "value",
    ["${a.output.b}" * 11, [{"$ref": "a.output.b"}] * 11, ["${a.output}", "${x-1.output}", {"$ref": "fetch.output"}]],
)
def test_references_fill_no_more_than_their_room(monkeypatch: pytest.MonkeyPatch, value: Json) -> None:
    monkeypatch.setattr(references, "MAX_RESOLVED_CHARS", 10)
    with pytest.raises(UserError, match="is one too many: an input is given at most 10 characters") as refused:
        resolve(value, OUTPUTS)
    assert refused.value.code == "REFERENCE_TOO_LARGE"
    assert resolve(["${a.output.b}" * 10, "text is not counted"], OUTPUTS) == ["1" * 10, "text is not counted"]


def test_a_reference_that_can_grow_too_much_is_refused_and_one_that_would_is_the_users_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "MAX_GROWN_SIZE", 3_000)
    with pytest.raises(InvalidPlan) as refused:
        find({"x": ["${a.output" + " | [@, @]" * 7 + "}"]}, {"a"}, pointer="/in")
    assert [fault.pointer for fault in refused.value.faults] == ["/in/x/0"]
    assert "what it makes can be more than 64 times as large as the output" in refused.value.faults[0].message
    with pytest.raises(UserError, match=r"^/q: `a\.output\[\*\]\.\[@\]`: it can give 3 times") as told:
        resolve({"q": {"$ref": "a.output[*].[@]"}}, {"a": [0] * 1_000})
    assert told.value.code == "REFERENCE_TOO_LARGE"


@pytest.mark.parametrize("path", ["", ".items[0].name", ".items[?x > `1`]", " | length(@)"])
def test_any_path_into_what_is_missing_gives_null(path: str) -> None:
    outputs: dict[str, Json] = {"a": None, "x-1": None}
    value: Json = [{"$ref": f"a.output{path}"}, f"<${{a.output{path}}}>"]
    assert resolve(value, outputs, nothing={"a"}) == [None, "<null>"]
    # What is null because its subtask gave that is a value like any other.
    with pytest.raises(UserError) as missing:
        resolve({"$ref": "x-1.output.items"}, outputs, nothing={"a"})
    assert missing.value.code == "REFERENCE_MISSING"


def test_millions_of_openings_that_open_nothing_take_no_time_worth_the_name() -> None:
    started_at = process_time()
    for text in ("${" * 2_000_000, "$${" * 1_400_000):
        assert scan({"text": text}, {"a"}).references == ()
        assert plain_text(text) == text.replace("$${", "${")
    assert process_time() - started_at < 2.0


def test_what_opens_within_a_reference_is_a_part_of_it() -> None:
    (found,) = scan("${a.output.x || '${b.output}'} and", {"a", "b"}).references
    assert (found.subtask, found.path) == ("a", ".x || '${b.output}'")
