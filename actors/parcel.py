"""Outcomes as bytes, on their way from a worker to the scheduler. See `order` for why."""

from __future__ import annotations

import pickle
from dataclasses import fields
from typing import Any

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome

_OUTCOME = tuple(field.name for field in fields(Outcome))
_ERROR = tuple(field.name for field in fields(ErrorInfo))


def pack(outcome: Outcome) -> bytes:
    """An outcome as bytes, for ``unpack`` of the same release."""
    values: dict[str, Any] = {name: getattr(outcome, name) for name in _OUTCOME}
    if outcome.error is not None:
        values["error"] = tuple(getattr(outcome.error, name) for name in _ERROR)
    return pickle.dumps(tuple(values.values()), protocol=pickle.HIGHEST_PROTOCOL)


def unpack(packed: bytes) -> Outcome:
    """The outcome that ``pack`` made. Only ever given bytes of our own workers, which run no foreign code."""
    values: dict[str, Any] = dict(zip(_OUTCOME, pickle.loads(packed), strict=True))
    if values["error"] is not None:
        values["error"] = ErrorInfo(**dict(zip(_ERROR, values["error"], strict=True)))
    return Outcome(**values)
