"""Errors say whose move it is, and survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

from rayloom.dag.errors import (
    MAX_MESSAGE_CHARS,
    AnswerInvalid,
    Bug,
    ErrorInfo,
    Fault,
    InvalidPlan,
    NeedsClarification,
    RayloomError,
    Refused,
    Stale,
    Transient,
    UserError,
)


@pytest.mark.parametrize(
    ("kind", "error_class", "retryable"),
    [
        (UserError, "user", False),
        (Refused, "refused", False),
        (Transient, "transient", True),
        (Stale, "stale", False),
        (Bug, "bug", False),
        (RayloomError, "bug", False),
    ],
)
def test_the_branch_of_an_error_is_its_class(kind: type[RayloomError], error_class: str, retryable: bool) -> None:
    error = kind("CODE", "what happened")
    assert (error.code, error.message, str(error)) == ("CODE", "what happened", "what happened")
    assert (error.error_class, error.retryable) == (error_class, retryable)
    info = ErrorInfo.from_exception(error)
    expected = {"code": "CODE", "class": error_class, "message": "what happened", "retryable": retryable}
    assert info.as_json() == expected
    assert info.at(3).as_json() == {**expected, "attempt": 3}


def test_an_invalid_plan_keeps_every_fault_and_shows_the_first() -> None:
    faults = [Fault(f"/plan/{i}", "is wrong") for i in range(7)]
    error = InvalidPlan(faults)
    assert error.faults == tuple(faults)
    assert error.code == "INVALID_PLAN"
    assert "/plan/4: is wrong" in error.message
    assert "/plan/5" not in error.message
    assert faults[0].as_json() == {"pointer": "/plan/0", "message": "is wrong"}
    assert InvalidPlan([]).message == "invalid plan"


def test_an_invalid_plan_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(InvalidPlan([Fault("/plan", "is wrong")])))
    assert isinstance(error, InvalidPlan)
    assert error.faults == (Fault("/plan", "is wrong"),)


def test_a_transient_error_carries_when_to_come_back() -> None:
    assert ErrorInfo.from_exception(Transient("BUSY", "later", retry_after_s=7)).retry_after_s == 7
    assert ErrorInfo.from_exception(UserError("NO", "never")).retry_after_s is None


def test_any_other_exception_is_a_bug_named_after_its_type() -> None:
    info = ErrorInfo.from_exception(KeyError("x"))
    assert (info.code, info.error_class, info.retryable, info.message) == ("INTERNAL", "bug", False, "KeyError: 'x'")
    assert ErrorInfo.from_exception(ValueError()).message == "ValueError"


def test_a_message_is_cut_before_it_fills_the_database() -> None:
    assert len(ErrorInfo.from_exception(ValueError("x" * 10_000)).message) == MAX_MESSAGE_CHARS
    assert len(ErrorInfo.from_exception(Bug("B", "x" * 10_000)).message) == MAX_MESSAGE_CHARS


def test_an_invalid_answer_tells_what_was_said_and_what_is_wrong() -> None:
    error = AnswerInvalid("it does not fit", text="{}", faults=["/: 'a' is a required property"])
    assert (error.code, error.text, error.faults) == ("ANSWER_INVALID", "{}", ("/: 'a' is a required property",))
    assert error.retryable
    assert error.retry_after_s is None


def test_questions_survive_pickling_and_are_shown() -> None:
    error = pickle.loads(pickle.dumps(NeedsClarification(["Which?", "When?"])))
    assert error.questions == ("Which?", "When?")
    shown = ErrorInfo.from_exception(error).as_json()
    assert shown["questions"] == ["Which?", "When?"]
    assert "Which? When?" in str(shown["message"])
