"""What an author lays out is what runs, in that order; what can't be run is said."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.outline import Outline, split
from rayloom.dag.plan import Subtask
from rayloom.dag.tool_view import ToolView
from rayloom.dag.verify import verify

_OBJECT = {"type": "object"}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "core.noop": {**_OBJECT, "additionalProperties": False},
    "core.echo": {**_OBJECT, "required": ["value"], "additionalProperties": False, "properties": {"value": True}},
    "http.fetch_text": {**_OBJECT, "required": ["url"], "properties": {"url": {"type": "string"}}},
    "http.request": {**_OBJECT, "required": ["url"], "properties": {"url": {"type": "string"}}},
    "sql.query": {**_OBJECT, "required": ["connection", "sql"]},
    "python.run": {**_OBJECT, "required": ["code"], "properties": {"code": {"type": "string"}}},
    "shell.run": {**_OBJECT, "required": ["command"], "properties": {"command": {"type": "string"}}},
    "plain": _OBJECT,
}
VIEWS = {name: ToolView(name=name, schema=schema, resources={"CPU": 0.25}) for name, schema in _SCHEMAS.items()}


def _split(prompt: str) -> Outline:
    """The outline, which has to pass verification whatever the prompt was."""
    outline = split(prompt, VIEWS, views=VIEWS)
    verify(outline.plan, tools=VIEWS, nodes=[])
    return outline


def _order(prompt: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(subtask.name, subtask.depends_on) for subtask in _split(prompt).plan.subtasks]


def _steps(prompt: str) -> list[Subtask]:
    return list(_split(prompt).plan.subtasks)


def _only(prompt: str) -> Subtask:
    (subtask,) = _steps(prompt)
    return subtask


@pytest.mark.parametrize(
    "prompt", ["Write a report about llamas", "写一份报告", "", " \n ", "----", "# Title", "hi @bob"]
)
def test_what_can_not_be_split_is_one_subtask(prompt: str) -> None:
    outline = _split(prompt)
    (subtask,) = outline.plan.subtasks
    assert (subtask.tool, subtask.input) == ("core.echo", {"value": {"step": prompt.strip()}})
    assert "could not be split" in outline.notes[0]
    assert "1 of 1 subtasks are plain text" in outline.notes[1]


@pytest.mark.parametrize(
    "prompt",
    [
        "1. load\n2. clean\n3. plot",
        "1) load\n2) clean\n\n3) plot",
        "(1) load\n(2) clean\n(3) plot",
        "1、load\n2、clean\n3、plot",
        "（1）load\n（2）clean\n（3）plot",
        "①load\n②clean\n③plot",
        "一、load\n二、clean\n三、plot",
        "第一步：load\n第二步：clean\n第三步：plot",
        "Step 1: load\nStep 2: clean\nStep 3: plot",
        "步骤1：load\n步骤2：clean\n步骤3：plot",
        "load, then clean; finally plot",
        "first load, then clean, and finally plot",
        "load. After that, clean. Next plot",
        "先load，然后clean，最后plot",
        "首先load。接着clean。最后plot",
        "先load然后clean，最后plot",
        "- load\n- then clean\n- finally plot",
    ],
)
def test_steps_in_order(prompt: str) -> None:
    assert _order(prompt) == [("load", ()), ("clean", ("load",)), ("plot", ("clean",))]


@pytest.mark.parametrize(
    "prompt",
    [
        "- load\n- clean\n- plot",
        "* load\n* clean\n* plot",
        "+ load\n\n+ clean\n+ plot",
        "• load\n• clean\n• plot",
        "- [ ] load\n- [ ] clean\n- [ ] plot",
        "1. load\n2. meanwhile clean\n3. at the same time, plot",
        "1. load\n2. clean (in parallel)\n3. 同时plot",
        "load. Meanwhile clean. In parallel, plot",
        "load，同时clean，与此同时plot",
    ],
)
def test_steps_side_by_side(prompt: str) -> None:
    assert [needed for _, needed in _order(prompt)] == [(), (), ()]


def test_a_diamond_in_english() -> None:
    prompt = "First load the data. Then draw it. Meanwhile count it. Finally write the report."
    assert _order(prompt) == [
        ("load the data", ()),
        ("draw it", ("load-the-data",)),
        ("count it", ("load-the-data",)),
        ("write the report", ("draw-it", "count-it")),
    ]


def test_a_diamond_in_chinese_has_numbered_ids() -> None:
    outline = _split("先下载数据，然后画图，同时统计，最后写报告")
    assert outline.language == "zh"
    assert [(s.id, s.name, s.depends_on) for s in outline.plan.subtasks] == [
        ("step-1", "下载数据", ()),
        ("step-2", "画图", ("step-1",)),
        ("step-3", "统计", ("step-1",)),
        ("step-4", "写报告", ("step-2", "step-3")),
    ]


@pytest.mark.parametrize(
    "join", ["combine both", "Summarise all", "report based on the results", "汇总", "根据上述结果写报告"]
)
def test_a_joining_step_waits_for_all_that_is_open(join: str) -> None:
    assert _order(f"- load\n- clean\n- {join}")[2][1] == ("load", "clean")


def test_joining_bullets_in_a_row_stay_side_by_side() -> None:
    order = _order("- summarise a\n- summarise b\n- combine them")
    assert [needed for _, needed in order] == [(), (), ("summarise-a", "summarise-b")]


def test_a_list_waits_for_what_stands_before_it() -> None:
    prompt = "## Get\n- a\n- b\n\n## Make\n- c\n- d\n\n---\n\n1. e\n"
    assert _order(prompt) == [("a", ()), ("b", ()), ("c", ("a", "b")), ("d", ("a", "b")), ("e", ("c", "d"))]


def test_a_heading_or_a_label_may_put_a_list_beside_the_one_before() -> None:
    assert _order("- a\n\n## Meanwhile\n\n1. b\n2. c\n") == [("a", ()), ("b", ()), ("c", ("b",))]
    assert _order("- a\n\nAt the same time:\n1. b\n2. c\n") == [("a", ()), ("b", ()), ("c", ("b",))]


def test_items_below_an_item_carry_its_label_and_stand_in_its_place() -> None:
    prompt = "1. Collect:\n   - news\n   - prices\n     1. spot\n     2. futures\n2. Report"
    assert _order(prompt) == [
        ("Collect: news", ()),
        ("prices: spot", ()),
        ("prices: futures", ("prices-spot",)),
        ("Report", ("collect-news", "prices-futures")),
    ]


def test_bullets_under_a_number_need_no_indent() -> None:
    assert _order("1. get\n- a\n- b\n2. put") == [("get: a", ()), ("get: b", ()), ("put", ("get-a", "get-b"))]


def test_an_item_that_can_run_runs_before_the_items_below_it() -> None:
    steps = _steps("1. @plain\n   - a\n   - b\n2. end")
    assert [(s.id, s.depends_on) for s in steps] == [
        ("plain", ()),
        ("a", ("plain",)),
        ("b", ("plain",)),
        ("end", ("a", "b")),
    ]
    assert [(s.id, s.depends_on) for s in _steps("1. @plain\n   - [x] a\n2. end")][1] == ("end", ("plain",))


def test_checked_items_are_done_but_not_what_is_open_below_them() -> None:
    outline = _split("- [x] old\n- [X] older\n  - [ ] rest\n- [ ]\n- [ ] new")
    assert [s.name for s in outline.plan.subtasks] == ["rest", "step-2", "new"]
    assert outline.notes[:2] == ("checked off, so it is not run: old", "checked off, so it is not run: older")
    assert "could not be split" in _split("- [x] all done").notes[1]


def test_an_open_item_with_nothing_open_below_it_is_a_step() -> None:
    assert _order("1. load\n2. sum up\n- [x] done") == [("load", ()), ("sum up", ("load",))]


def test_very_deep_lists_are_read_flat() -> None:
    prompt = "\n".join("  " * depth + f"- i{depth}" for depth in range(200))
    assert len(_steps(prompt)) > 100


def test_text_around_a_list_is_context_unless_it_says_when() -> None:
    outline = _split("I like maps.\n\nPlease do:\n1. draw\n\nThanks!\n\nFinally, send it.\n" + "x" * 200)
    assert [(s.name[:10], s.depends_on) for s in outline.plan.subtasks] == [("draw", ()), ("send it. x", ("draw",))]
    assert outline.notes[:2] == (
        "read as context, not as a step: I like maps.",
        "read as context, not as a step: Thanks!",
    )
    long = _split("1. a\n\n" + "y" * 300).notes[0]
    assert long == "read as context, not as a step: " + "y" * 100 + "…"


def test_continuation_lines_belong_to_their_item() -> None:
    assert _order("1. draw\nthe map\n\n   with names\n2. print") == [
        ("draw the map with names", ()),
        ("print", ("draw-the-map-with-names",)),
    ]


def test_sentences_without_a_cue_stay_with_the_step_before() -> None:
    assert [name for name, _ in _order("Load it. It is big. Then clean it, if you like, then plot")] == [
        "Load it. It is big",
        "clean it, if you like",
        "plot",
    ]


def test_the_then_of_an_if_is_no_step() -> None:
    assert [name for name, _ in _order("If it rains then stay, then read")] == ["If it rains then stay", "read"]
    assert "could not be split" in _split("If it rains then stay").notes[0]


def test_python_code_runs_as_given() -> None:
    step = _only("Count:\n\n```python\nprint(1)\n  # two\n```")
    assert (step.name, step.type, step.tool) == ("Count", "CODE_GEN", None)
    assert step.input == {"code": "print(1)\n  # two"}


@pytest.mark.parametrize("language", ["bash", "sh", "shell", "BASH"])
def test_shell_code_runs_and_its_dollars_are_its_own(language: str) -> None:
    step = _only(f"~~~{language}\necho ${{a.output}}\n~~~~\n")
    assert (step.type, step.tool) == ("CODE_GEN", "shell.run")
    assert step.input == {"command": {"$literal": "echo ${a.output}"}}


def test_code_belongs_to_the_item_above_it_also_at_the_margin() -> None:
    steps = _steps("1. one\n```py\n1\n```\n2. two\n   ```py\n   if 2:\n       2\n   ```\n   ```sh\n   3\n   ```\n")
    assert [(s.id, s.depends_on) for s in steps] == [
        ("one", ()),
        ("two-python-run", ("one",)),
        ("two-shell-run", ("two-python-run",)),
    ]
    assert steps[1].input == {"code": "if 2:\n    2"}


def test_text_may_go_on_after_code() -> None:
    (step,) = _steps("1. count\n```python\n1\n```\n   and show it")
    assert (step.name, step.input) == ("count and show it", {"code": "1"})


def test_code_without_words_is_named_after_what_runs_it() -> None:
    assert [s.name for s in _steps("text before\n\n```python\n1\n```\n\n```python\n2")] == ["python.run", "python.run"]


@pytest.mark.parametrize(
    ("block", "note"),
    [
        ("```sql\nselect 1\n```", "kept as text: SQL needs a connection"),
        ("```rust\nfn\n```", "kept as text: a block in `rust` is not run"),
        ("```\nx\n```", "kept as text: a block without a language is not run"),
    ],
)
def test_other_code_is_kept_as_text(block: str, note: str) -> None:
    outline = _split(f"1. do\n{block}")
    assert outline.notes[0].startswith(note)
    assert outline.plan.subtasks[0].input == {"value": {"step": f"do\n{block}"}}


def test_code_is_text_where_nothing_may_run_it() -> None:
    outline = split("```python\n1\n```", ["core.echo"])
    assert outline.plan.subtasks[0].tool == "core.echo"
    assert outline.notes[0] == "the python block is kept as text: there is no tool `python.run`"


def test_a_mention_calls_its_tool_with_the_object_that_follows() -> None:
    ask = '1. Ask @http.request {"url": "https://x", "list": ["a, then b"],\n "n": 1} politely'
    prompt = ask + '\n2. @sql.query {"connection": "c", "sql": "s"}'
    first, second = _steps(prompt)
    assert (first.name, first.type, first.tool) == ("Ask politely", "API_CALL", "http.request")
    assert first.input == {"url": "https://x", "list": ["a, then b"], "n": 1}
    assert (second.name, second.type, second.depends_on) == ("sql.query", "DATA_RETRIEVAL", (first.id,))


def test_mentions_in_running_text_run_in_its_order() -> None:
    steps = _steps('Do @core.echo {"value": "x, then y"} and @plain, then @core.noop; meanwhile @core.noop {}')
    assert [(s.id, s.depends_on) for s in steps] == [
        ("do-and-core-echo", ()),
        ("do-and-plain", ("do-and-core-echo",)),
        ("core-noop", ("do-and-plain",)),
        ("core-noop-2", ("do-and-plain",)),
    ]


def test_a_json_block_may_follow_its_mention() -> None:
    step = _only('Ask @http.request:\n```json\n{"url": "https://x"}\n```')
    assert (step.tool, step.input) == ("http.request", {"url": "https://x"})
    outline = _split("1. @plain\n```json\n[1]\n```")
    assert outline.plan.subtasks[0].input == {}
    assert outline.notes == ("kept as text: a block in `json` is not run",)


def test_a_mention_may_refer_to_an_earlier_step() -> None:
    steps = _steps('1. Load\n2. @core.echo {"value": "${load.output.step}"}')
    assert steps[1].input == {"value": "${load.output.step}"}


@pytest.mark.parametrize(
    ("mention", "note"),
    [
        ("@core.ech {}", "@core.ech is kept as text: there is no tool `core.ech`; did you mean core.echo"),
        (
            "@core.echo {'value': 1}",
            "@core.echo is kept as text, what follows is not a JSON object: Expecting property",
        ),
        ('@core.echo {"value": NaN}', "NaN is not JSON"),
        ('@core.echo {"value": ' + "[" * 100_000, "not a JSON object"),
        ('@core.echo {"value": ' + "[" * 60 + "]" * 60 + "}", "is nested deeper than 56 levels"),
        ('@core.echo {"value": 1e999}', "input/value: is not a finite number"),
        ("@core.echo", "@core.echo is kept as text: input/value: is missing"),
        ('@core.echo {"val": 1}', "input/value: is missing"),
        ('@core.echo {"value": {"$ref": "later.output"}}', "there is no such subtask"),
        ('@core.echo {"value": {"$secret": "k"}}', "it asks for a secret"),
    ],
)
def test_a_mention_that_can_not_be_called_is_kept_as_text_and_said(mention: str, note: str) -> None:
    outline = _split(f"1. {mention}\n2. Later")
    first = outline.plan.subtasks[0]
    assert first.tool == "core.echo"
    assert first.input in ({"value": {"step": mention}}, {"value": {"step": {"$literal": mention}}})
    assert note in outline.notes[0]


def test_a_tool_that_is_switched_off_is_not_called() -> None:
    views = {**VIEWS, "off.tool": ToolView(name="off.tool", schema={}, resources={}, is_active=False)}
    assert "there is no tool `off.tool`" in split("@off.tool", views, views=views).notes[0]


def test_names_of_people_and_addresses_of_mail_are_not_mentions() -> None:
    assert [s.tool for s in _steps("1. ask @bob\n2. mail me@core.noop\n3. see https://x/@core.noop")] == [
        "core.echo",
        "core.echo",
        "http.fetch_text",
        "core.echo",
    ]


def test_an_address_is_fetched() -> None:
    step = _only("Please fetch https://example.com/a?b=1.")
    assert (step.id, step.name) == ("fetch-example-com-a-b-1", "Fetch https://example.com/a?b=1")
    assert (step.type, step.tool) == ("DATA_RETRIEVAL", "http.fetch_text")
    assert step.input == {"url": "https://example.com/a?b=1"}
    assert _only("https://www.example.com").id == "fetch-example-com"


A, B = "https://example.com/a", "https://example.com/b"


def _fetches(prompt: str) -> list[tuple[object, list[object]]]:
    """The addresses that are fetched, each with those that it waits for."""
    steps = _steps(prompt)
    urls = {step.id: step.input["url"] for step in steps if step.tool == "http.fetch_text"}
    return [(urls[step.id], [urls[needed] for needed in step.depends_on]) for step in steps if step.id in urls]


@pytest.mark.parametrize(
    "prompt",
    [
        f"先抓取{A}然后抓取{B}", f"先抓取{A}，然后抓取{B}。", f"先抓取{A},然后抓取{B}", f"首先下载{A};接着下载{B}!",
        f"1. 抓取{A}的内容\n2. 抓取{B}的内容", f"1、读取“{A}”\n2、读取「{B}」", f"先打开{A}、随后打开{B}……",
        f"First fetch {A}, then fetch {B}.", f"先访问{A}（首页），再访问{B}（详情）",
    ],
)  # fmt: skip
def test_addresses_in_chinese_text_end_where_the_text_goes_on(prompt: str) -> None:
    assert _fetches(prompt) == [(A, []), (B, [A])]


@pytest.mark.parametrize(
    "prompt",
    [
        f"抓取{A}和{B}", f"抓取{A}，{B}", f"抓取{A},{B}", f"fetch {A};{B}", f"抓取{A}、{B}", f"抓取“{A}”“{B}”",
        f"抓取《{A}》及『{B}』", f"- 抓取{A}——主页\n- 抓取{B}…", f"取得{A}の内容と{B}の内容",
        f"{A}와 {B}를 가져오기", f"抓取{A}𠀀{B}", f"抓取{A}＠{B}",
    ],
)  # fmt: skip
def test_addresses_side_by_side_are_told_apart(prompt: str) -> None:
    assert _fetches(prompt) == [(A, []), (B, [])]


def test_a_call_beside_an_address_stays_a_call() -> None:
    address, noop = _steps(f"先抓取{B},同时运行 @core.noop {{}}")
    assert (address.input, address.depends_on) == ({"url": B}, ())
    assert (noop.tool, noop.depends_on) == ("core.noop", ())


@pytest.mark.parametrize("url", [f"{A}?q=1,2;3&x=%E6%99%B4#z", "https://example.com/é/ü?a=я", "http://localhost:8000"])
def test_an_address_keeps_what_belongs_to_it(url: str) -> None:
    assert _only(f"抓取{url}的内容").input == {"url": url}


def test_what_might_have_belonged_to_an_address_is_noted() -> None:
    outline = _split("抓取https://example.com/数据。")
    assert outline.plan.subtasks[0].input == {"url": "https://example.com/"}
    assert outline.notes == ("https://example.com/ is read as ending there: write what belongs to it as %XX",)
    assert _split(f"抓取{A}的内容").notes == ()


def test_addresses_in_a_row_are_fetched_side_by_side_and_handed_on() -> None:
    steps = _steps("Compare [one](https://a.org) with https://b.org, carefully")
    assert [(s.tool, s.depends_on) for s in steps] == [
        ("http.fetch_text", ()),
        ("http.fetch_text", ()),
        ("core.echo", (steps[0].id, steps[1].id)),
    ]
    value = steps[2].input["value"]
    assert isinstance(value, dict)
    assert value["results"] == {s.id: {"$ref": f"{s.id}.output"} for s in steps[:2]}


def test_an_address_that_nothing_may_fetch_is_text() -> None:
    outline = split("see https://a.org", ["core.echo"])
    assert outline.plan.subtasks[0].input == {"value": {"step": "see https://a.org"}}
    assert outline.notes[0].startswith("https://a.org is kept as text: there is no tool `http.fetch_text`")


def test_a_text_is_recorded_with_what_came_just_before_and_a_summary_with_all() -> None:
    steps = _steps("1. @plain\n2. think\n3. @plain\n4. note\n5. combine the results")
    handed = [s.input["value"].get("results") for s in steps if s.tool == "core.echo"]  # type: ignore[union-attr]
    assert [list(results) for results in handed if isinstance(results, dict)] == [
        ["plain"],
        ["plain-2"],
        ["plain", "plain-2"],
    ]


def test_a_text_is_recorded_with_a_bounded_number_of_results() -> None:
    steps = _steps("- @plain\n" * 30 + "- combine")
    value = steps[-1].input["value"]
    assert isinstance(value, dict)
    assert isinstance(value["results"], dict)
    assert list(value["results"]) == [f"plain-{n}" for n in range(15, 31)]


def test_wide_stages_are_tied_together_by_one_subtask() -> None:
    steps = _steps("- a\n" * 100 + "- then b\n" + "- c\n" * 99)
    tie = steps[100]
    assert (tie.name, tie.tool, len(tie.depends_on)) == ("Wait for 100 subtasks", "core.noop", 100)
    assert {s.depends_on for s in steps[101:]} == {(tie.id,)}
    untied = split("- a\n" * 100 + "- then b\n", ["core.echo"]).plan.subtasks
    assert len(untied[100].depends_on) == 100


def test_ids_are_unique_short_and_plain() -> None:
    steps = _steps(
        "- A b!\n- a  B\n- a-b-2\n- **Bold** `code` " + "word " * 30 + "\n- 数据 data\n- ...\n- " + "x" * 100
    )
    assert [s.id for s in steps] == [
        "a-b",
        "a-b-2",
        "a-b-2-2",
        "bold-code-word-word-word-word",
        "step-5",
        "step-6",
        "x" * 48,
    ]
    assert steps[3].name.startswith("Bold code word")
    assert max(len(s.name) for s in steps) <= 80


def test_text_that_looks_like_references_stays_text() -> None:
    step = _only("1. print ${load.output}")
    assert step.input == {"value": {"step": {"$literal": "print ${load.output}"}}}


def test_what_a_database_would_refuse_is_replaced() -> None:
    assert _only("a\0b\ud800").input == {"value": {"step": "a\ufffdb\ufffd"}}


def test_languages_are_told() -> None:
    prompts = ["Load data", "加载 data 数据", "Load the data file named 数", "123", "данные"]
    assert [_split(prompt).language for prompt in prompts] == ["en", "zh", "en", "und", "und"]


def test_notes_are_bounded() -> None:
    notes = _split("- [x] a\n" * 500).notes
    assert len(notes) == 200
    assert notes[-1] == "303 more notes are left out"


@pytest.mark.parametrize(
    "prompt",
    [
        "then " * 5_000,
        "如果" * 20_000,
        "@core.echo {" * 2_000,
        "```\n" * 10_000,
        "${a.output" * 5_000,
        "- a\n" * 5_000,
    ],
    ids=lambda prompt: prompt[:8].strip(),
)
def test_a_long_prompt_is_split_without_trouble(prompt: str) -> None:
    assert 1 <= len(split(prompt, VIEWS, views=VIEWS).plan.subtasks) <= 5_000


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a" + " " * 200_000 + "b", 1),
        ("a" + "\t" * 200_000 + "b", 1),
        ("~" * 500_000 + "`", 1),
        ("~~~" + "a" * 500_000 + "`", 1),
        ("~~~" + " " * 500_000 + "`", 1),
        ("@core.noop " * 8_000 + "`x" * 800_000, 8_000),
    ],
    ids=["spaces", "tabs", "fence", "fence of a language", "fence before spaces", "calls of one long text"],
)
def test_the_work_grows_with_the_prompt_and_not_with_its_square(prompt: str, count: int) -> None:
    """Each of them would run into the time limit of tests."""
    assert len(split(prompt, {"core.noop"}).plan.subtasks) == count


def test_a_line_s_end_and_spaces_around_it_are_one_break() -> None:
    steps = _split("Load a \n  \t finally load b").plan.subtasks
    assert [step.name for step in steps] == ["Load a", "load b"]


def test_tabs_indent_and_are_otherwise_kept() -> None:
    text, code = _split("- Both\n\t- a\tb\n\t- c\n\n```python\nif x:\n\tf('\t')\n```").plan.subtasks
    assert text.input == {"value": {"step": "Both: a\tb"}}
    assert code.input == {"code": "if x:\n    f('\t')"}


def test_a_long_label_is_not_repeated_whole_in_each_step_below_it() -> None:
    outline = _split(f"- {'a' * 2_000}\n" + "  - b\n" * 3)
    assert [step.input["value"] for step in outline.plan.subtasks] == [{"step": f"{'a' * 1_000}: b"}] * 3
    assert sum("only 1,000 characters are kept" in note for note in outline.notes) == 1


def test_a_prompt_with_too_many_steps_is_one_subtask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.dag.outline.MAX_SUBTASKS", 5)
    assert len(split("- a\n" * 5, VIEWS).plan.subtasks) == 5
    outline = split("- a\n" * 6, VIEWS)
    assert len(outline.plan.subtasks) == 1
    assert "could not be split" in outline.notes[-2]


def test_with_a_model_text_is_thought_about_with_what_came_before_it() -> None:
    prompt = '1. @core.echo {"value": 1}\n2. think about it\n3. Combine everything'
    outline = split(prompt, ["core.echo", "core.noop"], with_model=True)
    call, thought, summary = outline.plan.subtasks
    assert (thought.type, thought.tool, thought.instruction) == ("REASONING", None, "think about it")
    assert thought.input == {call.id: {"$ref": f"{call.id}.output"}}
    assert summary.input == {name: {"$ref": f"{name}.output"} for name in (call.id, thought.id)}
    assert outline.is_structured
    assert not any("no model is configured" in note for note in outline.notes)
    alone = split("just words", [], with_model=True)
    assert not alone.is_structured
    assert alone.plan.subtasks[0].type == "REASONING"
