"""What each error becomes, and what bodies are judged by."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import orjson
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from rayloom.dag.errors import Bug, Fault, InvalidPlan, Refused, Stale, Transient, UserError
from rayloom.dag.values import JsonObject
from rayloom.db.keys import Principal
from rayloom.serve.callbacks import Callbacks
from rayloom.serve.intake import Submission, fingerprint_of, new_task, read_submission
from rayloom.serve.json_body import parse
from rayloom.serve.problems import Problem, invalid, problem_of
from rayloom.serve.settings import ServeSettings
from rayloom.serve.sse import frame


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("ANY", "x"), 422),
        (UserError("TOOL_EXISTS", "x"), 409),
        (Refused("ANY", "x"), 403),
        (Stale("ANY", "x"), 409),
        (Transient("ANY", "x"), 503),
        (InvalidPlan([Fault("/plan", "x")]), 422),
        (HTTPException(405, headers={"Allow": "GET"}), 405),
        (RequestValidationError([{"loc": ("query", "a/b"), "msg": "Bad", "type": "x"}]), 422),
    ],
)
def test_every_foreseen_error_is_a_problem(error: Exception, status: int) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert problem.status == status
    answer = problem.response("/here")
    assert answer.media_type == "application/problem+json"
    document = orjson.loads(answer.body)
    assert document["instance"] == "/here"
    assert document["title"]
    if status == 422:
        assert all({"pointer", "message"} == set(fault) for fault in document["errors"])
        assert document["errors"]


def test_what_nobody_foresaw_is_no_problem_of_the_caller() -> None:
    assert problem_of(KeyError("x")) is None
    assert problem_of(Bug("ANY", "x")) is None


def test_a_wait_is_told_in_whole_seconds() -> None:
    problem = problem_of(Transient("ANY", "x", retry_after_s=0.2))
    assert problem is not None
    assert problem.headers["Retry-After"] == "1"


def test_pointers_are_escaped() -> None:
    problem = problem_of(RequestValidationError([{"loc": ("query", "a/b~"), "msg": "Bad", "type": "x"}]))
    assert problem is not None
    assert problem.errors == (Fault("/query/a~1b~0", "bad"),)
    assert "and 1 more" in invalid([Fault("/a", "x"), Fault("/b", "y")]).detail


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_problem(raw: bytes) -> None:
    refused = _refusal(lambda: parse(raw))
    assert refused is None or refused.status in (400, 422)


def _refusal(act: Callable[[], object]) -> Problem | None:
    try:
        act()
    except Problem as problem:
        return problem
    return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALLBACKS = Callbacks(ServeSettings(secret_key=SecretStr("secret")))
FIELDS = st.sampled_from([*Submission.model_fields, "other"])


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_any_object_is_a_submission_or_has_faults_with_pointers(document: dict[str, object]) -> None:
    submission, faults = read_submission(document, CALLBACKS)  # type: ignore[arg-type]
    if not faults:
        assert submission.prompt or document["plan"] is not None
    assert all(fault.pointer.startswith("/") for fault in faults)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"priority": 0}, ["/priority", "/prompt"]),
        ({"prompt": " ", "callback_url": "http://127.0.0.1/x"}, ["/prompt", "/callback_url"]),
        (
            {
                "prompt": " ",
                "priority": 0,
                "callback_url": "http://127.0.0.1/x",
                "budget": {"deadline_s": 1e12},
                "z": 1,
            },
            ["/priority", "/z", "/prompt", "/budget/deadline_s", "/callback_url"],
        ),
        # What is said of a field that could not be read would be a guess.
        ({"prompt": 1, "callback_url": 1, "callback_secret": "x"}, ["/prompt", "/callback_url"]),
        ({"prompt": "x", "labels": {f"{number:0130}": "" for number in range(200)}, "priority": 0}, None),
    ],
)
def test_all_faults_of_a_body_are_told_together(body: JsonObject, pointers: list[str] | None) -> None:
    submission, faults = read_submission({**body, "tools": {"deny": ["x"]}}, CALLBACKS)
    if pointers is None:
        assert len(faults) == 100
    else:
        assert [fault.pointer for fault in faults] == pointers
        # Its plan is judged by that.
        assert submission.tools.deny == ["x"]


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("\n\n# Head line\nmore", "Head line"),
        ("x" * 100, "x" * 79 + "…"),
        ("- \n", "untitled"),
        ("先读文件", "先读文件"),
    ],
)
def test_a_title_comes_from_the_first_line(prompt: str, title: str) -> None:
    submission, _ = read_submission({"prompt": prompt}, CALLBACKS)
    who = Principal(user_id=UUID(int=1), user="u", role="user", key_id=UUID(int=2))
    task = new_task(submission, who=who, plan=None, denied=[], bounds={}, key=None, print_=b"")
    assert task.title == title
    assert (task.user_id, task.key_id) == (who.user_id, who.key_id)


def test_the_order_of_fields_is_no_difference() -> None:
    assert fingerprint_of({"a": 1, "b": {"c": 1, "d": 2}}) == fingerprint_of({"b": {"d": 2, "c": 1}, "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_an_event_is_one_line_of_data() -> None:
    assert frame("7", "task", {"reason": "a\nb"}) == b'id: 7\nevent: task\ndata: {"reason":"a\\nb"}\n\n'
