"""The batch: order, resuming, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayloom.cluster.batch import BatchOptions, Line, batch_id_of, lines_of, run_batch
from rayloom.dag.errors import Transient, UserError
from rayloom.serve.answers import Rejected
from rayloom.serve.client import Client
from tests.unit.cli.api import FakeApi, problem

Rayloom = Callable[..., int]


@pytest.fixture
def files(tmp_path: Path) -> BatchOptions:
    return BatchOptions(source=tmp_path / "tasks.jsonl", out=tmp_path / "results.jsonl", concurrency=4)


def _write(options: BatchOptions, titles: list[str], *, hold_after: int = 99) -> None:
    bodies = [
        {"title": title, "labels": {"hold": "yes"} if at >= hold_after else {}} for at, title in enumerate(titles)
    ]
    options.source.write_text("".join(json.dumps({"prompt": "p", **body}) + "\n" for body in bodies))


def _results(options: BatchOptions) -> list[dict[str, Any]]:
    return [json.loads(line) for line in options.out.read_text().splitlines()]


def _silent(_line: str) -> None:
    return


def test_results_stand_in_the_order_of_the_input(api: FakeApi, client: Client, files: BatchOptions) -> None:
    titles = [f"task {number}" for number in range(40)]
    _write(files, titles)
    assert run_batch(client, files, say=_silent).exit_code == 0
    results = _results(files)
    assert [result["line"] for result in results] == list(range(1, 41))
    assert [result["result"]["answer"] for result in results] == titles
    assert all(list(result) == ["line", "task_id", "status", "result", "error"] for result in results)
    assert {api.tasks[result["task_id"]].details["title"] for result in results} == set(titles)


def test_a_bad_line_is_a_result_and_stops_nothing(api: FakeApi, client: Client, files: BatchOptions) -> None:
    first, last = b'\xef\xbb\xbf{"prompt": "a"}\n\n  \n', b'{"title": "refused"}\n{"prompt": "z"}'
    files.source.write_bytes(first + b'{"prompt": \n[1]\n\xff\n' + last)
    assert run_batch(client, files, say=_silent).exit_code == 3
    results = _results(files)
    assert [result["line"] for result in results] == [1, 4, 5, 6, 7, 8]
    assert [result["status"] for result in results] == ["COMPLETED", None, None, None, None, "COMPLETED"]
    codes = [result["error"] and result["error"]["code"] for result in results]
    assert codes == [None, "NOT_JSON", "NOT_AN_OBJECT", "NOT_JSON", "HTTP_422", None]
    assert results[4]["error"]["errors"] == [{"pointer": "/title", "message": "not that one"}]
    assert len(api.tasks) == 2


@pytest.mark.parametrize(("ends", "code"), [(["COMPLETED", "CANCELLED"], 4), (["CANCELLED", "FAILED"], 3)])
def test_the_exit_code_tells_the_worst(
    api: FakeApi, client: Client, files: BatchOptions, ends: list[str], code: int
) -> None:
    files.source.write_text("".join(json.dumps({"prompt": "p", "labels": {"ends": end}}) + "\n" for end in ends))
    assert run_batch(client, files, say=_silent).exit_code == code
    assert [result["status"] for result in _results(files)] == ends
    assert run_batch(client, files, say=_silent).exit_code == code, "a rerun that finds everything done says the same"


def test_a_rerun_does_nothing_twice(api: FakeApi, client: Client, files: BatchOptions) -> None:
    _write(files, ["a", "a", "b"])
    run_batch(client, files, say=_silent)
    before, asked = files.out.read_bytes(), len(api.requests)
    assert len(api.tasks) == 3, "equal lines are two tasks"
    run_batch(client, files, say=_silent)
    assert files.out.read_bytes() == before
    assert len(api.requests) == asked


@pytest.mark.parametrize("torn", [b'{"line": 3, "task_id"', b'{"line": 3}', b"\0\0\0\n", b"[]\n{}\n"])
def test_a_torn_end_is_repaired(api: FakeApi, client: Client, files: BatchOptions, torn: bytes) -> None:
    _write(files, ["a", "b", "c", "d"])
    run_batch(client, files, say=_silent)
    whole = files.out.read_bytes()
    files.out.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + torn)
    run_batch(client, files, say=_silent)
    assert files.out.read_bytes() == whole
    assert len(api.tasks) == 4


def test_a_kill_in_the_middle_costs_nothing(
    rayloom: Rayloom, api: FakeApi, files: BatchOptions, tmp_path: Path
) -> None:
    titles = [f"task {number}" for number in range(12)]
    _write(files, titles, hold_after=5)
    # As in a Ray job: started in somebody's folder, which has rooms of its own.
    for room in ("tools", "db", "dag", "cluster"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('the wrong room')\n")
    command = [sys.executable, "-m", "rayloom.cluster.batch", str(files.source), "--out", str(files.out)]
    command += ["--concurrency", "3"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as running:
        # Five have ended and three are held: no further one is submitted.
        api.wait_for_tasks(8)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    written = files.out.read_bytes()
    assert [json.loads(line)["line"] for line in written.splitlines()] == [1, 2, 3, 4, 5]
    with files.out.open("ab") as file:
        file.write(b'{"line": 6, "task')
    api.release()
    assert rayloom("batch", str(files.source), "--out", str(files.out)) == 0
    assert files.out.read_bytes().startswith(written)
    assert [result["result"]["answer"] for result in _results(files)] == titles
    assert len(api.tasks) == len(titles)


def test_the_api_may_be_busy_or_break_off(api: FakeApi, client: Client, files: BatchOptions) -> None:
    _write(files, [f"task {number}" for number in range(6)])
    api.script["POST /api/v1/tasks"].extend(problem(status, "later", retry_after="9") for status in (503, 429, 500))
    api.cuts.extend([0, 4, 9, 2])
    assert run_batch(client, files, say=_silent).exit_code == 0
    assert len(api.tasks) == 6


def test_a_wrong_key_stops_the_batch_and_writes_nothing(api: FakeApi, files: BatchOptions) -> None:
    _write(files, ["a", "b"])
    with Client(api.url, "wrong") as stranger, pytest.raises(Rejected, match="a key is wanted"):
        run_batch(stranger, files, say=_silent)
    assert files.out.read_bytes() == b""


def test_results_of_something_else_are_left_alone(api: FakeApi, client: Client, files: BatchOptions) -> None:
    _write(files, ["a"])
    files.out.write_text("my notes\n")
    with pytest.raises(UserError, match="something else"):
        run_batch(client, files, say=_silent)
    files.out.unlink()
    run_batch(client, files, say=_silent)
    kept = files.out.read_bytes()
    _write(files, ["another"])
    with pytest.raises(UserError, match="something else"):
        run_batch(client, files, say=_silent)
    assert files.out.read_bytes() == kept


def test_one_batch_at_a_time_writes_a_file(api: FakeApi, client: Client, files: BatchOptions) -> None:
    _write(files, ["a"], hold_after=0)
    first = threading.Thread(target=run_batch, args=(client, files), kwargs={"say": _silent})
    first.start()
    api.wait_for_tasks(1)
    with pytest.raises(UserError, match="another batch is writing"):
        run_batch(client, files, say=_silent)
    api.release()
    first.join()
    assert [result["status"] for result in _results(files)] == ["COMPLETED"]


def test_the_time_limit_keeps_what_is_done(api: FakeApi, client: Client, files: BatchOptions) -> None:
    _write(files, ["a", "b"], hold_after=1)
    options = BatchOptions(source=files.source, out=files.out, concurrency=1, timeout_s=5.0)
    with pytest.raises(Transient, match="1 of 2 done"):
        run_batch(client, options, say=_silent)
    assert [result["line"] for result in _results(files)] == [1]


def test_the_command_ends_with_one_document_when_asked(
    api: FakeApi, rayloom: Rayloom, files: BatchOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(files, ["a", "refused"])
    assert rayloom("batch", str(files.source), "--out", str(files.out), "--json") == 3
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document.pop("batch_id") in said.err
    assert document == {"lines": 2, "statuses": {"COMPLETED": 1, "REFUSED": 1}, "out": str(files.out)}


def test_no_input_is_said(client: Client, files: BatchOptions) -> None:
    with pytest.raises(UserError, match="can't read"):
        run_batch(client, files, say=_silent)


def test_an_empty_batch_is_done(client: Client, files: BatchOptions) -> None:
    files.source.write_text("\n\n")
    assert run_batch(client, files, say=_silent).exit_code == 0
    assert files.out.read_bytes() == b""


def test_the_keys_follow_from_the_content_alone(files: BatchOptions) -> None:
    _write(files, ["a", "b", "b"])
    lines = list(lines_of(files.source))
    batch_id, count = batch_id_of(iter(lines), "")
    assert count == 3
    assert len({line.key(batch_id) for line in lines}) == 3
    assert (batch_id, count) == batch_id_of(lines_of(files.source), "")
    assert batch_id_of(lines_of(files.source), "again")[0] != batch_id
    assert Line(number=1, content=b"x").key("b") == Line(number=1, content=b"x").key("b")
