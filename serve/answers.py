"""What an answer of the API means to its client: the document it asked for, or an error of rayloom's tree.

- ``Rejected(UserError)``: the API said no (4xx), and the problem document says why
- ``Busy(Transient)``: overloaded, rate-limited, restarting: try again, after ``retry_after_s`` if given
- ``Unreachable(Transient)``: no answer, or one that is not rayloom's
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import httpx2
import orjson

from rayloom.dag.errors import Fault, Transient, UserError
from rayloom.dag.values import Json, JsonObject

_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An RFC 9457 problem document, and the ``Retry-After`` that came with it."""

    status: int
    title: str
    detail: str
    faults: tuple[Fault, ...] = ()
    retry_after_s: float | None = None
    body: Json = None


class Rejected(UserError):
    """The API refused the request; sending it again unchanged would be refused again."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"HTTP_{problem.status}", problem.detail)
        self.problem = problem


class Busy(Transient):
    """The API, or what it depends on, can't answer now."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"HTTP_{problem.status}", problem.detail, retry_after_s=problem.retry_after_s)
        self.problem = problem


class Unreachable(Transient):
    """Nobody answers at the address, or somebody else does."""

    def __init__(self, message: str) -> None:
        super().__init__("API_UNREACHABLE", message)


def refusal(response: httpx2.Response) -> Rejected | Busy | Unreachable:
    """The error that an answer of any status but 2xx stands for."""
    status = response.status_code
    body = _parsed(response)
    if not isinstance(body, dict):
        # rayloom always answers in JSON: this comes from a proxy in front of it, or from something else.
        return Unreachable(f"{response.request.url} answered {status} without rayloom's JSON")
    errors = body.get("errors")
    faults = [
        Fault(str(item.get("pointer", "")), str(item.get("message", "")))
        for item in (errors if isinstance(errors, list) else [])
        if isinstance(item, dict)
    ]
    title = str(body.get("title") or response.reason_phrase or status)
    problem = Problem(
        status=status,
        title=title,
        detail=str(body.get("detail") or title),
        faults=tuple(faults),
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        body=body,
    )
    return Busy(problem) if status in _TRANSIENT_STATUS else Rejected(problem)


def _retry_after_s(value: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(value)) if value is not None else None
    return None


def _parsed(response: httpx2.Response) -> Json:
    try:
        document: Json = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None
    return document


def document_of(response: httpx2.Response) -> JsonObject | list[Json]:
    """The JSON of an answer; ``{}`` when it is empty. Raises Unreachable when it is not JSON."""
    if not response.content:
        return {}
    document = _parsed(response)
    if not isinstance(document, dict | list):
        raise Unreachable(f"{response.request.url} answered {response.status_code} without rayloom's JSON")
    return document


def object_of(response: httpx2.Response) -> JsonObject:
    """The JSON object of an answer. Raises Unreachable when it is something else."""
    document = document_of(response)
    if isinstance(document, list):
        raise Unreachable(f"{response.request.url} answered a list where an object was due")
    return document


def text_of(answer: JsonObject, name: str) -> str:
    """A text that every answer of this kind has. Raises Unreachable when it has not."""
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise Unreachable(f"the answer has no {name}: it is not rayloom's")
    return value
