"""Every refusal as an RFC 9457 problem document, and what each error of rayloom's tree becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rayloom.dag.errors import (
    Bug,
    Fault,
    InvalidPlan,
    NeedsClarification,
    RayloomError,
    Refused,
    Stale,
    Transient,
    UserError,
)
from rayloom.dag.json_text import pointer_to
from rayloom.serve.json_answer import json_bytes

MEDIA_TYPE: Final = "application/problem+json"
DEFAULT_RETRY_AFTER_S: Final = 2
RAISED_LIMIT_S: Final = 60.0
# The words of RFC 9110, which Python has from 3.13 on.
_TITLES: Final = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}
"""When to try again where only somebody's act helps, another limit or another key: nobody knows when that will be."""
_OF_MODELS: Final = frozenset({"MODEL_REFUSED", "MODEL_MISSING"})
"""Refusals that are no word on the caller: it is our own key that an endpoint does not take."""
_STATUS_OF_CODE: Final = {
    "TOOL_EXISTS": 409,
    "TOOL_BUILT_IN": 409,
    "TOOL_OF_SERVER": 409,
    "TOOL_INACTIVE": 409,
    "LAST_ADMIN": 409,
    "IDEMPOTENCY_MISMATCH": 422,
    "USER_UNKNOWN": 404,
    "QUOTA_INVALID": 422,
}
_POINTER_OF_CODE: Final = {
    "IDEMPOTENCY_MISMATCH": "/headers/Idempotency-Key",
}
"""Where in a request the fault is that an error of ours means; otherwise nobody knows better than the body."""


class Problem(Exception):
    """A refusal that knows its HTTP status. ``errors`` are the faults, each with a JSON pointer.

    ``questions``: what must be answered first.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[Fault] = (),
        questions: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.errors = tuple(errors)
        self.questions = tuple(questions)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    @property
    def title(self) -> str:
        """The name of the status."""
        return _TITLES.get(self.status) or HTTPStatus(self.status).phrase

    def response(self, instance: str) -> Response:
        """The answer to a request for the path ``instance``."""
        kind = "about:blank" if self.code is None else f"urn:rayloom:problem:{self.code.lower().replace('_', '-')}"
        document: dict[str, object] = {
            "type": kind,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.errors:
            document["errors"] = [fault.as_json() for fault in self.errors]
        if self.questions:
            document["questions"] = list(self.questions)
        return Response(json_bytes(document), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def invalid(faults: Sequence[Fault], *, code: str = "INVALID") -> Problem:
    """A 422 with a pointer for every fault."""
    first = f"{faults[0].pointer or 'the body'}: {faults[0].message}" if faults else "the request is invalid"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Problem(422, first + more, code=code, errors=faults)


def not_found(what: str) -> Problem:
    """A 404, for what is unknown and for what is somebody else's."""
    return Problem(404, f"{what} was not found", code="NOT_FOUND")


def unavailable(detail: str, *, code: str = "UNAVAILABLE", retry_after_s: float = DEFAULT_RETRY_AFTER_S) -> Problem:
    """A 503 that says when to come back."""
    return Problem(503, detail, code=code, retry_after_s=retry_after_s)


def problem_of(error: Exception) -> Problem | None:
    """The problem that an error stands for; None for an error that nobody foresaw."""
    match error:
        case Problem():
            return error
        case InvalidPlan():
            return invalid(error.faults, code=error.code)
        case NeedsClarification():
            faults = [Fault("/prompt", question) for question in error.questions]
            return Problem(422, error.message, code=error.code, errors=faults, questions=error.questions)
        case Transient():
            if error.code == "QUOTA_EXCEEDED":
                wait_s = error.retry_after_s or RAISED_LIMIT_S
                return Problem(429, error.message, code=error.code, retry_after_s=wait_s)
            wait_s = error.retry_after_s or DEFAULT_RETRY_AFTER_S
            return unavailable(error.message, code=error.code, retry_after_s=wait_s)
        case Refused() if error.code in _OF_MODELS:
            return unavailable(error.message, code=error.code, retry_after_s=RAISED_LIMIT_S)
        case Bug():
            return None
        case RayloomError():
            return _by_code(error)
        case RequestValidationError():
            return invalid([_fault(detail) for detail in error.errors()][:100])
        case HTTPException():
            return _routing(error)
    return None


def _by_code(error: RayloomError) -> Problem:
    status = _status_of(error)
    if status != 422:
        return Problem(status, error.message, code=error.code)
    # Whatever is wrong with a request has its place; where nobody said which, it is the whole body.
    fault = Fault(_POINTER_OF_CODE.get(error.code, ""), error.message)
    return Problem(status, error.message, code=error.code, errors=[fault])


def _status_of(error: RayloomError) -> int:
    if error.code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[error.code]
    match error:
        case UserError():
            return 422
        case Refused():
            return 403
        case Stale():
            return 409
    return 500


def _fault(detail: Mapping[str, object]) -> Fault:
    place = detail.get("loc")
    path = [step for step in place if isinstance(step, str | int)] if isinstance(place, Sequence) else []
    message = str(detail.get("msg", "is invalid"))
    return Fault(pointer_to("", path), message[:1].lower() + message[1:])


def _routing(error: HTTPException) -> Problem:
    headers = dict(error.headers or {})
    details = {404: "there is no such route", 405: "this route does not take this method"}
    return Problem(error.status_code, details.get(error.status_code, str(error.detail)), headers=headers)


async def answer(request: Request, error: Exception) -> Response:
    """The exception handler of the app. Re-raises what nobody foresaw: the gate logs it and answers 500."""
    problem = problem_of(error)
    if problem is None:
        raise error
    if problem.status == 405:
        problem.headers["Allow"] = ", ".join(_methods(request)) or problem.headers.get("allow", "")
        problem.headers.pop("allow", None)
    return problem.response(request.url.path)


def _methods(request: Request) -> list[str]:
    """Every method that the path takes; the router names those of the first route only."""
    allowed: set[str] = request.app.state.methods_of(request.url.path)
    return sorted(allowed | {"HEAD"} if "GET" in allowed else allowed)


def install(app: FastAPI) -> None:
    """Answer all foreseen errors of ``app`` as problems."""
    for kind in (Problem, RayloomError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)
