"""The error tree. The branch of an error is the reaction to it.

    RayloomError
    ├── UserError      the request is wrong: tell, never retry
    │   ├── InvalidPlan    with a JSON pointer for every fault
    │   └── NeedsClarification  with what has to be known first
    ├── Refused        a rule says no, or not now: wait or stop
    ├── Transient      the world failed: retry with back-off
    ├── Stale          somebody was faster: drop it
    └── Bug            ours: report it

Errors cross processes as ``ErrorInfo`` values, never as exceptions: an exception that fails to unpickle would
take its cause with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from rayloom.dag.model import ModelUse
from rayloom.dag.tried import Tried
from rayloom.dag.values import JsonObject

ErrorClass = Literal["user", "refused", "transient", "stale", "bug"]
MAX_MESSAGE_CHARS = 4_000
MAX_SHOWN_CHARS = 150


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of an input: where (an RFC 6901 JSON pointer) and what to do about it."""

    pointer: str
    message: str

    def as_json(self) -> dict[str, str]:
        """The shape of an item of a problem's ``errors``."""
        return {"pointer": self.pointer, "message": self.message}


def shown(text: str) -> str:
    """As much of a text of somebody's own as a message may hold."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"


class RayloomError(Exception):
    """Anything that rayloom itself raises: a stable ``code``, a sentence for a person, and a class.

    ``tried``: what was done for the plan that this error ended; None where it ended none.
    """

    error_class: ClassVar[ErrorClass] = "bug"
    tried: Tried | None = None

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed without anybody changing anything."""
        return self.error_class == "transient"


class UserError(RayloomError):
    """The request, plan or input is wrong; only its author can mend it."""

    error_class = "user"


class InvalidPlan(UserError):
    """A plan that is refused before anything is stored, with every fault found."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("INVALID_PLAN", "; ".join(f"{f.pointer}: {f.message}" for f in faults[:5]) or "invalid plan")
        self.faults = tuple(faults)

    def __reduce__(self) -> tuple[type[InvalidPlan], tuple[tuple[Fault, ...]]]:
        return (type(self), (self.faults,))


class NeedsClarification(UserError):
    """A prompt that could mean too many things; ``questions`` are what its author would have to say."""

    def __init__(self, questions: Sequence[str]) -> None:
        super().__init__("NEEDS_CLARIFICATION", "the request leaves open: " + " ".join(questions))
        self.questions = tuple(questions)

    def __reduce__(self) -> tuple[type[NeedsClarification], tuple[tuple[str, ...]]]:
        return (type(self), (self.questions,))


class Refused(RayloomError):
    """A rule (permission, quota, address, breaker) says no."""

    error_class = "refused"


class Transient(RayloomError):
    """The world failed: network, time-outs, overload, a lost worker."""

    error_class = "transient"

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class AnswerInvalid(Transient):
    """A model's answer that is not what was asked for: ``text`` is what it said, ``faults`` what is wrong with it.

    ``use``: what the call has used, as any other's.
    """

    use = ModelUse()

    def __init__(self, message: str, *, text: str, faults: Sequence[str]) -> None:
        super().__init__("ANSWER_INVALID", message)
        self.text = text
        self.faults = tuple(faults)


class Stale(RayloomError):
    """Somebody was faster: the row is no longer in the state that the write expected."""

    error_class = "stale"


class Bug(RayloomError):
    """An error of rayloom or of a tool's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error as a value: what the API shows, what the database keeps, what crosses processes.

    ``questions``: of `NeedsClarification`. ``tried``: as that of the exception; it is neither shown nor kept.
    """

    code: str
    error_class: ErrorClass
    message: str
    retryable: bool
    attempt: int | None = None
    retry_after_s: float | None = None
    questions: tuple[str, ...] = ()
    tried: Tried | None = None

    @classmethod
    def from_exception(cls, error: BaseException) -> ErrorInfo:
        """The value of an exception; one that is not ours is a bug named after its type."""
        if isinstance(error, RayloomError):
            retry_after_s = error.retry_after_s if isinstance(error, Transient) else None
            return cls(
                code=error.code,
                error_class=error.error_class,
                message=error.message[:MAX_MESSAGE_CHARS],
                retryable=error.retryable,
                retry_after_s=retry_after_s,
                questions=error.questions if isinstance(error, NeedsClarification) else (),
                tried=error.tried,
            )
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return cls(code="INTERNAL", error_class="bug", message=message[:MAX_MESSAGE_CHARS], retryable=False)

    def at(self, attempt: int) -> ErrorInfo:
        """The same error, of a given attempt."""
        return replace(self, attempt=attempt)

    def as_json(self) -> JsonObject:
        """The ``error`` object of the API: ``{code, class, message, retryable, attempt?, questions?}``."""
        shown: JsonObject = {
            "code": self.code,
            "class": self.error_class,
            "message": self.message,
            "retryable": self.retryable,
        }
        if self.attempt is not None:
            shown["attempt"] = self.attempt
        if self.questions:
            shown["questions"] = list(self.questions)
        return shown
