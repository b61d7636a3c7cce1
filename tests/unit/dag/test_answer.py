"""Results and errors cross processes as values and arrive as what they were."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator

import pytest

from rayloom.dag.answer import Answer, as_error, as_value, as_values, opened
from rayloom.dag.errors import Bug, ErrorInfo, NeedsClarification, RayloomError, Refused, Stale, Transient, UserError
from rayloom.dag.tried import Tried


async def _raises(error: BaseException) -> str:
    raise error


async def _gives(value: str) -> str:
    return value


@pytest.mark.parametrize(
    "error",
    [
        UserError("A", "a"),
        Refused("B", "b"),
        Transient("C", "c", retry_after_s=2.5),
        Stale("D", "d"),
        Bug("E", "e"),
    ],
)
async def test_an_error_arrives_as_what_it_was(error: RayloomError) -> None:
    answer: Answer[str] = pickle.loads(pickle.dumps(await as_value(_raises(error))))
    assert answer[0] == "error"
    arrived = as_error(answer[1])
    assert type(arrived) is type(error)
    assert (arrived.code, arrived.message) == (error.code, error.message)
    assert getattr(arrived, "retry_after_s", None) == getattr(error, "retry_after_s", None)
    with pytest.raises(type(error), match=error.message):
        opened(answer)


async def test_a_result_arrives() -> None:
    answer = await as_value(_gives("x"))
    assert answer == ("ok", "x")
    assert opened(answer) == "x"


async def test_a_foreign_error_is_no_answer() -> None:
    with pytest.raises(KeyError):
        await as_value(_raises(KeyError("x")))


async def test_what_was_tried_for_a_plan_crosses_with_the_error_that_ended_it() -> None:
    error = Transient("MODEL_UNAVAILABLE", "away")
    error.tried = Tried(notes=("a note",), text="{}")
    answer: Answer[str] = pickle.loads(pickle.dumps(await as_value(_raises(error))))
    with pytest.raises(Transient) as raised:
        opened(answer)
    assert raised.value.tried == error.tried
    assert "tried" not in ErrorInfo.from_exception(error).as_json()


async def test_questions_cross_as_such() -> None:
    async def asks() -> None:
        raise NeedsClarification(["Which?"])

    with pytest.raises(NeedsClarification) as asked:
        opened(await as_value(asks()))
    assert asked.value.questions == ("Which?",)


@pytest.mark.parametrize("error", [None, UserError("A", "a")])
async def test_a_stream_arrives_with_what_broke_it_off(error: RayloomError | None) -> None:
    async def given() -> AsyncIterator[int]:
        yield 1
        yield 2
        if error is not None:
            raise error

    answers = [answer async for answer in as_values(given())]
    assert [opened(answer) for answer in answers[:2]] == [1, 2]
    assert [answer[0] for answer in answers[2:]] == ([] if error is None else ["error"])
