"""Names as models write them."""

from __future__ import annotations

import pytest

from rayloom.dag.planning.names import clean_id, meant_tool, numbered, one_off

KNOWN = ["fetch", "merge_all", "step1", "step2", "汇总"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Fetch", "fetch"), ("merge-all", "merge_all"), ("fetc", "fetch"), ("fetchs", "fetch"), ("fetsh", "fetch"),
        ("step3", None), ("step", None), ("step12", None), ("download", None), ("ab", None), ("获取", None),
        ("xfetch", "fetch"), ("mergeall", "merge_all"),
    ],
)  # fmt: skip
def test_a_name_that_is_one_character_off_is_taken_for_the_only_one_near(name: str, meant: str | None) -> None:
    assert one_off(name, KNOWN) == meant


def test_two_that_are_as_near_are_not_guessed_between() -> None:
    assert one_off("tests", ["testa", "testb"]) is None
    assert one_off("A-B", ["a_b", "a.b"]) is None


def test_ids_are_cleaned_and_numbered() -> None:
    assert clean_id(" my step! ") == "my_step"
    assert clean_id("获取") == ""
    assert len(clean_id("x" * 999)) == 128
    assert numbered("a", ()) == "a"
    assert numbered("a", ("a", "a_2")) == "a_3"
    assert len(numbered("x" * 128, ("x" * 128,))) <= 128


@pytest.mark.parametrize(
    ("name", "meant"),
    [("http.request", "http.request"), ("HTTP_Request", "http.request"), ("@http.request", "http.request"),
     ("functions.http.request", "http.request"), ("`http.request`", "http.request"), ("http.request()", "http.request"),
     ("http", None), ("", None)],
)  # fmt: skip
def test_a_tool_is_known_by_how_models_write_it(name: str, meant: str | None) -> None:
    assert meant_tool(name, {"http.request", "sql.query"}) == meant
