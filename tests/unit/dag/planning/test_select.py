"""Which tools a model is shown."""

from __future__ import annotations

from rayloom.dag.planning.select import MAX_SHOWN, fitting, select, words_of
from rayloom.dag.tool_view import ToolView


def tools(**about: str) -> dict[str, ToolView]:
    fillers = {f"filler{i}.noise": f"Does some thing number {i} with widgets." for i in range(1_000)}
    return {
        name.replace("__", "."): ToolView(name=name.replace("__", "."), schema={}, resources={}, description=text)
        for name, text in {**fillers, **about}.items()
    }


MANY = tools(
    weather__forecast="Gives the weather forecast of a city.",
    mail__send="Sends an email to somebody.",
    chart__plot="Draws a chart.",
    python__run="Runs a program.",
    zh__tool="查询火车时刻表",
)


def test_of_a_thousand_the_fitting_ones_are_shown() -> None:
    found = select("What is the weather in Oslo? Send me an e-mail, and plot it.", MANY)
    assert len(found) == MAX_SHOWN
    assert {"weather.forecast", "mail.send", "chart.plot"} <= set(found[:4])
    assert "python.run" in found


def test_chinese_finds_english_tools_and_chinese_ones() -> None:
    assert select("查一下北京的天气", MANY)[0] == "weather.forecast"
    assert select("帮我查火车时刻", MANY)[0] == "zh.tool"


def test_mentioned_tools_are_always_shown() -> None:
    names = [f"filler{i}.noise" for i in range(40)]
    found = select("Use " + ", ".join(f"@{name}" for name in names) + " and @nobody.", MANY)
    assert set(found) == set(names)


def test_few_are_all_shown() -> None:
    assert select("x", {name: MANY[name] for name in ("mail.send", "chart.plot")}) == ("chart.plot", "mail.send")


def test_words_are_compared_however_they_are_written() -> None:
    assert words_of("getUserEmails v2 of the 数据库表 表") == [
        "get",
        "user",
        "email",
        "v",
        "2",
        "数据",
        "据库",
        "库表",
        "表",
    ]


def test_a_small_model_is_shown_nothing_that_does_not_fit() -> None:
    known = tools(files__write="Stores a file.", http__request="Sends a request.", shell__run="Runs a command.")
    assert fitting("Work out the 3 of 7", known, most=8) == ()
    assert fitting("Put it into notes.md", known, most=8) == ("files.write",)
    assert fitting("Look at https://a.example/x", known, most=8) == ("http.request",)
    assert fitting("Run a command", known, most=8) == ()
    assert fitting("Use @shell.run and a file, a request", known, most=2) == ("shell.run", "files.write")
