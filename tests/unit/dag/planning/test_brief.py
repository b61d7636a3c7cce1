"""What was understood of a request."""

from __future__ import annotations

from rayloom.dag.planning.brief import Brief, attachments_of, brief_of, schema_of_brief
from rayloom.dag.values import JsonObject


def test_a_whole_brief_is_read() -> None:
    raw: JsonObject = {
        "intent": " compare\n weather ",
        "output": "a table",
        "constraints": ["under 5 USD"],
        "entities": ["Oslo", "", 3, "Rome"],
        "max_tokens": 5000,
        "max_cost_usd": 0.5,
        "deadline_s": 60,
        "questions": ["Which day?"],
    }
    brief = brief_of(raw, prompt="Compare https://a.example/x.", language="en")
    assert brief == Brief(
        intent="compare weather",
        language="en",
        constraints=("under 5 USD",),
        entities=("Oslo", "Rome"),
        wanted_output="a table",
        attachments=("https://a.example/x",),
        max_tokens=5000,
        max_cost_usd=0.5,
        deadline_s=60.0,
        questions=("Which day?",),
    )
    assert brief.as_json() == {
        "intent": "compare weather",
        "language": "en",
        "constraints": ["under 5 USD"],
        "entities": ["Oslo", "Rome"],
        "wanted_output": "a table",
        "attachments": ["https://a.example/x"],
        "budget": {"max_tokens": 5000, "max_cost_usd": 0.5},
        "deadline_s": 60.0,
    }


def test_what_is_missing_or_of_another_kind_says_nothing() -> None:
    raw: JsonObject = {
        "intent": ["x"],
        "constraints": "one",
        "entities": {"a": 1},
        "max_tokens": 0.5,
        "max_cost_usd": True,
        "deadline_s": -1,
        "output": "\ud800",
    }
    brief = brief_of(raw, prompt="", language="zh")
    assert brief == Brief(language="zh", constraints=("one",))
    assert brief.as_json() == {"language": "zh", "constraints": ["one"]}


def test_lists_and_lines_are_bounded() -> None:
    brief = brief_of({"questions": ["q" * 999] * 99}, prompt="", language="und")
    assert [len(question) for question in brief.questions] == [200] * 3


def test_files_and_addresses_are_found_in_both_languages() -> None:
    prompt = "读取 data/sales.csv 和 https://a.example/b?c=1，再看 Report.PDF。Not e.g. this or a@b.csv.x"
    assert attachments_of(prompt) == ("data/sales.csv", "https://a.example/b?c=1", "Report.PDF")


def test_its_schema_is_bounded() -> None:
    schema = schema_of_brief()
    assert set(schema) >= {"intent", "questions", "constraints"}
    assert all("maxLength" in each for each in schema.values() if isinstance(each, dict) and each["type"] == "string")
