"""Results and errors that cross processes as values. No exception of ours is ever pickled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Literal, TypeVar, assert_never

from rayloom.dag.errors import Bug, ErrorInfo, NeedsClarification, RayloomError, Refused, Stale, Transient, UserError

T = TypeVar("T")
Answer = tuple[Literal["ok"], T] | tuple[Literal["error"], ErrorInfo]


async def as_value(result: Awaitable[T]) -> Answer[T]:
    """What a call gave, or the error of ours that it raised, as a value."""
    try:
        return ("ok", await result)
    except RayloomError as error:
        return ("error", ErrorInfo.from_exception(error))


async def as_values(results: AsyncIterator[T]) -> AsyncIterator[Answer[T]]:
    """What a stream gives, each as a value, and last the error of ours that broke it off, if one did."""
    try:
        async for result in results:
            yield ("ok", result)
    except RayloomError as error:
        yield ("error", ErrorInfo.from_exception(error))


def as_error(info: ErrorInfo) -> RayloomError:
    """The error that a value stands for."""
    error = _of_class(info)
    error.tried = info.tried
    return error


def _of_class(info: ErrorInfo) -> RayloomError:
    match info.error_class:
        case "user" if info.questions:
            return NeedsClarification(info.questions)
        case "user":
            return UserError(info.code, info.message)
        case "refused":
            return Refused(info.code, info.message)
        case "transient":
            return Transient(info.code, info.message, retry_after_s=info.retry_after_s)
        case "stale":
            return Stale(info.code, info.message)
        case "bug":
            return Bug(info.code, info.message)
        case _:
            assert_never(info.error_class)


def opened(answer: Answer[T]) -> T:
    """The result in an answer. Raises the error that it holds."""
    if answer[0] == "error":
        raise as_error(answer[1])
    return answer[1]
