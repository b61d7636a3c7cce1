"""The command line: its three forms of output, its exit codes, its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse, Response
from typer.main import get_command

from rayloom.cluster.cli.program import app, run
from rayloom.cluster.home import Home, RunningInstance
from rayloom.serve.client import Client
from tests.unit.cli.api import PLAN, FakeApi, problem

Rayloom = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def test_submit_prints_the_id(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    assert rayloom("submit", "make tea") == 0
    assert capsys.readouterr().out == f"{next(iter(api.tasks))}\n"


def test_submit_sends_what_the_options_say(rayloom: Rayloom, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    (tmp_path / "body.json").write_text('{"title": "from the file", "priority": 2, "labels": {"a": "1"}}')
    options = ["--title", "t", "--label", "b=x=y", "--context", '{"c": 1}', "--budget-deadline-s", "10"]
    options += ["--budget-max-tokens", "5", "--budget-max-cost-usd", "0.5"]
    files = ["--plan", str(tmp_path / "plan.json"), "--file", str(tmp_path / "body.json")]
    assert rayloom("submit", *files, *options, "--allow-tool", "core.*", "--idempotency-key", "k") == 0
    raw, _ = api.keys["k"]
    assert json.loads(raw) == {
        "title": "t",
        "priority": 2,
        "labels": {"a": "1", "b": "x=y"},
        "plan": PLAN,
        "context": {"c": 1},
        "budget": {"deadline_s": 10.0, "max_tokens": 5, "max_cost_usd": 0.5},
        "tools": {"allow": ["core.*"]},
    }


@pytest.mark.parametrize(("ends", "code"), [("COMPLETED", 0), ("FAILED", 3), ("CANCELLED", 4)])
def test_the_exit_code_says_how_the_task_ended(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, ends: str, code: int
) -> None:
    assert rayloom("submit", "p", "--label", f"ends={ends}", "--watch") == code
    assert f"\ttask\t-\tPROCESSING -> {ends}" in capsys.readouterr().out
    assert rayloom("watch", next(iter(api.tasks)), "--json") == code
    assert json.loads(capsys.readouterr().out) == next(iter(api.tasks.values())).details


def test_watch_prints_a_line_an_event_and_the_result(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    task_id = api.add({"title": "tea"})
    assert rayloom("watch", task_id) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "2026-01-01T00:00:04Z\tsubtask\tleft\tQUEUED -> RUNNING"
    assert lines[10:] == ["result:", "{", '  "answer": "tea"', "}"]


def test_ctrl_c_leaves_the_task_running(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = api.add({"title": "tea"})

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "events", interrupted)
    assert rayloom("watch", task_id) == 130
    assert f"task {task_id} goes on" in capsys.readouterr().err
    assert not any(path.endswith("/cancel") for _, path, _ in api.requests)


def test_lists_are_lines_in_a_pipe_and_the_apis_json_when_asked(
    rayloom: Rayloom, api: FakeApi, capsys: Capture
) -> None:
    for title in ("one", "two\nlines \x1b[31m", "three"):
        api.add({"title": title})
    assert rayloom("list") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows] == ["one", "two lines \\x1b[31m", "three"]
    assert {len(row) for row in rows} == {6}
    assert rayloom("list", "--limit", "2", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page == {"items": [task.details for task in list(api.tasks.values())[:2]], "next_cursor": "2"}
    assert rayloom("list", "--limit", "1", "--all", "--json") == 0
    assert [item["title"] for item in json.loads(capsys.readouterr().out)["items"]][::2] == ["one", "three"]


def test_show_is_for_reading(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    task_id = api.add({"title": "tea"})
    assert rayloom("show", task_id) == 0
    shown = capsys.readouterr().out
    assert "status\tCOMPLETED" in shown
    assert "join\tCOMPLETED\ttext.template\t1\t12 ms" in shown


def test_a_plan_that_is_not_whole_is_said_to_be_none(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    task_id = api.add({"title": "tea"})
    details = api.tasks[task_id].details
    details |= {"plan_open": True, "progress": {"total": 1, "completed": 1, "percent": 50.0}}
    assert rayloom("show", task_id) == 0
    assert "progress\t50.0 % (1 total, 1 completed, the plan is not whole)" in capsys.readouterr().out
    details["subtasks"] = {"total": 1, "settled": 1}
    assert rayloom("list") == 0
    assert "\t1/1+\t" in capsys.readouterr().out


def test_logs_are_lines_also_while_they_come(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    task_id = api.add({"title": "tea"})
    where = {"at": "2026-01-01T00:00:00.5Z", "level": "INFO", "stream": "stdout", "subtask": "join", "attempt": 2}
    api.log.extend({"id": number, **where, "message": text} for number, text in ((1, "a"), (2, "b\tc")))
    expected = ["2026-01-01T00:00:00.5Z\tINFO\tstdout\tjoin#2\ta", "2026-01-01T00:00:00.5Z\tINFO\tstdout\tjoin#2\tb c"]
    for arguments in ((), ("-f",)):
        assert rayloom("logs", task_id, *arguments) == 0
        assert capsys.readouterr().out.splitlines() == expected
    assert rayloom("logs", task_id, "-f", "--json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == api.log


def test_a_trace_is_a_waterfall_or_a_file(rayloom: Rayloom, api: FakeApi, capsys: Capture, tmp_path: Path) -> None:
    def span(key: str, parent: str | None, second: int, took_ms: int, name: str) -> dict[str, object]:
        at = f"2026-01-01T00:00:{second:02d}Z"
        more = {"started_at": at, "duration_ms": took_ms, "status": "ok", "kind": "attempt", "subtask": "s"}
        return {"span_id": key, "parent_id": parent, "name": name, "attempt": 1, **more}

    document = {"trace_id": "t", "spans": [span("c", "a", 2, 5, "s late"), span("b", "a", 1, 5, "s early")]}
    document["spans"].insert(1, {**span("a", None, 0, 9, "tea"), "kind": "task", "status": "error"})  # type: ignore[attr-defined]
    api.script["GET /api/v1/tasks/t/trace"].extend(JSONResponse(document) for _ in range(3))
    assert rayloom("trace", "t") == 0
    assert capsys.readouterr().out.splitlines() == [
        "0\t9\terror\ttask tea s",
        "1000\t5\tok\t  attempt s early #1",
        "2000\t5\tok\t  attempt s late #1",
    ]
    assert rayloom("trace", "t", "--format", "chrome", "-o", str(tmp_path / "trace.json")) == 0
    assert json.loads((tmp_path / "trace.json").read_text()) == document
    capsys.readouterr()
    assert rayloom("trace", "t", "--json", "-o", str(tmp_path / "again.json")) == 0
    assert json.loads(capsys.readouterr().out) == {"task_id": "t", "output": str(tmp_path / "again.json")}
    assert json.loads((tmp_path / "again.json").read_text()) == document


def test_an_error_is_its_detail_and_every_fault(rayloom: Rayloom, capsys: Capture) -> None:
    assert rayloom("submit", "p", "--title", "refused") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "rayloom: the request is invalid\n  /title: not that one\n"


@pytest.mark.parametrize(
    ("arguments", "detail"),
    [
        (("show", "nobody"), "no such task"),
        (("dead-letters",), "this comes with a later version"),
        (("keys", "create", "--user", "u"), "this comes with a later version"),
    ],
)
def test_a_problem_is_one_line(rayloom: Rayloom, capsys: Capture, arguments: tuple[str, ...], detail: str) -> None:
    assert rayloom(*arguments) == 1
    assert capsys.readouterr().err == f"rayloom: {detail}\n"


def test_cancel_of_an_ended_task_is_an_error(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    assert rayloom("cancel", api.add({"title": "tea"})) == 1
    assert capsys.readouterr().err == "rayloom: the task is COMPLETED\n"


def test_what_waits_is_approved_or_rejected(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    assert rayloom("approve", "t-1") == 0
    assert rayloom("approve", "t-1", "--subtask", "b") == 0
    assert rayloom("reject", "t-1", "--reason", "too dear") == 0
    assert rayloom("reject", "t-1", "--subtask", "b", "--reason", "no", "--json") == 0
    assert api.decided == [
        ("approve", {}), ("approve", {"subtask": "b"}), ("reject", {"reason": "too dear"}),
        ("reject", {"reason": "no", "subtask": "b"}),
    ]  # fmt: skip
    *lines, document = capsys.readouterr().out.splitlines()
    assert lines == [
        "approved: the plan (the task is PROCESSING)",
        "approved: b (the task is PROCESSING)",
        "rejected: the plan (the task is CANCELLED)",
    ]
    assert '"subtasks":["b"]' in document.replace(" ", "")


def test_the_end_names_what_is_missing(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    task_id = api.add({"title": "tea"})
    api.tasks[task_id].details["missing"] = ["left", "right"]
    assert rayloom("show", task_id) == 0
    assert "missing: left, right\nresult:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("reject", "t-1"),
        ("submit",),
        ("submit", "p", "--priority", "11"),
        ("submit", "p", "--context", "[1]"),
        ("submit", "p", "--label", "novalue"),
        ("submit", "--plan", "/nowhere.json"),
        ("nonsense",),
        ("watch",),
    ],
)
def test_wrong_usage_exits_with_2_and_sends_nothing(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, arguments: tuple[str, ...]
) -> None:
    assert rayloom(*arguments) == 2
    assert "Error: " in capsys.readouterr().err
    assert api.requests == []


def test_a_tool_is_invoked_and_its_failure_is_exit_1(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    route = "POST /api/v1/tools/core.echo/invoke"
    api.script[route].append(JSONResponse({"output": "hello", "error": None, "duration_ms": 3}))
    error = {"code": "BAD", "class": "user", "message": "no good", "retryable": False}
    api.script[route].append(JSONResponse({"output": None, "error": error, "duration_ms": 3}))
    assert rayloom("tools", "invoke", "core.echo", '{"value": "hello"}') == 0
    assert capsys.readouterr().out == "hello\n"
    assert rayloom("tools", "invoke", "core.echo", "{}") == 1
    assert capsys.readouterr().err == "rayloom: core.echo: BAD: no good\n"


def test_tools_are_listed_without_saying_list(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    page = {"items": [{"name": "core.noop", "type": "NATIVE", "is_active": True}], "next_cursor": None}
    api.script["GET /api/v1/tools"].extend(JSONResponse(page) for _ in range(2))
    assert rayloom("tools") == 0
    assert capsys.readouterr().out == "core.noop\tNATIVE\t\ton\t\t\n"
    assert rayloom("tools", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == page


def test_an_mcp_server_is_registered_switched_and_removed(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    made = {"name": "demo", "type": "MCP", "tools": ["demo.add"]}
    api.script["POST /api/v1/tools/register"].extend(JSONResponse(made, 201) for _ in range(2))
    api.script["PATCH /api/v1/tools/demo"].append(JSONResponse({"name": "demo", "is_active": False}))
    api.script["GET /api/v1/tools/demo"].append(JSONResponse({"name": "demo", "transport": "http"}))
    api.script["DELETE /api/v1/tools/demo"].append(Response(status_code=204))
    register = ("tools", "register", "demo", "--type", "mcp")
    assert rayloom(*register, "--url", "https://x/mcp", "--bearer", "t") == 0
    assert rayloom(*register, "--server", '{"remotes": []}', "--trusted") == 0
    assert rayloom("tools", "off", "demo") == 0
    assert rayloom("tools", "show", "demo") == 0
    assert rayloom("tools", "remove", "demo") == 0
    said = capsys.readouterr().out
    assert said.startswith("demo.add\ndemo.add\ndemo is off\n")
    assert "transport" in said
    far = {"transport": "http", "url": "https://x/mcp", "auth": {"type": "bearer", "token": "t"}}
    assert [json.loads(body) for _, body in api.sent if body] == [
        {"type": "MCP", "name": "demo", **far},
        {"type": "MCP", "name": "demo", "server": {"remotes": []}, "trusted": True},
        {"is_active": False},
    ]


def test_a_busy_api_is_waited_for_when_watching_only(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    api.script["GET /api/v1/tasks"].append(problem(503, "starting up", retry_after="1"))
    assert rayloom("list") == 1
    assert capsys.readouterr().err == "rayloom: starting up\n"
    api.script["POST /api/v1/tasks"].append(problem(503, "starting up", retry_after="0"))
    assert rayloom("submit", "p", "--watch") == 0


def test_no_key_is_said_in_one_line(
    rayloom: Rayloom, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAYLOOM_API_KEY")
    assert rayloom("list") == 1
    assert capsys.readouterr().err.startswith("rayloom: no API key: ")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "api_key").write_text("rl_test\n")
    assert rayloom("list") == 0


def test_the_key_of_the_folder_of_up_is_used(
    rayloom: Rayloom, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAYLOOM_API_KEY", "RAYLOOM_URL"):
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text(f"RAYLOOM_API_KEY=rl_test\nRAYLOOM_URL={api.url}\n")
    home = Home(tmp_path / "home")
    home.acquire()
    told = RunningInstance(pid=os.getpid(), started_at="", state="serving", url="", folder=str(tmp_path))
    home.write_run(told)
    assert rayloom("list") == 0
    home.release()


def test_a_key_is_not_sent_where_the_present_folder_says(
    rayloom: Rayloom, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYLOOM_URL")
    monkeypatch.setenv("RAYLOOM_PORT", "9")
    (tmp_path / ".env").write_text(f"RAYLOOM_URL={api.url}\n")
    monkeypatch.chdir(tmp_path)
    assert rayloom("list") == 1
    assert api.requests == []


def test_a_wrong_setting_is_said_without_a_stack_trace(
    rayloom: Rayloom, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLOOM_PROT", "1")
    assert rayloom("list") == 1
    err = capsys.readouterr().err
    assert err.startswith("rayloom: ")
    assert "RAYLOOM_PORT" in err


def test_the_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rayloom ")


def test_every_command_that_does_something_speaks_json() -> None:
    def leaves(command: Any) -> Iterator[Any]:
        for child in getattr(command, "commands", {}).values():
            yield from leaves(child)
        if not getattr(command, "commands", {}):
            yield command

    silent = [
        command.name
        for command in leaves(get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert silent == []


@pytest.mark.parametrize(("said", "code"), [("ready", 0), ("degraded", 1), ("unavailable", 1)])
def test_status_is_well_only_when_all_is_ready(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, said: str, code: int
) -> None:
    status = 503 if said == "unavailable" else 200
    api.script["GET /readyz"].append(JSONResponse({"status": said, "checks": {}}, status))
    assert rayloom("status", "--json") == code
    assert json.loads(capsys.readouterr().out)["serve"]["state"] == ("not ready" if status == 503 else said)


def test_status_takes_no_stranger_for_rayloom(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    api.script["GET /readyz"].append(JSONResponse({"hello": "world"}))
    assert rayloom("status", "--json") == 1
    assert json.loads(capsys.readouterr().out)["serve"]["state"] == "down"


def test_down_with_nothing_to_stop(rayloom: Rayloom, capsys: Capture, tmp_path: Path) -> None:
    assert rayloom("down", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "home": str(tmp_path / "home"),
        "running": False,
        "stopped_pid": None,
    }


def test_bench_gives_its_figures_as_json(rayloom: Rayloom, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"workloads": {"W1": {"ratio": 1.0}}}

    def measured(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "bench.run", "W1"]
        Path(command[command.index("--json") + 1]).write_text(json.dumps(figures))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", measured)
    assert rayloom("bench", "--json", "W1") == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'ray', 'sqlalchemy', 'fastapi', 'httpx2', 'pydantic_settings', 'alembic'}"
    code = "import sys; from rayloom.cluster.cli.program import run; run(['--help']); "
    code += f"assert not {heavy} & {{*sys.modules}}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "submit" in ended.stdout
